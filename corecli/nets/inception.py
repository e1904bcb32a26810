"""The Inception-v3 network of the Frechet Inception distance: the graph of the 2015 TensorFlow release, 1008 classes.

It differs from torchvision's Inception-v3: average pooling ignores the padding, the last block uses max pooling, and
there is no auxiliary head. Parameter names are those of torchvision and of the public weight files.
Architecture: Szegedy et al. 2016, Table 1 and Fig. 5 to 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.nets.resize import to_inception_input

NUM_CLASSES = 1008
DIMS = {"pool": 2048, "logits": NUM_CLASSES, "spatial": 2023}

_BN_EPSILON = 1e-3
_SPATIAL_CHANNELS = 7


class Conv(NamedTuple):
    """A convolution with BatchNorm and ReLU: name, output channels, kernel (height, width) and stride."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Step = Conv | tuple[Conv, Conv]  # the two of a pair read the same input and are concatenated
Pool = Callable[[Tensor], Tensor]


class Branch(NamedTuple):
    """A chain of convolutions after an optional pooling."""

    steps: tuple[Step, ...]
    pool: Pool | None = None


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _chain(name: str, *steps: tuple[int, tuple[int, int]], stride: int = 1) -> Branch:
    """Return convolutions `name_1`, `name_2`, ... with (channels, kernel); `stride` is that of the last one."""
    convs = [Conv(f"{name}_{i}", *step) for i, step in enumerate(steps, start=1)]
    return Branch((*convs[:-1], convs[-1]._replace(stride=stride)))


def _single(name: str, channels: int, *, pool: Pool | None = None) -> Branch:
    return Branch((Conv(name, channels),), pool)


_1X1, _3X3, _5X5, _1X7, _7X1, _1X3, _3X1 = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


def _at_35_px(pooled: int) -> tuple[Branch, ...]:
    return (
        _single("branch1x1", 64),
        _chain("branch5x5", (48, _1X1), (64, _5X5)),
        _chain("branch3x3dbl", (64, _1X1), (96, _3X3), (96, _3X3)),
        _single("branch_pool", pooled, pool=_average),
    )


def _to_17_px() -> tuple[Branch, ...]:
    return (
        Branch((Conv("branch3x3", 384, _3X3, stride=2),)),
        _chain("branch3x3dbl", (64, _1X1), (96, _3X3), (96, _3X3), stride=2),
        Branch((), _shrink),
    )


def _at_17_px(width: int) -> tuple[Branch, ...]:
    return (
        _single("branch1x1", 192),
        _chain("branch7x7", (width, _1X1), (width, _1X7), (192, _7X1)),
        _chain("branch7x7dbl", (width, _1X1), (width, _7X1), (width, _1X7), (width, _7X1), (192, _1X7)),
        _single("branch_pool", 192, pool=_average),
    )


def _to_8_px() -> tuple[Branch, ...]:
    return (
        _chain("branch3x3", (192, _1X1), (320, _3X3), stride=2),
        _chain("branch7x7x3", (192, _1X1), (192, _1X7), (192, _7X1), (192, _3X3), stride=2),
        Branch((), _shrink),
    )


def _at_8_px(pool: Pool) -> tuple[Branch, ...]:
    def fork(name: str) -> Step:
        return Conv(f"{name}a", 384, _1X3), Conv(f"{name}b", 384, _3X1)

    return (
        _single("branch1x1", 320),
        Branch((Conv("branch3x3_1", 384), fork("branch3x3_2"))),
        Branch((Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, _3X3), fork("branch3x3dbl_3"))),
        _single("branch_pool", 192, pool=pool),
    )


BLOCKS: dict[str, tuple[int, tuple[Branch, ...]]] = {  # name: (input channels, branches)
    "Mixed_5b": (192, _at_35_px(32)),
    "Mixed_5c": (256, _at_35_px(64)),
    "Mixed_5d": (288, _at_35_px(64)),
    "Mixed_6a": (288, _to_17_px()),
    "Mixed_6b": (768, _at_17_px(128)),
    "Mixed_6c": (768, _at_17_px(160)),
    "Mixed_6d": (768, _at_17_px(160)),
    "Mixed_6e": (768, _at_17_px(192)),
    "Mixed_7a": (768, _to_8_px()),
    "Mixed_7b": (1280, _at_8_px(_average)),
    "Mixed_7c": (2048, _at_8_px(_maximum)),
}
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


