"""The metric fd; an error unless the extractor is the FID Inception network."""

from __future__ import annotations

from corecli.metrics.fd import compute as compute

NEEDS = ("sample_moments", "reference_moments", "distance_name")
SCORES = {"fid": "lower", "fid_corrected": "lower"}
PLACE = 1
SPACE = "inception"
ALIAS_OF = "fd"
