from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loader import MemorySet, set_of

from corecli.base.errors import CorecliError, DataError
from corecli.data import workers
from corecli.data.loader import Rows
from corecli.data.order import sequential_batches
from corecli.data.workers import fill_by_workers
from corecli.engine.signals import STOPPING

pytestmark = pytest.mark.skipif(not workers.AVAILABLE, reason="needs fork")


def worker_processes() -> list[multiprocessing.Process]:
    """The forks of this process; other tests may keep processes of another kind."""
    return [p for p in multiprocessing.active_children() if isinstance(p, multiprocessing.context.ForkProcess)]


def reading(image_set: MemorySet, batch_size: int = 8, num_workers: int = 2):
    batches = sequential_batches(len(image_set.images), batch_size)
    return read_by_workers(image_set, batches, num_workers=num_workers, batch_size=batch_size)


def read_by_workers(image_set: MemorySet, batches, *, num_workers: int, batch_size: int):
    for (images,), rows in fill_by_workers(Rows(image_set), batches, num_workers=num_workers, batch_size=batch_size):
        yield images, rows


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
@pytest.mark.parametrize("num", [0, 5, 8, 203])
def test_batches_come_whole_and_in_order(num, num_workers):
    image_set = set_of(num, decodes=True)
    got = [(images.clone(), rows) for images, rows in reading(image_set, num_workers=num_workers)]
    assert np.array_equal(np.concatenate([np.empty(0, int), *(rows for _, rows in got)]), np.arange(num))
    assert all(torch.equal(images, image_set.images[torch.from_numpy(rows)]) for images, rows in got)
    assert not worker_processes()


def test_workers_read_ahead_and_not_without_bound():
    image_set = set_of(200, decodes=True)
    asked = []

    def batches():
        for rows in sequential_batches(200, 8):
            asked.append(len(rows))
            yield rows

    read = read_by_workers(image_set, batches(), num_workers=2, batch_size=8)
    next(read)
    assert len(asked) == workers.BATCHES_AHEAD + 1
    read.close()
    assert not worker_processes()


def test_a_users_error_arrives_as_it_was_raised():
    with pytest.raises(DataError) as caught:
        list(reading(set_of(40, decodes=True, bad_row=20)))
    assert str(caught.value) == "dog/0020.png: truncated image (make it again)"
    assert not worker_processes()


def test_a_bug_arrives_with_its_traceback():
    image_set = set_of(16, decodes=True)
    image_set.images = image_set.images[:4]
    batches = iter([np.arange(8)])
    with pytest.raises(
        RuntimeError, match=r"(?s)^in a worker process that decodes images: IndexError: .*Traceback.*in read.*out of"
    ):
        list(read_by_workers(image_set, batches, num_workers=1, batch_size=8))


def test_signals_meant_for_the_run_do_not_end_a_worker():
    read = reading(set_of(200, decodes=True))
    next(read), next(read)  # both have begun
    processes = worker_processes()
    assert len(processes) == 2
    for process, number in itertools.product(processes, STOPPING):
        os.kill(process.pid, number)
    assert len(list(read)) == 23
    assert not worker_processes()


def test_two_sets_are_read_at_once_and_the_first_begun_may_end_first():
    first, second = (reading(set_of(40, decodes=True)) for _ in range(2))
    next(first), next(second)
    first.close()
    assert len(list(second)) == 4
    assert not worker_processes()


@pytest.mark.parametrize(("number", "hint"), [("SIGKILL", ".*--workers 0"), ("SIGBUS", ".*truncated a file")])
def test_a_killed_worker_is_reported(number, hint, request):
    if faulthandler.is_enabled():  # by pytest; a worker would print its stack
        faulthandler.disable()
        request.addfinalizer(faulthandler.enable)
    read = reading(set_of(200, decodes=True))
    next(read)
    for process in worker_processes():
        os.kill(process.pid, signal.Signals[number])
    with pytest.raises(
        CorecliError, match=rf"ended with status -{signal.Signals[number].value} while decoding.*{hint}"
    ):
        list(read)
    assert not worker_processes()


SCRIPT = """
    import multiprocessing, sys
    sys.path.insert(0, sys.argv[1])
    from test_workers import reading, set_of
    read = reading(set_of(200, decodes=True))
    next(read)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.parametrize("ending", ["killed", "crashed"])
def test_workers_end_with_their_parent_however_it_ends(ending):
    last_line = {"killed": "import time; time.sleep(60)", "crashed": "raise SystemError"}[ending]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT) + last_line, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if ending == "killed":
            parent.kill()
        assert parent.wait(timeout=30) == {"killed": -9, "crashed": 1}[ending]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False
