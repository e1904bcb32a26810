"""Layers whose weights are divided by their largest singular value (spectral normalization, Miyato et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6  # IC-GAN's


class SpectralConv2d(nn.Conv2d):
    """A convolution that keeps the size of its input, with orthogonal initial weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        _initialize(self)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, normalized(self), self.bias)


class SpectralLinear(nn.Linear):
    """A linear layer with orthogonal initial weights."""

    def __init__(self, features_in: int, features_out: int, *, bias: bool = True) -> None:
        super().__init__(features_in, features_out, bias=bias)
        _initialize(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, normalized(self), self.bias)


class SpectralEmbedding(nn.Embedding):
    """An embedding table with orthogonal initial weights."""

    def __init__(self, num: int, width: int) -> None:
        super().__init__(num, width)
        _initialize(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, normalized(self))


def normalized(layer: nn.Module) -> Tensor:
    """Return the layer's weight divided by its largest singular value, from one power iteration of the vector `u`.

    In training the result is stored in `u`, so that the estimate follows the weight; evaluation does not change `u`.
    Computed in float32, even under autocast. The gradient treats the singular vectors as constants (Eq. 11).
    """
    weight, u = layer.weight, layer.u
    assert isinstance(weight, Tensor)
    assert isinstance(u, Tensor)
    with torch.autocast(weight.device.type, enabled=False):
        matrix = weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(u @ matrix, dim=0, eps=_EPS)
            new = F.normalize(matrix @ v, dim=0, eps=_EPS)
            if layer.training:
                u.copy_(new)
        return weight / (new @ (matrix @ v))


def _initialize(layer: nn.Conv2d | nn.Linear | nn.Embedding) -> None:
    """Make the weight orthogonal (all singular values are 1), and draw the first vector of the power iteration."""
    nn.init.orthogonal_(layer.weight)
    layer.register_buffer("u", F.normalize(torch.randn(layer.weight.shape[0]), dim=0))
