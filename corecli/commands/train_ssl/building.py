"""The encoder that `train-ssl` trains, and the images as it sees them after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corecli.base.errors import DataError
from corecli.commands.train_ssl.options import Config
from corecli.commands.train_ssl.stages import TrainStage, cuts_when_read, eval_fit, projector_spec

if TYPE_CHECKING:
    from corecli.data.imageset import ImageSet
    from corecli.nets.encoder import Encoder

Stages = tuple[TrainStage, ...]


def published_projector(config: Config, stages: Stages) -> Any:
    """Return the projector of the last method that has one, with the sizes given. Errors: UsageError."""
    sizes = {"hidden": config.projector_hidden, "dim": config.projector_dim, "norm": config.projector_norm}
    return projector_spec([stage.method for stage in stages], config.backbone, sizes)


def start_encoder(config: Config, data: ImageSet, stages: Stages) -> Encoder:
    """Return the encoder of --init, or a new one with weights drawn from the seed. Errors: DataError, UsageError."""
    from corecli.nets.encoder import build_encoder, load_encoder

    projector, side = published_projector(config, stages), image_px(config, data)
    fit = eval_fit(view_px=config.view_px, eval_resize=config.eval_resize)
    if config.init is not None:
        encoder = load_encoder(config.init)
        encoder.set_image_size(side)
        if encoder.projector is None:
            encoder.set_projector(projector, seed=config.seed)
    else:
        encoder = build_encoder(
            config.backbone,
            image_size=side,
            stem=None if config.stem == "auto" else config.stem,
            projector_dim=None,
            drop_path=config.drop_path,
            seed=config.seed,
        )
        encoder.set_projector(projector, seed=config.seed)
    encoder.set_resize(fit.resize if fit else None)
    return encoder


def image_px(config: Config, data: ImageSet) -> int:
    """Return the side of the images that the encoder sees. Errors: DataError; UsageError for --eval-resize."""
    eval_fit(view_px=config.view_px, eval_resize=config.eval_resize)
    if config.view_px is not None:
        return config.view_px
    (height, width), hint = data.image_size, "--view-px N crops views of N x N from images of any size"
    if data.is_mixed:
        raise DataError("the images differ in size", where=config.data, hint=hint)
    if height != width and config.init is None:
        raise DataError(f"images of {width} x {height} are not square", where=config.data, hint=hint)
    return height


def as_evaluated(config: Config, data: ImageSet) -> ImageSet:
    """Return the images as the encoder sees them after training, for the measures of the log."""
    fit = eval_fit(view_px=config.view_px, eval_resize=config.eval_resize)
    return data.fitted(fit) if fit and cuts_when_read(data, config.view_px) else data
