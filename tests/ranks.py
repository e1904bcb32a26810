"""A pool of processes in one gloo group, joined as torchrun's workers join, that run functions of test modules."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_TIMEOUT_SEC = 120.0


class Ranks:
    """`run(function, *args)` calls `function(world, *args)` on every rank and returns the results in rank order."""

    def __init__(self, size: int) -> None:
        import torch.multiprocessing as mp

        context = mp.get_context("spawn")
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_serve, args=(theirs, environment), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        results = [self._receive(pipe) for pipe in self._pipes]
        failures = [value for ok, value in results if not ok]
        assert not failures, "\n".join(failures)
        return [value for _, value in results]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send_bytes(pickle.dumps(None))
            process.join(10)
            process.kill()

    def _receive(self, pipe: Connection) -> tuple[bool, Any]:
        if not pipe.poll(_TIMEOUT_SEC):
            return False, "a rank did not answer; perhaps another failed and left it waiting"
        return pickle.loads(pipe.recv_bytes())  # noqa: S301


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import torch

    from corecli.engine.dist import join, leave

    torch.set_num_threads(1)
    world = join("cpu")
    while (message := pickle.loads(pipe.recv_bytes())) is not None:  # noqa: S301
        function, args = message
        try:
            result = (True, function(world, *args))
        except Exception:  # noqa: BLE001
            result = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(result))
    leave(world)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
