"""Features of an image set: one pass over the images, divided among the processes, with a cache.

The name of a cached file is a hash of the set (keys and file sizes), the network and the preprocessing. The file also
holds a hash of all pixels. Before it is used, the images are read again and compared with that hash. This is much
cheaper than the network and detects every edit of an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli import __version__
from corecli.base import checkpoint
from corecli.base.claim import remove_leftovers
from corecli.base.errors import CorecliError
from corecli.commands.fid.sides import Side
from corecli.commands.parts.inputs import bad_files, fitted

if TYPE_CHECKING:
    import torch

    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.nets.extractor import Extractor

KIND = "measured images"
_HASH_BYTES = 16

Tensors = dict[str, "torch.Tensor"]
Measure = Callable[["torch.Tensor"], Tensors]


def measure_side(data: ImageSet, extractor: Extractor, world: World, *, spec: str, **options: Any) -> Side:
    """Return the side of an image set that `spec` names; options: as those of `measure_images`."""
    import torch

    seen = fitted(data, extractor.seen, spec)
    found, notes = measure_images(seen, extractor, world, label=spec, **options)
    return Side(
        spec=spec,
        metric=extractor.metric,
        space=extractor.space,
        fingerprint=extractor.fingerprint,
        groups=np.array(data.rows.group_ids),
        labels=torch.from_numpy(np.array(data.rows.labels)),
        class_names=data.class_names,
        notes=(*bad_files(data), *notes),
        features=found.get("features"),
        spatial=found.get("spatial"),
        logits=found.get("logits"),
    )


def measure_images(
    data: ImageSet,
    extractor: Extractor,
    world: World,
    *,
    names: tuple[str, ...],
    cache: Path | None,
    batch_size: int,
    workers: Any,
    label: str,
    quiet: bool,
) -> tuple[Tensors, tuple[str, ...]]:
    """Return the extractor's tensors with these names for all images, on rank 0 ({} on other ranks), and notes.

    A cache stores all tensors of the extractor, so that later runs can compute other metrics.
    Errors: DataError naming a bad image.
    """

    def visit(measure: Measure, widths: dict[str, int], what: str) -> Tensors:
        from corecli.engine.progress import Progress

        with Progress(f"{what} {label}", total=len(data.rows), shown=world.is_main and not quiet) as progress:
            return _visit(data, measure, widths, world, batch_size, workers, progress.advance)

    if cache is None:
        widths = {name: width for name, width in extractor.dims.items() if name in names}
        return visit(lambda images: _only(extractor.extract(images), widths), widths, "fid"), ()
    path = cache / f"{_cache_name(data, extractor)}.safetensors"
    header = _header_of(path) if world.is_main else None
    hashes = {"hashes": _HASH_BYTES}
    if _agree(header is not None, world):
        pixels = visit(lambda images: {"hashes": _hashes(images)}, hashes, "compare")
        found = _load(path) if header is not None and header.get("pixels") == _digest(pixels) else None
        if _agree(found is not None, world):
            return _only(found or {}, names), ()
    widths = {**extractor.dims, **hashes}
    found = visit(lambda images: {**extractor.extract(images), "hashes": _hashes(images)}, widths, "fid")
    notes = ()
    if world.is_main:
        digest = _digest(found)
        del found["hashes"]
        notes = _keep(path, found, space=extractor.space, network=extractor.fingerprint, pixels=digest)
    return _only(found, names), notes


def _visit(
    data: ImageSet,
    measure: Measure,
    widths: dict[str, int],
    world: World,
    batch_size: int,
    workers: Any,
    advance: Callable[..., None],
) -> Tensors:
    """Return what `measure` finds in all images, on rank 0. Ranks take batches in turn and send each to rank 0."""
    import torch

    from corecli.data.loader import read_batches
    from corecli.data.order import sequential_batches
    from corecli.engine.dist import sum_over_ranks

    num, stride = len(data.rows), batch_size * world.size
    dtypes = {name: torch.uint8 if name == "hashes" else torch.float32 for name in widths}
    found = {name: torch.empty(num, width, dtype=dtypes[name]) for name, width in widths.items() if world.is_main}
    batches = sequential_batches(num, batch_size, rank=world.rank, world_size=world.size)
    read = read_batches(data, batches, device=world.device, workers=workers)
    for start in range(0, num, stride):
        stop = min(start + stride, num)
        images, rows = next(read, (None, np.empty(0, dtype=np.int64)))
        seen = measure(images) if images is not None else {}
        for name, width in widths.items():
            part = seen.get(name)
            if world.size > 1:
                whole = torch.zeros(stop - start, width, dtype=dtypes[name], device=world.device)
                if part is not None:
                    whole[torch.from_numpy(rows - start)] = part.to(world.device)
                part = sum_over_ranks(whole)
            if world.is_main and part is not None:
                found[name][start:stop] = part.cpu()
        advance(stop - start, images=stop - start)
    return found


def _cache_name(data: ImageSet, extractor: Extractor) -> str:
    parts = [data.fingerprint, extractor.fingerprint, extractor.space, extractor.preprocessing, __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _header_of(path: Path) -> dict[str, Any] | None:
    try:
        return checkpoint.require_header(path, kind=KIND)
    except CorecliError:
        return None


def _load(path: Path) -> Tensors | None:
    try:
        return checkpoint.load(path, kind=KIND)[0]
    except CorecliError:  # damaged, or deleted by another process: computed again
        return None


def _keep(path: Path, tensors: Tensors, **facts: str) -> tuple[str, ...]:
    """Write a file of the cache; return a note if that fails."""
    remove_leftovers(path.parent, [path.name])
    try:
        checkpoint.save(path, tensors, kind=KIND, **facts)
    except (CorecliError, OSError) as error:
        reason = error.reason if isinstance(error, CorecliError) else error.strerror
        return (f"{path.parent}: features are not cached: {reason}",)
    return ()


def _hashes(images: torch.Tensor) -> torch.Tensor:
    """Return hashes of the size and pixels of each image, uint8 [B, 16]."""
    import torch

    rows = images.cpu().numpy()
    shape = repr(rows.shape[1:]).encode()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=_HASH_BYTES, key=shape).digest() for row in rows)
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, _HASH_BYTES).copy())


def _digest(found: Tensors) -> str:
    return hashlib.sha256(found["hashes"].numpy().tobytes()).hexdigest()


def _only(found: Tensors, names: Any) -> Tensors:
    return {name: found[name] for name in names if name in found}


def _agree(decision: bool, world: World) -> bool:
    """Return the decision of rank 0."""
    from corecli.engine.dist import any_rank

    return bool(any_rank(int(decision and world.is_main), world))
