"""Exponential moving average of a module's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from corecli.base.errors import DataError

Tensors = dict[str, torch.Tensor]
_STATISTICS = ("running_mean", "running_var")


class EMA:
    """An averaged copy of a module, in evaluation mode, to update after every optimizer step.

    average <- average + (1 - d) (weight - average), with d = min(decay, (1 + n) / (10 + n)) after n updates: the
    warm-up lets the average forget the initial weights soon. Running statistics of BatchNorm are averaged alike: a
    generator's last ones fit its last weights, not the average of them. Other buffers are copied.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def next_decay(self) -> float:
        """The d of the next update."""
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards `module`, which must have the tensors of the copied one (an assertion)."""
        ours, theirs = _paired(_averaged(self.module), _averaged(module))
        if ours:
            torch._foreach_lerp_(ours, theirs, 1 - self.next_decay())  # pyright: ignore[reportPrivateImportUsage]
        ours, theirs = _paired(_copied(self.module), _copied(module))
        if ours:
            torch._foreach_copy_(ours, theirs)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    def state(self) -> Tensors:
        """The tensors to save in a checkpoint."""
        return {"num_updates": torch.tensor(self.num_updates), **self.module.state_dict(prefix="average.")}

    def restore(self, tensors: Tensors) -> None:
        """Take back what `state` gave. Errors: DataError when the tensors are of another module."""
        average = {name.removeprefix("average."): t for name, t in tensors.items() if name.startswith("average.")}
        try:
            self.module.load_state_dict(average)
        except RuntimeError as error:
            raise DataError(f"averaged weights do not fit the module: {error}") from error
        self.num_updates = int(tensors["num_updates"])


def _averaged(module: nn.Module) -> Tensors:
    statistics = {name: b for name, b in module.named_buffers() if name.endswith(_STATISTICS)}
    return {**dict(module.named_parameters()), **statistics}


def _copied(module: nn.Module) -> Tensors:
    return {name: b for name, b in module.named_buffers() if not name.endswith(_STATISTICS)}


def _paired(ours: Tensors, theirs: Tensors) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    assert ours.keys() == theirs.keys(), f"tensors differ: {sorted(ours.keys() ^ theirs.keys())[:3]}"
    return list(ours.values()), [theirs[name] for name in ours]
