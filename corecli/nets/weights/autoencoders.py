"""Load first stages from folders of diffusers, from a hub, or from files that `train-gen` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from corecli.base import checkpoint
from corecli.base.checkpoint import Tensors
from corecli.base.documents import read_json
from corecli.base.errors import DataError, about
from corecli.base.schemas import CONFIG as CONFIG_SCHEMA
from corecli.base.silence import silence
from corecli.base.untrusted import reason_of
from corecli.nets.autoencoder import KINDS, FirstStage, Spec, diffusers_class, spec_of
from corecli.nets.initial import shapes_of
from corecli.nets.weights.encoders.names import check_weights
from corecli.nets.weights.hub import find_folder
from corecli.nets.weights.pipelines import check_export

CONFIG = "config.json"
_PARTS = ("vae", "vqvae", "vqmodel", "movq")  # where pipelines of diffusers keep theirs
_PATTERNS = [f"{folder}{file}" for folder in ("", "vae/", "vqvae/") for file in (CONFIG, "*.safetensors", "*.bin")]
_PREFIX = "first_stage."


def load_first_stage(place: str | Path, *, image_size: int) -> FirstStage:
    """Load a first stage for images of a size.

    place: a folder that diffusers wrote, the folder of a pipeline, the id of such a repository, or a file of
    `train-gen` that holds an autoencoder or a latent generator.
    Errors: MissingInputError; DataError for a file or folder of another kind, or with weights that do not fit;
    UnavailableError for a repository that cannot be downloaded; UsageError for a size that does not fit.
    """
    spec, tensors = read_first_stage(place)
    with about(place):
        shapes = shapes_of(lambda: FirstStage(spec, image_size=image_size))
        scale = {name: torch.empty(shapes[name]) for name in ("shift", "scale")}  # not in a folder of diffusers
        check_weights({**scale, **tensors}, shapes, where=place)
        stage = FirstStage(spec, image_size=image_size)
    stage.load_state_dict({**stage.state_dict(), **tensors})
    return stage


def read_first_stage(place: str | Path) -> tuple[Spec, Tensors]:
    """Return (spec, weights) of a `FirstStage` of any size; without its scale if that is the published one.

    Errors: as `load_first_stage`.
    """
    if Path(place).is_file():
        return _from_file(Path(place))
    autoencoder = read_folder(find_folder(place, patterns=_PATTERNS))
    return spec_of(autoencoder), {f"autoencoder.{name}": t for name, t in autoencoder.state_dict().items()}


def read_folder(folder: Path) -> Any:
    """Load the autoencoder in a folder of diffusers or of a pipeline. Errors: DataError, also for a damaged export."""
    check_export(folder)
    places = [folder, *(folder / part for part in _PARTS)]
    found = next((p for p in places if _class_of(p) in KINDS), None)
    if found is None:
        hint = f"a first stage is a folder with the {CONFIG} of an {', '.join(KINDS)}"
        raise DataError(f"holds no first stage, but {_class_of(folder) or 'something else'}", where=folder, hint=hint)
    try:
        with silence("diffusers"):
            autoencoder, loaded = diffusers_class(_class_of(found)).from_pretrained(
                found, local_files_only=True, trust_remote_code=False, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:  # of many kinds: safetensors', torch's, the system's
        raise DataError(f"not a readable first stage: {reason_of(error)}", where=found) from error
    if loaded["missing_keys"]:
        raise DataError(f"weights are missing, such as {sorted(loaded['missing_keys'])[0]!r}", where=found)
    return autoencoder


def _class_of(folder: Path) -> str:
    path = folder / CONFIG
    return str(read_json(path, CONFIG_SCHEMA, any_integer=True).get("_class_name", "")) if path.is_file() else ""


def _from_file(path: Path) -> tuple[Spec, Tensors]:
    tensors, header = checkpoint.load(path, kind="generator")
    spec: Spec | None = header["generator"].get("first_stage")
    own = {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)}
    if spec is None or not own:
        raise DataError(f"a generator of {header['arch']} without a first stage", where=path)
    return spec, own
