"""Find folders of weights by their path, or by the id of a repository on a hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from corecli.base.errors import UnavailableError
from corecli.base.files import missing
from corecli.base.untrusted import reason_of, refuse_code

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TRUE = ("1", "on", "true", "yes")


def find_folder(place: str | Path, *, patterns: list[str]) -> Path:
    """Return the folder at a path, or of a repository on the hub by its id `OWNER/NAME`.

    A repository is read from the hub's cache on this machine. If it is not there, the files that match `patterns` are
    downloaded, unless HF_HUB_OFFLINE is set. Errors: MissingInputError for a path; UnavailableError for a repository
    that cannot be found or downloaded; DataError for a folder that names code to run.
    """
    folder = _found(place, patterns)
    refuse_code(folder)
    return folder


def _found(place: str | Path, patterns: list[str]) -> Path:
    if Path(place).is_dir():
        return Path(place)
    if not _REPOSITORY.fullmatch(str(place)) or Path(place).parent.is_dir():
        raise missing(place, "folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=patterns, local_files_only=True))
    except OSError:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
            raise _unavailable(place, "not in the local cache, and HF_HUB_OFFLINE is set") from None
    try:
        return Path(snapshot_download(str(place), allow_patterns=patterns))
    except Exception as error:  # libraries raise many kinds
        raise _unavailable(place, f"not in the local cache, and the download failed: {reason_of(error)}") from error


def _unavailable(place: str | Path, reason: str) -> UnavailableError:
    hint = f"download it with `hf download {place}` on a machine with a network, and give its folder"
    return UnavailableError(reason, where=place, hint=hint)
