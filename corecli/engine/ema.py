"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from corecli.base.errors import DataError

Tensors = dict[str, torch.Tensor]
Decay = Callable[[int], float]
_STATISTICS = ("running_mean", "running_var")


class EMA:
    """An averaged copy of a module in evaluation mode, to update after every optimizer step.

    average <- average + (1 - d) (weight - average), where d is `decay(n)` after n updates; a number d means
    `warmed_up(d)`. Running statistics of BatchNorm are averaged too, because the latest ones fit the latest weights and
    not their average. Other buffers are copied. Parameters that are frozen when the copy is made stay unchanged.
    """

    def __init__(self, module: nn.Module, *, decay: float | Decay) -> None:
        self._decay = decay if callable(decay) else warmed_up(decay)
        self.num_updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self._learned = {name for name, p in module.named_parameters() if p.requires_grad}

    def next_decay(self) -> float:
        """Return the decay of the next update."""
        return self._decay(self.num_updates)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average toward `module`, which must have the same tensors as the copied module (asserted)."""
        ours, theirs = _paired(self.averaged(), self._averaged(module))
        if ours:
            torch._foreach_lerp_(ours, theirs, 1 - self.next_decay())  # pyright: ignore[reportPrivateImportUsage]
        ours, theirs = _paired(_copied(self.module), _copied(module))
        if ours:
            torch._foreach_copy_(ours, theirs)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    def averaged(self) -> Tensors:
        """Return the averaged tensors by their names in the module."""
        return self._averaged(self.module)

    def state(self) -> Tensors:
        """Return the tensors to save in a checkpoint."""
        return {"num_updates": torch.tensor(self.num_updates), **self.module.state_dict(prefix="average.")}

    def restore(self, tensors: Tensors) -> None:
        """Restore the tensors that `state` returned. Errors: DataError if they belong to another module."""
        average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
        try:
            self.module.load_state_dict(average)
        except RuntimeError as error:
            raise DataError(f"averaged weights do not fit the module: {error}") from error
        self.num_updates = int(tensors["num_updates"])

    def _averaged(self, module: nn.Module) -> Tensors:
        learned = {name: p for name, p in module.named_parameters() if name in self._learned}
        return {**learned, **{name: b for name, b in module.named_buffers() if name.endswith(_STATISTICS)}}


def warmed_up(decay: float) -> Decay:
    """Return the decay min(decay, (1 + n) / (10 + n)) after n updates, which soon forgets the initial weights."""
    return lambda n: min(decay, (1 + n) / (10 + n))


def _copied(module: nn.Module) -> Tensors:
    return {name: b for name, b in module.named_buffers() if not name.endswith(_STATISTICS)}


def _paired(ours: Tensors, theirs: Tensors) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    assert ours.keys() == theirs.keys(), f"tensors differ: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    return list(ours.values()), [theirs[name] for name in ours]
