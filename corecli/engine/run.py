"""Training runs that can be killed at any time: `OUT.d/` has the work in progress, and the same line continues it.

The state is the step and the tensors. Every random draw is a function of (seed, step), so no generator state is stored.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from corecli.base import checkpoint
from corecli.base.claim import remove_leftovers
from corecli.base.documents import loads, read_json
from corecli.base.errors import CannotCreateError, CorecliError, DataError, InterruptedAfterSaving
from corecli.base.files import atomic_write, storage_errors, write_json
from corecli.base.schemas import IDENTITY
from corecli.base.target import refuse_difference
from corecli.engine.dist import World, any_rank, barrier
from corecli.engine.progress import Progress
from corecli.engine.signals import StopRequest

Tensors = dict[str, torch.Tensor]
_SAVE, _STOP = 1, 2
_ABOUT, _LOG = "run.json", "log.jsonl"


def folder_of(out: Path) -> Path:
    """Return the run folder of a target: `g.pt.d/` for `g.pt`."""
    return out.with_name(out.name + ".d")


def open_folder(out: Path, identity: Mapping[str, Any], world: World, *, force: bool) -> Path:
    """Create or reopen the run folder of `out`. Before anything is saved in it, the config may change.

    Errors: CannotCreateError if it has saved work of another config.
    """
    folder = folder_of(out)
    about = folder / _ABOUT
    if world.is_main:
        with storage_errors(folder):
            if folder.exists() and not _is_ours(folder):
                raise CannotCreateError("already exists", where=folder, hint="rename it: work in progress goes there")
            if force:
                remove_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if about.exists() and _holds_work(folder):
            refuse_difference(folder, read_json(about, IDENTITY), dict(identity))
        else:
            write_json(about, dict(identity))
    barrier(world)
    return folder


def clear_work(out: Path) -> None:
    """Remove the saved work, but not the log, of a run that was killed after its target was in place."""
    folder = folder_of(out)
    if (folder / _LOG).exists():
        _clear(folder)
    elif folder.exists() and _is_ours(folder):
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete a run folder. The file that identifies it goes last, so that a killed deletion can be repeated."""
    for path in folder.glob("*"):
        if path.name != _ABOUT:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class Run:
    """The steps of a training run, which resumes, saves, logs and stops on a signal, on all ranks at the same step.

    `state()` returns the tensors to save and `restore(tensors, step)` restores them; both are called on all ranks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        label: str,
        world: World,
        total_steps: int,
        state: Callable[[], Tensors],
        restore: Callable[[Tensors, int], None],
        save_every_sec: float,
        log_every_steps: int,
        quiet: bool,
    ) -> None:
        self.folder, self.world, self.total_steps = folder, world, total_steps
        self._state, self._save_every_sec, self._log_every_steps = state, save_every_sec, log_every_steps
        self.first_step, tensors = _newest_state(folder)
        if any_rank(self.first_step, world) != self.first_step:
            raise DataError("processes see different states", where=folder, hint="use a disk that all nodes share")
        if tensors:
            restore(tensors, self.first_step)
        self._log = _Log(folder / _LOG, self.first_step) if world.is_main else None
        shown = world.is_main and not quiet
        self._progress = Progress(label, total=total_steps, done=self.first_step, shown=shown)
        self._stop = StopRequest()
        self._last_save = time.monotonic()

    def __enter__(self) -> Run:
        self._stop.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__()
        self._stop.__exit__(kind, error, trace)

    def steps(self) -> Iterator[int]:
        """Yield the remaining steps. Errors: InterruptedAfterSaving after a signal, with the state saved."""
        for step in range(self.first_step, self.total_steps):
            yield step
            self._after(step + 1)

    def is_log_step(self, step: int) -> bool:
        """Whether this step is logged: every n-th one and the last."""
        return (step + 1) % self._log_every_steps == 0 or step + 1 == self.total_steps

    def presented(self, images: int) -> None:
        """Count one step with `images` images over all ranks as done."""
        self._progress.advance(images=images)

    def log(self, step: int, values: Mapping[str, float | torch.Tensor]) -> None:
        """Append values to `log.jsonl` and show them. Call it on log steps only, because it waits for the device."""
        if self._log is not None:
            plain = {name: float(value) for name, value in values.items()}
            self._log.append({"step": step + 1, **plain})
            self._progress.show(plain)

    def finish(self) -> None:
        """Delete the saved work once the target is in place; the log and the previews stay."""
        if self.world.is_main:
            _clear(self.folder)

    def _after(self, done: int) -> None:
        """Save at the end of a step if it is time or a signal arrived, on all ranks alike."""
        due = time.monotonic() - self._last_save >= self._save_every_sec
        wanted = (_STOP if self._stop.requested else 0) | (_SAVE if due and self.world.is_main else 0)
        agreed = any_rank(wanted, self.world)
        if agreed and done < self.total_steps:
            self._save(done)
            if agreed & _STOP:
                barrier(self.world)  # when one process exits, the launcher stops the others, which may still be saving
                raise InterruptedAfterSaving(
                    f"stopped at step {done} of {self.total_steps}, saved", hint="the same line resumes"
                )

    def _save(self, done: int) -> None:
        tensors = self._state()
        self._refuse_nonfinite(tensors, done)
        if self.world.is_main:
            new = _state_path(self.folder, done)
            old = set(self.folder.glob("state-*.safetensors")) - {new}
            checkpoint.save(new, tensors, kind="state", step=done)
            before = max((path for path in old if path < new), default=None)
            for path in old - {before}:  # keep the previous state in case this one is damaged
                path.unlink()
        self._last_save = time.monotonic()

    def _refuse_nonfinite(self, tensors: Tensors, done: int) -> None:
        """Refuse to save a diverged state over the last good one. Errors: CorecliError."""
        bad = [name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if any_rank(bool(bad), self.world):
            what = f"training diverged before step {done}: {bad[0] if bad else 'a weight'} is not finite"
            raise CorecliError(what, where=self.folder, hint="the last good state is kept; lower --lr and add --force")


def merge(**parts: Tensors) -> Tensors:
    """Merge dicts of tensors into one, with names `part/name`."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def split(tensors: Tensors) -> dict[str, Tensors]:
    """Undo `merge`."""
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _is_ours(folder: Path) -> bool:
    return (folder / _ABOUT).exists() or not any(folder.glob("[!.]*"))


