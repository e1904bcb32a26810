"""SimCLR (Chen et al. 2020): two views of an image attract, all other images of the global batch repel."""

from __future__ import annotations

from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl._losses import nt_xent
from corecli.ssl._method import Batch, Needs, Options, embed, resolve

DEFAULTS = Options(temperature=0.2)  # CORE, Table 9; solo-learn


def build(encoder: Encoder, *, options: Options) -> SimCLR:
    """SimCLR on an encoder, whose projector it trains. Errors: UsageError unless the temperature is above 0."""
    temperature = resolve(options, DEFAULTS, method="simclr").temperature
    if temperature is None or temperature <= 0:
        raise UsageError(f"the temperature must be above 0, not {temperature}")
    return SimCLR(encoder, temperature=temperature)


class SimCLR(nn.Module):
    """NT-Xent of the projections of two views."""

    num_views = 2
    needs: Needs = "nothing"

    def __init__(self, encoder: Encoder, *, temperature: float) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature

    def loss(self, batch: Batch) -> Tensor:
        _, z = embed(self.encoder, batch.views)
        return nt_xent(z[0], z[1], temperature=self.temperature)

    def after_step(self, step: int, total_steps: int) -> None: ...
