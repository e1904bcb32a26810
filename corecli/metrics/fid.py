"""Frechet Inception distance: fd with the FID Inception network; an error with another encoder."""

from __future__ import annotations

from corecli.metrics.fd import compute as compute

NEEDS = ("sample_moments", "reference_moments", "distance_name")
SCORES = {"fid": "lower", "fid_corrected": "lower"}
PLACE = 1
SPACE = "inception"
ALIAS_OF = "fd"