class FidInception(nn.Module):
    """The FID Inception network; `features` takes uint8 images, `forward` resized and normalized ones.

    fingerprint: hash of the loaded weights, independent of the file layout; None for random weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint: str | None = None
        self.Conv2d_1a_3x3 = ConvBlock(3, 32, _3X3, stride=2, padding=(0, 0))
        self.Conv2d_2a_3x3 = ConvBlock(32, 32, _3X3, padding=(0, 0))
        self.Conv2d_2b_3x3 = ConvBlock(32, 64, _3X3, padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvBlock(64, 80, _1X1, padding=(0, 0))
        self.Conv2d_4a_3x3 = ConvBlock(80, 192, _3X3, padding=(0, 0))
        for name, (channels, branches) in BLOCKS.items():
            self.add_module(name, MixedBlock(channels, branches))
        self.fc = nn.Linear(2048, NUM_CLASSES)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor, resize: str = "tf1") -> dict[str, Tensor]:
        """Return the output of `forward` for uint8 images [B, 3, H, W] after a resize from `nets.resize`.

        The network runs in float32, because TF32 and bfloat16 change a Frechet distance by several percent.
        Errors: UsageError, DataError.
        """
        device = self.fc.weight.device
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self(to_inception_input(images.to(device), resize))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of x, float [B, 3, 299, 299] in -1..1.

        They are pool [B, 2048]; logits [B, 1008] without bias, for the Inception score; and spatial [B, 2023], which is
        17 x 17 x 7 in TensorFlow's order, for sFID.
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x))))
        found: dict[str, Tensor] = {}
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":  # its 1x1 branch comes first in the concatenation
                found["spatial"] = x[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        found["pool"] = x.mean((2, 3))
        found["logits"] = F.linear(found["pool"], self.fc.weight)
        return found

    def fold(self) -> FidInception:
        """Merge each BatchNorm into its convolution, in place: features are equal to 1e-6, speed rises by a quarter."""
        for module in self.modules():
            if isinstance(module, ConvBlock):
                module.fold()
        return self


class MixedBlock(nn.Module):
    """Branches that read the same input; their outputs are concatenated along channels."""

    def __init__(self, channels: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self._branches = branches
        for branch in branches:
            width = channels
            for step in branch.steps:
                convs = (step,) if isinstance(step, Conv) else step
                for conv in convs:
                    padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if conv.stride == 1 else (0, 0)
                    block = ConvBlock(width, conv.channels, conv.kernel, stride=conv.stride, padding=padding)
                    self.add_module(conv.name, block)
                width = sum(conv.channels for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, total channels of the branches, H', W'] for x [B, C, H, W]."""
        return torch.cat([self._run(branch, x) for branch in self._branches], dim=1)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        x = branch.pool(x) if branch.pool else x
        for step in branch.steps:
            if isinstance(step, Conv):
                x = self.get_submodule(step.name)(x)
            else:
                x = torch.cat([self.get_submodule(conv.name)(x) for conv in step], dim=1)
        return x


class ConvBlock(nn.Module):
    """Convolution, BatchNorm (epsilon 1e-3), ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], *, stride: int = 1, padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_BN_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, H', W'] for x [B, inputs, H, W]."""
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Replace BatchNorm by a scaled kernel and a bias."""
        bn = self.bn
        if not isinstance(bn, nn.BatchNorm2d):
            return
        assert bn.running_var is not None
        assert bn.running_mean is not None
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        kernel = self.conv.weight.double() * scale[:, None, None, None]
        bias = bn.bias.double() - bn.running_mean.double() * scale
        self.conv.weight = nn.Parameter(kernel.to(bn.weight.dtype), requires_grad=False)
        self.conv.bias = nn.Parameter(bias.to(bn.weight.dtype), requires_grad=False)
        self.bn = nn.Identity()
