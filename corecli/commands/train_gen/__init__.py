"""The verb `train-gen`."""
