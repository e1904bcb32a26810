"""Read rank and world size from the environment that torchrun or a step of srun sets. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from corecli.base.rng import derive

MEETING = "CORECLI_MEETING"  # environment variable with the file where the processes of one node meet
FILE = "file://"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The place of this process among those of its launcher; `init_method` is the address or file where ranks meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    init_method: str = "env://"


def find_launch(environment: Mapping[str, str]) -> Launch:
    """Return rank and address from torchrun's variables, or from those of an srun step with several tasks.

    An sbatch script outside srun has SLURM_NTASKS but no step; it runs as a single process.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Launch(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            init_method=f"{FILE}{environment[MEETING]}" if MEETING in environment else "env://",
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
    """Return the first name of a SLURM node list, e.g. `gpu03` for `gpu[03-05,9],login1`."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "localhost")
    match = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    first = match.group() if match else nodes
    return re.sub(r"\[([^\]\-,]*)[^\]]*\]", r"\1", first)


def _port(environment: Mapping[str, str]) -> int:
    """Return a port in 20000-60000 that is equal in all tasks of a step and differs between jobs."""
    job, step = environment.get("SLURM_JOB_ID", "0"), environment["SLURM_STEP_ID"]
    return 20000 + derive(0, "port", job, step) % 40001
