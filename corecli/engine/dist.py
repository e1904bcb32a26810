"""Join the processes of a run, and exchange tensors between them.

Convention: each rank computes the loss of its share of the batch, and the loss of the batch is the mean over ranks. The
backward pass of every operation across ranks is its exact adjoint (the gradient of a gathered tensor is summed over
ranks), so the gradient of the batch is the mean of the local gradients over ranks. `average_gradients`, called once
after `backward`, computes this mean and is the only place that divides; losses are never scaled by the world size. All
ranks hold the same number of rows.

In a single process these functions neither communicate nor copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # must be imported before a group exists, or it keeps the group and its threads alive
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from corecli.base.errors import UnavailableError
from corecli.engine.environment import FILE, Launch, find_launch

_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # for all ranks of a cluster to start
# A rank may wait this long for another one that is still sampling its shard. A dead rank is detected at once.
_TIMEOUT = timedelta(hours=6)
_FAILURE = "corecli/failure"


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process among the processes of a run, and its device."""

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
    """Join the processes that torchrun or a step of srun started with this one; return a world of one without them.

    `device` is auto, cpu or cuda. CPU tensors are sent by gloo and CUDA tensors by NCCL, in one group.
    Errors: UnavailableError if CUDA is requested and absent, or the other processes cannot be reached.
    """
    launch = find_launch(environment)
    place = choose_device(device, launch.local_rank)
    store = _start_group(launch, place) if launch.size > 1 else None
    return World(rank=launch.rank, size=launch.size, local_rank=launch.local_rank, device=place, store=store)


def leave(world: World) -> None:
    """Leave the group, if there is one. It does not wait for other ranks, so it is safe after an error."""
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
        raise UnavailableError(f"no GPU for process {local_rank} of this node, which has {count}", hint="lower --nproc")
    place = torch.device("cuda", local_rank % count)  # with srun --gpus-per-task each task sees one device, number 0
    torch.cuda.set_device(place)
    return place


def claim_failure(exit_code: int, world: World) -> int | None:
    """Register a failure: return None on the first rank that fails, and its exit code on the others.

    The first rank reports its error; the others exit silently.
    """
    if world.store is None:
        return None
    mine = f"{exit_code} {world.rank}"
    try:
        claimed = world.store.compare_set(_FAILURE, "", mine).decode()
    except RuntimeError:  # the process that held the store is gone
        return None
    return None if claimed == mine else int(claimed.split()[0])


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error means that another rank is gone, not that this one failed."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def current_rank() -> int:
    """Return the rank of this process, 0 without a group. It gives the position of its rows among gathered ones."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """Gather the rows of all ranks in rank order: [B, ...] -> [B * size, ...], with B equal on all ranks.

    The gradient is summed over ranks and returned to the rank that a row came from.
    """
    return _Gather.apply(x) if dist.is_initialized() else x  # pyright: ignore[reportReturnType]


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of `x` over ranks as a new tensor, without gradient."""
    total = x.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


def mean_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of floating-point `x` over ranks, without gradient; for local losses, the loss of the batch."""
    return sum_over_ranks(x) / (dist.get_world_size() if dist.is_initialized() else 1)


def average_gradients(parameters: Iterable[torch.nn.Parameter], world: World) -> None:
    """Replace each gradient by its mean over ranks, with one all-reduce per dtype. Call it once after `backward`.

    The same parameters must have a gradient on all ranks.
    """
    if world.size == 1:
        return
    for gradients in _by_dtype(p.grad for p in parameters if p.grad is not None):
        bucket = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(bucket)
        _unpack(bucket.div_(world.size), gradients)


def any_rank(flags: int, world: World) -> int:
    """Return the bits that are set on any rank. With it, ranks agree to stop at the same step."""
    if world.size == 1:
        return flags
    bits = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(bits, op=dist.ReduceOp.BOR)
    return int(bits)


def barrier(world: World) -> None:
    """Wait for all ranks."""
    any_rank(0, world)


class _Gather(torch.autograd.Function):
    """All-gather with its adjoint as backward pass: the sum over ranks, cut to the rows of this rank."""

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


def _store(launch: Launch) -> Store:
    if launch.init_method.startswith(FILE):
        place = launch.init_method.removeprefix(FILE)
        return dist.FileStore(place, launch.size)  # pyright: ignore[reportPrivateImportUsage]
    return next(rendezvous(launch.init_method, launch.rank, launch.size, timeout=_RENDEZVOUS_TIMEOUT))[0]


def _start_group(launch: Launch, place: torch.device) -> Store:
    backend = "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl"
    rank, size = launch.rank, launch.size
    try:
        store = _store(launch)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        return store
    except (RuntimeError, ValueError) as error:
        reason = f"cannot join the other {launch.size - 1} processes: {str(error).splitlines()[0]}"
        raise UnavailableError(reason, hint="check that the address and the port of rank 0 can be reached") from error
