"""Pseudo-supervised learning (CORE, Eq. 7): the projection of an image is pulled to the feature it was made from."""

from __future__ import annotations

from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl._losses import cosine_distance
from corecli.ssl._method import Batch, Needs, Options, embed, resolve

DEFAULTS = Options(num_views=2)  # Eq. 7; with one view, half the cost, "a slight decrease in performance"


def build(encoder: Encoder, *, options: Options) -> PSL:
    """PSL on an encoder whose output, the projector's where there is one, has the targets' dimension.

    Errors: UsageError when it has not, or there are no targets.
    """
    options = resolve(options, DEFAULTS, method="psl")
    if options.num_views not in (1, 2):
        raise UsageError(f"psl takes 1 or 2 views, not {options.num_views}")
    if options.target_dim is None:
        raise UsageError("psl needs a feature table", hint="give --features")
    dim = encoder.projector_dim or encoder.num_features
    if dim != options.target_dim:
        hint = f"set the projector's dimension to {options.target_dim}, or extract the other layer"
        raise UsageError(f"the features have {options.target_dim} dimensions, the encoder's output {dim}", hint=hint)
    return PSL(encoder, num_views=options.num_views)


class PSL(nn.Module):
    """The mean over views of the cosine distance between projection and target."""

    needs: Needs = "features"

    def __init__(self, encoder: Encoder, *, num_views: int) -> None:
        super().__init__()
        self.encoder, self.num_views = encoder, num_views

    def loss(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        _, z = embed(self.encoder, batch.views)
        return cosine_distance(z, batch.targets.expand_as(z))

    def after_step(self, step: int, total_steps: int) -> None: ...
