"""From a verb's optional fields to the Config of the family or method that was chosen."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from corecli.base.config import flag
from corecli.base.errors import UsageError


def chosen_fields(config: Any, names: tuple[str, ...], target: type[Any], chosen: str) -> dict[str, Any]:
    """The fields among `names` that were given (are not None), for the dataclass `target`.

    Errors: UsageError when one was given that the chosen family or method does not have.
    """
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    known = {f.name for f in fields(target)}
    for name in given:
        if name not in known:
            raise UsageError(f"{flag(name)} does not apply to {chosen}")
    return given
