"""Open and check what several verbs read, without torch, so that --dry-run reports the same errors as the run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base.config import Common, option
from corecli.base.documents import check
from corecli.base.errors import CannotCreateError, DataError, UsageError
from corecli.base.files import missing, sniff
from corecli.base.schemas import SAMPLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corecli.data.features import FeatureTable
    from corecli.data.imageset import ImageSet
    from corecli.data.loader import Workers

MIXED_HINT = "--image-size N resizes and crops all to N x N"
_MOST_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class ReadsImages(Common):
    """The options of every verb that passes images through a network."""

    image_size: int | None = option(None, help="resize the shorter side to N px and crop the center", minimum=1)
    workers: str = option("auto", help="number of processes that decode images", role="runtime", metavar="N|auto")
    on_bad: Literal["fail", "skip"] = option("fail", help="unreadable images: fail, or skip up to 10 percent of them")


def open_images(spec: str, config: ReadsImages) -> ImageSet:
    """Open the image set that a user named, as the options say. Errors: MissingInputError, DataError, UsageError."""
    from corecli.data.imageset import open_set

    num_workers(config.workers)
    return open_set(spec, image_size=config.image_size, on_bad=config.on_bad)


def fitted(data: ImageSet, preprocessing: Mapping[str, Any], where: object) -> ImageSet:
    """Return a set as a network sees it: images of different sizes are resized and cropped as its preprocessing says.

    Sets of one size stay as they are, because networks resize them themselves. Errors: DataError if the network takes
    images as they are.
    """
    from corecli.data.decode import Fit

    crop = preprocessing["image_size"]
    if not data.is_mixed:
        return data
    if crop is None:
        raise DataError("the images differ in size, and the encoder does not resize them", where=where, hint=MIXED_HINT)
    return data.fitted(
        Fit(crop=crop, resize=preprocessing.get("resize", crop), interpolation=preprocessing["interpolation"])
    )


def check_one_size(data: ImageSet, where: object) -> None:
    """Raise DataError if images of different sizes were found."""
    if data.is_mixed:
        raise DataError("the images differ in size", where=where, hint=MIXED_HINT)


def bad_files(*sets: ImageSet) -> tuple[str, ...]:
    """Return a note with the images that --on-bad skip left out, or nothing."""
    bad = [name for data in sets for name in getattr(data, "bad", ())]
    if not bad:
        return ()
    return (f"skipped {len(bad)} unreadable images: {', '.join(map(str, bad[:5]))}{', ...' if len(bad) > 5 else ''}",)


def check_batch(data: ImageSet, spec: str, batch_size: int) -> None:
    """Raise DataError if an epoch of the set does not fill one batch."""
    if len(data.slots) < batch_size:
        hint = f"use --batch-size {len(data.slots)} or less"
        raise DataError(f"{len(data.slots)} images are fewer than a batch of {batch_size}", where=spec, hint=hint)


def check_encoder(spec: str) -> None:
    """Check the name or file of an encoder, as far as possible without torch. Errors: MissingInputError, DataError."""
    from corecli.base import checkpoint

    path = Path(spec)
    if spec.startswith("timm:"):
        return
    if not path.exists():
        raise missing(path)
    if checkpoint.find_header(path) is not None:
        checkpoint.require_header(path, kind="encoder")


def check_header(path: Path, kind: str) -> dict[str, Any]:
    """Return the header of a corecli file of `kind`. Errors: MissingInputError, DataError."""
    from corecli.base import checkpoint

    return checkpoint.require_header(path, kind=kind)


def check_generator(path: Path) -> dict[str, Any]:
    """Return the header of a generator's file, or of its folder in diffusers' layout.

    Errors: MissingInputError, DataError.
    """
    from corecli.base import checkpoint
    from corecli.nets.weights import pipelines

    if pipelines.is_own(path):
        header = checkpoint.require_header(path / pipelines.OWN, kind=pipelines.OWN_KIND)["generator"]
    else:
        header = check_header(path, "generator")
    return check(header, SAMPLED, where=path)


def check_file(out: Path | None) -> None:
    """Raise CannotCreateError if the path of a file to write is a directory."""
    if out is not None and out.is_dir():
        raise CannotCreateError("is a directory", where=out, hint="choose the path of a file")


def check_replaceable(out: Path | None, kinds: tuple[str, ...], *, force: bool) -> None:
    """Raise CannotCreateError if `out` would replace a file of a kind that is not among `kinds`."""
    check_file(out)
    if out is not None and not force and out.exists() and sniff(out) not in kinds:
        raise CannotCreateError("exists and is a file of another kind", where=out, hint="--force replaces it")


def load_table(path: Path | None) -> FeatureTable | None:
    """Load a feature table; None for None. Errors: MissingInputError, DataError."""
    from corecli.data.features import load_features

    return None if path is None else load_features(path)


def num_workers(text: str) -> Workers:
    """Return --workers as a number, or "auto". Errors: UsageError."""
    if text == "auto":
        return "auto"
    if re.fullmatch("[0-9]{1,9}", text) is None:
        raise UsageError(f"--workers {text!r} is neither a number nor auto")
    if int(text) > _MOST_WORKERS:
        raise UsageError(f"--workers {text} is above {_MOST_WORKERS}")
    return int(text)


def shard(text: str) -> tuple[int, int]:
    """Return --shard I/N as (I, N) with 0 <= I < N. Errors: UsageError."""
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UsageError(f"--shard {text!r} is not I/N with I below N", hint="the shards of 16 are 0/16 to 15/16")
    return int(found[1]), int(found[2])
