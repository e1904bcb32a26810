"""Processes that work as one: joining them, and the few collectives a run needs.

The convention: every rank's loss is its share, and the loss of the global batch is the mean of the shares. Whatever
crosses ranks has its exact adjoint (the gradient of a gathered tensor is summed over ranks), so the gradient of that
mean is the mean over ranks of the local gradients. `average_gradients`, called once after `backward`, takes that mean
and is the only place that divides; losses never scale by the world size. Ranks hold equal numbers of rows.

With one process nothing here communicates or copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported after a group is joined, it would hold on to it, and its threads, to the end
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from corecli.base.errors import UnavailableError
from corecli.engine.environment import Launch, find_launch

_MEETING_TIMEOUT = timedelta(minutes=10)  # for the ranks of a cluster to start
# A rank may wait this long for another that still samples its shard; a dead rank is noticed at once.
_TIMEOUT = timedelta(hours=6)
_FAILURE = "corecli/failure"


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that work on the same run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")
    store: Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the result."""
        return self.rank == 0


def join(device: str = "auto", *, environment: Mapping[str, str] = os.environ) -> World:
    """Join the processes this one was started among (torchrun, or a step of srun), or be a world of one.

    `device` is auto, cpu or cuda. CPU tensors travel by gloo and CUDA tensors by NCCL, in the same group.
    Errors: UnavailableError when CUDA is asked for and absent, or the other processes cannot be reached.
    """
    launch = find_launch(environment)
    place = choose_device(device, launch.local_rank)
    store = _start_group(launch, place) if launch.size > 1 else None
    return World(rank=launch.rank, size=launch.size, local_rank=launch.local_rank, device=place, store=store)


def leave(world: World) -> None:
    """Leave the group joined, if any; does not wait for the others, so it is safe after an error."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return the device that `--device` names; of several GPUs the one of the local rank.

    Errors: UnavailableError when there is no such GPU.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UnavailableError("no CUDA device was found", hint="use --device cpu")
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise UnavailableError(f"process {local_rank} of this node has no GPU, there are {count}", hint="lower --nproc")
    place = torch.device("cuda", local_rank % count)  # srun --gpus-per-task shows each task one device, number 0
    torch.cuda.set_device(place)
    return place


def claim_failure(exit_code: int, world: World) -> int | None:
    """None for the first rank that fails, which is to explain it; for the others the exit code of the first."""
    if world.store is None:
        return None
    mine = f"{exit_code} {world.rank}"
    try:
        claimed = world.store.compare_set(_FAILURE, "", mine).decode()
    except RuntimeError:  # the store went with the process that kept it
        return None
    return None if claimed == mine else int(claimed.split()[0])


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, rather than that this one failed."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def current_rank() -> int:
    """The rank of this process in the group, 0 outside one: where its rows begin among gathered ones."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks in rank order: [B, ...] -> [B * size, ...], equal B everywhere.

    The gradient of the result is summed over ranks and returned to the rank each row came from.
    """
    return _Gather.apply(x) if dist.is_initialized() else x  # pyright: ignore[reportReturnType]


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The sum of `x` over ranks, without gradient; a new tensor."""
    total = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The mean of floating-point `x` over ranks, without gradient; of loss shares, it is the loss of the batch."""
    return sum_over_ranks(x) / (dist.get_world_size() if dist.is_initialized() else 1)


def average_gradients(parameters: Iterable[torch.nn.Parameter], world: World) -> None:
    """Replace every gradient by its mean over ranks, in one all-reduce a dtype; call it once after `backward`.

    The same parameters must have a gradient on every rank.
    """
    if world.size == 1:
        return
    for gradients in _by_dtype(p.grad for p in parameters if p.grad is not None):
        bucket = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(bucket)
        _unpack(bucket.div_(world.size), gradients)


def any_rank(flags: int, world: World) -> int:
    """The bits set on any rank, the same on all: how ranks agree to stop at the same step."""
    if world.size == 1:
        return flags
    bits = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(bits, op=dist.ReduceOp.BOR)
    return int(bits)


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    any_rank(0, world)


class _Gather(torch.autograd.Function):
    """All-gather whose backward is its adjoint: sum over ranks, then each rank's own rows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.num_rows = x.shape[0]
        rows = x.new_empty(x.shape[0] * dist.get_world_size(), *x.shape[1:])
        dist.all_gather_into_tensor(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.num_rows, ctx.num_rows)


def _by_dtype(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())


def _unpack(bucket: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    parts = bucket.split([t.numel() for t in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _start_group(launch: Launch, place: torch.device) -> Store:
    backend = "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl"
    rank, size = launch.rank, launch.size
    try:
        store, _, _ = next(rendezvous(launch.init_method, rank, size, timeout=_MEETING_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        return store
    except (RuntimeError, ValueError) as error:
        reason = f"cannot join the other {launch.size - 1} processes: {str(error).splitlines()[0]}"
        raise UnavailableError(reason, hint="are the address and the port of rank 0 reachable?") from error
