"""Errors, files, randomness, configuration and checkpoints. No module here imports torch when it is imported."""
