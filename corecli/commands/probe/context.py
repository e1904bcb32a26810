"""What a mode of `probe` gets and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from corecli.commands.probe.problem import Problem
from corecli.commands.probe.reader import Reader
from corecli.nets.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Context:
    """The problem to learn, and the features or the images to learn it from.

    computed: float [N + M, D], features of the N training rows and, after them, of the M rows of --val, in modes that
    train on features; None in modes that train on images.
    """

    problem: Problem
    reader: Reader
    computed: Tensor | None = None

    @property
    def numbers(self) -> Tensor:
        """The class of each row, int64 [N + M] in 0..C-1; with --labels int8 [N + M, C]: 1 yes, 0 no, -1 ignored."""
        return self.problem.numbers

    @property
    def num_classes(self) -> int:
        return len(self.problem.space)

    @property
    def features(self) -> Tensor:
        """`computed`, in a mode that needs features."""
        assert self.computed is not None
        return self.computed


class Classifier(Protocol):
    """Anything that gives logits [N, C] for features [N, D]; `metrics.parts.fitting.Classifier` is linear."""

    def logits(self, features: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained classifier, the setting that was chosen for it, and the encoder if that was trained as well."""

    classifier: Classifier
    setting: Any = None
    encoder: Encoder | None = None
