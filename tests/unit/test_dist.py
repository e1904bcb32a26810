"""What a process reads of its launcher; the collectives are in tests/dist."""

from __future__ import annotations

import pytest
import torch

from corecli.base.errors import UnavailableError
from corecli.engine.dist import Launch, World, find_launch, join, leave

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


def test_alone() -> None:
    assert find_launch({}) == Launch()
    world = join("cpu", environment={})
    assert world == World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    assert world.is_main
    assert not torch.distributed.is_initialized()
    leave(world)


def test_torchrun() -> None:
    found = find_launch({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **STEP})
    assert found == Launch(rank=3, size=8, local_rank=1, init_method="env://")
    assert join("cpu", environment={"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == World()


def test_a_step_of_srun() -> None:
    found = find_launch(STEP)
    assert (found.rank, found.size, found.local_rank) == (5, 8, 1)
    host, port = found.init_method.removeprefix("tcp://").split(":")
    assert host == "gpu03"
    assert 20000 <= int(port) <= 60000
    assert find_launch({**STEP, "SLURM_PROCID": "0"}).init_method == found.init_method
    assert find_launch({**STEP, "SLURM_JOB_ID": "1235"}).init_method != found.init_method
    assert find_launch({**STEP, "SLURM_STEP_ID": "1"}).init_method != found.init_method


def test_a_batch_script_outside_srun_is_alone() -> None:
    outside = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")}
    assert find_launch({**outside, "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Launch()
    assert find_launch({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) == Launch()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("gpu[003-005,9],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("r[1-2]n[08-09].site", "r1n08.site"),
        ("n01.site,n[02-03].site", "n01.site"),
    ],
)
def test_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert find_launch({**STEP, "SLURM_STEP_NODELIST": nodes}).init_method.startswith(f"tcp://{first}:")


def test_cuda_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert join("auto", environment={}).device == torch.device("cpu")
    with pytest.raises(UnavailableError, match="no CUDA device") as error:
        join("cuda", environment={})
    assert error.value.exit_code == 69


@pytest.mark.parametrize(("count", "local_rank", "index"), [(4, 2, 2), (1, 2, 0)])
def test_each_process_takes_its_own_gpu(
    count: int, local_rank: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    one = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(local_rank)}
    assert join("auto", environment=one).device == torch.device("cuda", index)
    assert taken == [torch.device("cuda", index)]
    with pytest.raises(UnavailableError, match="no GPU for process 4 of this node, which has 4"):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        join("cuda", environment={**one, "LOCAL_RANK": "4"})


def test_others_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "not-a-port"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match="cannot join the other 1 processes"):
        join("cpu", environment={"RANK": "0", "WORLD_SIZE": "2"})
