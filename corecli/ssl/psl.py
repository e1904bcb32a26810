"""Pseudo-supervised learning: predict the feature row that an image was generated from (CORE, Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.losses import cosine_distance
from corecli.ssl.parts.method import Batch, Context, Method, Needs, check_views, embed

VIEWS, AUGMENT = "2g", "strong"  # Eq. 7; one view costs half, with "a slight decrease in performance"
PROJECTOR = {"hidden": 2048, "dim": 128, "norm": "none"}  # as simclr's, whose features are the targets


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of psl: none."""


def build(encoder: Encoder, *, options: Options, context: Context) -> PSL:
    """Build PSL; the output of the projector, or of the backbone without one, has the dimension of the targets.

    Errors: UsageError when the dimensions differ or there are no targets.
    """
    check_views(context, method="psl", views=(1, 2))
    if context.target_dim is None:
        raise UsageError("psl needs a feature table", hint="give --features")
    dim = encoder.projector_dim or encoder.num_features
    if dim != context.target_dim:
        hint = f"give --projector-dim {context.target_dim}, or extract the other layer"
        raise UsageError(f"the features have {context.target_dim} dimensions, the encoder's output {dim}", hint=hint)
    return PSL(encoder)


class PSL(Method):
    """The cosine distance between projection and target, averaged over views."""

    needs: Needs = "features"

    def loss(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        _, z = embed(self.encoder, batch.views)
        return cosine_distance(z, batch.targets.expand_as(z))
