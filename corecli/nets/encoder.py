"""An encoder: a backbone, an optional projector, and the preprocessing of its input.

images uint8 [B, 3, H, W] --encode--> features float32 [B, D]       resized, in evaluation mode, without gradient
views float [B, 3, H, W] in [0, 1] --forward--> h [B, D], z [B, P]   normalized inside, for training
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base import checkpoint
from corecli.base.errors import CorecliError, DataError, UsageError, first_line, read_from
from corecli.nets import backbones, vit
from corecli.nets.initial import seeded, shapes_of
from corecli.nets.projector import Norm, ProjectorSpec, build_projector
from corecli.nets.weights import encoders
from corecli.nets.weights.encoders.names import check_weights, strip_prefix

Layer = Literal["backbone", "projector"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's and timm's usual constants
_IMAGENET_PX, _IMAGENET_RESIZE = 224, 8 / 7  # photographs are resized to 256 px before the center crop
_BARE = "backbone"


class Preprocessing(TypedDict):
    """Normalization and resizing of uint8 images before the backbone; `image_size` None does not resize.

    Without `resize`, the shorter side of an image is resized to `image_size` and the center cropped. With it, larger
    images are resized to `resize` before the crop, as published for photographs.
    """

    mean: list[float]
    std: list[float]
    image_size: int | None
    interpolation: str
    resize: NotRequired[int]


class Spec(TypedDict):
    """Everything that is needed to build an encoder again, stored as JSON in the header of its file."""

    backbone: str
    stem: str | None
    projector: ProjectorSpec | None
    preprocessing: Preprocessing
    drop_path: NotRequired[float]  # left out if 0


class Encoder(nn.Module):
    """The network of a `Spec` with random weights. Errors: UsageError, UnavailableError."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        preprocessing = spec["preprocessing"]
        stem = backbones.check_stem(spec["backbone"], spec["stem"])
        self.backbone, self.num_features = backbones.build_backbone(
            spec["backbone"],
            stem=stem,
            image_size=preprocessing["image_size"],
            drop_path=spec.get("drop_path", 0.0),
        )
        self._pooling: tuple[vit.Pool, int] | None = None
        self.projector = build_projector(self.num_features, spec["projector"]) if spec["projector"] else None
        self.projector_dim = spec["projector"]["dim"] if spec["projector"] else None
        self.register_buffer("mean", torch.tensor(preprocessing["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing["std"]).view(1, 3, 1, 1), persistent=False)

    @property
    def fingerprint(self) -> str:
        """The hash of the current weights, equal to the fingerprint in the header of a file from `save_encoder`."""
        return checkpoint.fingerprint(self.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return backbone features h [B, D] and projections z [B, P] of x, [B, 3, H, W] in [0, 1].

        Without a projector, z is h. Errors: UsageError if H or W is no multiple of a ViT's patch.
        """
        h = self._features(self._normalized(x))
        return h, h if self.projector is None else self.projector(h)

    def encode(self, images: Tensor, layer: Layer = "backbone", *, batch_size: int | None = None) -> Tensor:
        """Return features float32 [B, D] of images, uint8 [B, 3, H, W], without gradient.

        Images are moved to the encoder's device. batch_size: images per forward pass, default all.
        Errors: UsageError if `layer` is projector and there is none.
        """
        if layer == "projector" and self.projector is None:
            raise UsageError("the encoder has no projector", hint="use the backbone's features")
        head = self.projector if layer == "projector" and self.projector is not None else nn.Identity()
        # No inference_mode: its tensors cannot enter a later graph, and online probes train on these features.
        with _evaluating(self), torch.no_grad():
            batches = (self._resized(b.to(self.mean.device)) for b in images.split(batch_size or max(1, len(images))))
            return torch.cat([head(self._features(self._normalized(x))).float() for x in batches])

    def set_projector(self, spec: ProjectorSpec | None, *, seed: int = 0) -> None:
        """Replace the projector by a new one with random weights by seed; None removes it. Errors: UsageError."""
        projector = None
        if spec is not None:
            with seeded(seed, "projector"):
                projector = build_projector(self.num_features, spec).to(self.mean.device).train(self.training)
        self.projector, self.projector_dim = projector, spec["dim"] if spec else None
        self.spec = {**self.spec, "projector": spec}

    def set_image_size(self, image_size: int) -> None:
        """Set the size that images are resized to before encoding, and fit a ViT's positions to it.

        Errors: UsageError if the backbone takes one image size only, or the size is no multiple of its patch.
        """
        preprocessing = self.spec["preprocessing"]
        if image_size != preprocessing["image_size"]:
            backbones.set_image_size(self.backbone, self.spec["backbone"], image_size)
            self.spec = {**self.spec, "preprocessing": {**preprocessing, "image_size": image_size}}

    def set_resize(self, resize: int | None) -> None:
        """Set the side to which larger images are resized before the center crop; None: the side of the crop."""
        preprocessing = self.spec["preprocessing"].copy()
        preprocessing.pop("resize", None)
        if resize is not None:
            preprocessing["resize"] = resize
        self.spec = {**self.spec, "preprocessing": preprocessing}

    def set_pooling(self, pool: vit.Pool, num_blocks: int) -> None:
        """Return features of the last blocks of a ViT, as `vit.pooled` gives them, in place of its output.

        This is not saved with the encoder. Errors: UsageError for other networks, or if there is a projector.
        """
        if self.projector is not None:
            raise UsageError("pooling does not work with a projector", hint="remove the projector")
        vit.check_pooling(self.backbone, pool, num_blocks)
        self._pooling = (pool, num_blocks)
        parts = {"cls": num_blocks, "mean": num_blocks, "cls+mean": num_blocks + 1}[pool]
        self.num_features *= parts

    def _features(self, x: Tensor) -> Tensor:
        return self.backbone(x) if self._pooling is None else vit.pooled(self.backbone, x, *self._pooling)

    def _normalized(self, x: Tensor) -> Tensor:
        backbones.check_size(self.backbone, x.shape[-2], x.shape[-1])
        return (x - self.mean) / self.std

    def _resized(self, images: Tensor) -> Tensor:
        """Resize the shorter side of uint8 [B, 3, H, W] and crop the center: float [B, 3, S, S] in [0, 1]."""
        assert images.dtype == torch.uint8
        x, size = images.float() / 255, self.spec["preprocessing"]["image_size"]
        height, width = x.shape[-2:]
        if size is None or height == width == size:
            return x
        side = self.spec["preprocessing"].get("resize", size) if min(height, width) > size else size
        scale = side / min(height, width)
        shape = (max(side, round(height * scale)), max(side, round(width * scale)))
        x = F.interpolate(x, shape, mode=self.spec["preprocessing"]["interpolation"], antialias=True).clamp_(0, 1)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        return x[:, :, top : top + size, left : left + size]


def build_encoder(
    backbone: str,
    *,
    image_size: int | None,
    stem: str | None = None,
    projector_hidden: int = 2048,
    projector_dim: int | None = 128,
    projector_norm: Norm = "none",
    drop_path: float = 0.0,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    interpolation: str = "bicubic",
    seed: int = 0,
) -> Encoder:
    """Return an encoder with random weights by seed.

    image_size: size of training, to which images are resized for evaluation (None: not resized); it also chooses the
    stem, if `stem` is None. The projector is CORE's (Table 9); projector_dim None leaves it out. drop_path: rate of
    stochastic depth of a ViT's last block. Errors: UsageError, UnavailableError.
    """
    projector: ProjectorSpec | None = None
    if projector_dim is not None:
        projector = {"hidden": projector_hidden, "dim": projector_dim, "norm": projector_norm}
    if image_size is None and backbone.startswith(backbones.TIMM):
        image_size = backbones.timm_preprocessing(backbone.removeprefix(backbones.TIMM), None)["image_size"]
    elif image_size is None and backbone.startswith(vit.PREFIX):
        image_size = vit.DEFAULT_PX
    preprocessing: Preprocessing = {
        "mean": list(mean),
        "std": list(std),
        "image_size": image_size,
        "interpolation": interpolation,
    }
    stem = stem or backbones.choose_stem(backbone, image_size)
    spec: Spec = {"backbone": backbone, "stem": stem, "projector": projector, "preprocessing": preprocessing}
    if drop_path:
        spec["drop_path"] = drop_path
    with seeded(seed, "encoder"):
        return Encoder(spec)


def save_encoder(path: Path, encoder: Encoder, **provenance: Any) -> checkpoint.Header:
    """Write an encoder with its spec and the given JSON fields; return the header.

    Errors: StorageError, CannotCreateError.
    """
    return checkpoint.save(Path(path), encoder.state_dict(), kind="encoder", spec=encoder.spec, **provenance)


def save_backbone(path: Path, encoder: Encoder, **provenance: Any) -> checkpoint.Header:
    """Write only the backbone, under the names of torchvision or timm, with the given JSON fields; return the header.

    The weights load with `strict=True` into `timm.create_model(name, num_classes=0)`, and into torchvision's model
    after `model.fc = nn.Identity()` (and, for the cifar stem, its 3x3 `conv1` and no `maxpool`); `load_encoder` reads
    the file too. Errors: StorageError, CannotCreateError.
    """
    spec, tensors = {**encoder.spec, "projector": None}, encoder.backbone.state_dict()
    return checkpoint.save(path, tensors, kind="encoder", names=_BARE, spec=spec, **provenance)


def load_encoder(path_or_name: str | Path) -> Encoder:
    """Read an encoder file, a checkpoint of another tool (`nets.weights.encoders`), `timm:NAME` or `timm:NAME:FILE`.

    The encoder of another tool has no projector. It normalizes by ImageNet's mean and deviation, and resizes to the
    size of a ViT's position embeddings, or to 224 px if a ResNet has ImageNet's stem. Errors: MissingInputError;
    DataError for a file of another kind or unknown weights; UnavailableError; UsageError.
    """
    if str(path_or_name).startswith(backbones.TIMM):
        return _load_timm(str(path_or_name).removeprefix(backbones.TIMM))
    path = Path(path_or_name)
    if checkpoint.find_header(path) is not None:
        tensors, header = checkpoint.load(path, kind="encoder")
        if header.get("names") == _BARE:
            tensors = {f"backbone.{name}": t for name, t in tensors.items()}
        return _filled(header["spec"], tensors, where=path)
    found = encoders.recognize(checkpoint.load_tensors(path), where=path)
    spec: Spec = {
        "backbone": found.backbone,
        "stem": found.stem,
        "projector": None,
        "preprocessing": _imagenet_preprocessing(found.image_size),
    }
    return _filled(spec, {f"backbone.{name}": t for name, t in found.tensors.items()}, where=path)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _load_timm(name_and_file: str) -> Encoder:
    name, _, file = name_and_file.partition(":")
    preprocessing = {**_imagenet_preprocessing(None), **backbones.timm_preprocessing(name, None)}
    spec: Spec = {
        "backbone": backbones.TIMM + name,
        "stem": None,
        "projector": None,
        "preprocessing": preprocessing,  # pyright: ignore[reportAssignmentType]
    }
    if not file:
        net, _ = backbones.build_timm(name, image_size=None, pretrained=True)
        weights = net.state_dict()
    else:
        net, _ = backbones.build_timm(name, image_size=None, pretrained=False)
        weights = strip_prefix(checkpoint.load_tensors(Path(file)), net.state_dict(), where=file)
    return _filled(spec, {f"backbone.{key}": t for key, t in weights.items()}, where=file or name)


def _filled(spec: Spec, tensors: dict[str, Tensor], *, where: object) -> Encoder:
    """Return the encoder of `spec` with these weights. Errors: DataError that names weights that do not match."""
    try:
        with read_from(where, "the encoder cannot be built"):
            shapes = shapes_of(lambda: Encoder(spec))
    except CorecliError:
        raise
    except Exception as error:  # libraries raise many kinds
        raise DataError(f"its header does not describe an encoder: {first_line(error)}", where=where) from error
    check_weights(tensors, shapes, where=where)
    with seeded(0):
        encoder = Encoder(spec)
    encoder.load_state_dict(tensors)
    return encoder


def _imagenet_preprocessing(image_size: int | None) -> Preprocessing:
    found: Preprocessing = {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "image_size": image_size,
        "interpolation": "bicubic",
    }
    if image_size is not None:
        found["resize"] = round(image_size * _IMAGENET_RESIZE)
    return found
