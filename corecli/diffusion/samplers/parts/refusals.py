"""What samplers refuse."""

from __future__ import annotations

from corecli.base.errors import UsageError


def refuse_eta(eta: float, sampler: str) -> None:
    """Refuse an eta where it would silently do nothing. Errors: UsageError."""
    if eta:
        raise UsageError(f"the {sampler} sampler takes no eta", hint="eta belongs to ddim")
