"""What the launcher of this process says in the environment: torchrun, or a step of srun. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from corecli.base.rng import derive


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher of this process says about it; `init_method` is where the ranks meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    init_method: str = "env://"


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Read rank and meeting place from torchrun's variables, else from those of an srun step with several tasks.

    An sbatch script outside srun has SLURM_NTASKS but no step, and is a world of one.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Launch(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
        )
    size = int(environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1")))
    if "SLURM_STEP_ID" not in environment or size == 1:
        return Launch()
    return Launch(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        init_method=f"tcp://{_first_host(environment)}:{_port(environment)}",
    )


def _first_host(environment: Mapping[str, str]) -> str:
    """The first name of a SLURM node list, e.g. `gpu03` of `gpu[03-05,9],login1`."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    match = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    first = match.group() if match else nodes
    return re.sub(r"\[([^\]\-,]*)[^\]]*\]", r"\1", first)


def _port(environment: Mapping[str, str]) -> int:
    """A port in 20000-60000 that all tasks of a step agree on and that neighboring jobs do not share."""
    job, step = environment.get("SLURM_JOB_ID", "0"), environment["SLURM_STEP_ID"]
    return 20000 + derive(0, "port", job, step) % 40001
