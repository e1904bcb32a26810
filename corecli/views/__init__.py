"""Augmentations: random views of images."""