def _state_path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.safetensors"


def _clear(folder: Path) -> None:
    """Delete saved states, the latents that were trained on, and partly written files."""
    for pattern in ("state-*", "latents-*", "**/.*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _holds_work(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("state-*", "shard-*"))


def _newest_state(folder: Path) -> tuple[int, Tensors]:
    """Return (step, tensors) of the newest intact state; (0, {}) without one."""
    for path in sorted(folder.glob("state-*.safetensors"), reverse=True):
        try:
            tensors, header = checkpoint.load(path, kind="state")
        except DataError:
            continue
        step = header.get("step")
        if isinstance(step, int) and path == _state_path(folder, step):
            return step, tensors
    return 0, {}


class _Log:
    """`log.jsonl`: one object per logged step, truncated at the step that a run resumes from."""

    def __init__(self, path: Path, first_step: int) -> None:
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= first_step]
        self._path = path
        self._started = time.monotonic()
        with atomic_write(path) as file:
            file.write("".join(kept).encode())

    def append(self, record: dict[str, Any]) -> None:
        record["seconds"] = round(time.monotonic() - self._started, 3)
        with storage_errors(self._path), open(self._path, "a") as file:
            file.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    """Return the step of a line of the log; infinity if the line is incomplete or damaged."""
    try:
        step = loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int | float) else math.inf
