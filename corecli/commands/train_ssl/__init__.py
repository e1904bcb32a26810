"""The verb `train-ssl`."""
