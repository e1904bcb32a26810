"""The verb `inflate`."""
