"""Grouped image sets, feature tables, mixtures, order, loading and batched augmentation."""
