"""The verb `captions`."""
