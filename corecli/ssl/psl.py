"""Pseudo-supervised learning (CORE, Eq. 7): the projection of an image is pulled to the feature it was made from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.losses import cosine_distance
from corecli.ssl.parts.method import Batch, Method, Needs, Task, check_views, embed

VIEWS, AUGMENT = "2g", "strong"  # Eq. 7; with one view, half the cost, "a slight decrease in performance"
PROJECTOR = {"hidden": 2048, "dim": 128, "norm": "none"}  # as simclr's, whose features are its targets


@dataclass(frozen=True, kw_only=True)
class Options:
    """psl has no options of its own."""


def build(encoder: Encoder, *, options: Options, task: Task) -> PSL:
    """PSL on an encoder whose output, the projector's where there is one, has the targets' dimension.

    Errors: UsageError when it has not, or there are no targets.
    """
    check_views(task, method="psl", views=(1, 2))
    if task.target_dim is None:
        raise UsageError("psl needs a feature table", hint="give --features")
    dim = encoder.projector_dim or encoder.num_features
    if dim != task.target_dim:
        hint = f"give --projector-dim {task.target_dim}, or extract the other layer"
        raise UsageError(f"the features have {task.target_dim} dimensions, the encoder's output {dim}", hint=hint)
    return PSL(encoder)


class PSL(Method):
    """The mean over views of the cosine distance between projection and target."""

    needs: Needs = "features"

    def loss(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        _, z = embed(self.encoder, batch.views)
        return cosine_distance(z, batch.targets.expand_as(z))
