"""Locks of targets, and what happens where two programs write the same one."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corecli.base import claim
from corecli.base.claim import claimed, remove_leftovers, temporary_path
from corecli.base.errors import BusyError, CannotCreateError
from corecli.base.files import atomic_write
from corecli.data.formats.shards import ShardFolder, Statistics
from corecli.data.imageset import open_set, write_set
from corecli.data.rows import make_rows

FORK = multiprocessing.get_context("fork")


def ignore(note: str) -> None:
    """Take a note."""


def _hold(path: Path, started: Any) -> None:
    with claimed([path], note=ignore):
        started.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A process that has claimed `out`."""
    started = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path / "out", started))
    process.start()
    assert started.wait(20)
    yield process
    process.kill()
    process.join()


def test_a_second_job_is_refused_and_knows_who_holds_the_lock(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "WAIT_SEC", 0.1)
    notes: list[str] = []
    refusal = pytest.raises(BusyError, match=rf"out: process {holder.pid} on .+ is writing it")
    with refusal as caught, claimed([tmp_path / "sub" / ".." / "out"], note=notes.append):
        pass
    assert caught.value.exit_code == 75
    assert len(notes) == 1
    assert f"waiting for process {holder.pid}" in notes[0]


def test_a_killed_job_holds_no_lock(tmp_path: Path, holder: Any) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    notes: list[str] = []
    with claimed([tmp_path / "out"], note=notes.append):
        assert not notes
    assert not list(tmp_path.iterdir())


def test_forks_of_a_job_do_not_keep_its_lock(tmp_path: Path) -> None:
    process = FORK.Process(target=time.sleep, args=(60,))  # as a process that loads data
    with claimed([tmp_path / "out"], note=ignore):
        process.start()
    try:
        with claimed([tmp_path / "out"], note=pytest.fail):
            assert (tmp_path / ".out.lock").read_text().startswith(f"process {os.getpid()} on ")
    finally:
        process.kill()


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    with claimed([tmp_path / "a" / "b" / "out"], note=ignore):
        assert (tmp_path / "a" / "b" / ".out.lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_gets_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    notes: list[str] = []
    with claimed([tmp_path / "out"], note=notes.append), atomic_write(tmp_path / "out") as file:
        file.write(b"x")
    assert len(notes) == 1
    assert "no locks available" in notes[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_no_file_can_be_made_the_writer_reports_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out, refusal = tmp_path / "file" / "out", pytest.raises(CannotCreateError, match="not a directory")
    with claimed([out], note=pytest.fail), refusal, atomic_write(out):
        pass


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, before: bytes | None) -> None:
    out = tmp_path / "out"
    if before:
        out.write_bytes(before)
    refusal = pytest.raises(CannotCreateError, match="another program")
    with claimed([out], note=ignore), refusal, atomic_write(out) as file:
        file.write(b"mine")
        (tmp_path / "other").write_bytes(b"theirs")
        os.replace(tmp_path / "other", out)
    assert out.read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_refuses_what_appears_between_check_and_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(claim, "_refuse_change", lambda place: out.write_bytes(b"theirs"))
    refusal = pytest.raises(CannotCreateError, match="another program")
    with claimed([out], note=ignore), refusal, atomic_write(out) as file:
        file.write(b"mine")
    assert out.read_bytes() == b"theirs"


def test_a_job_replaces_its_own_target_as_often_as_it_likes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old")
    with claimed([out], note=ignore):
        for text in (b"1", b"2", b"3"):
            with atomic_write(out) as file:
                file.write(text)
    assert out.read_bytes() == b"3"


def _write(out: Path, color: int = 7) -> None:
    rows, images = make_rows([f"{i:03d}" for i in range(300)]), np.full((300, 3, 8, 8), color, dtype=np.uint8)
    write_set(out, rows, [images], class_names=(), header={})


def test_a_directory_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed([out], note=ignore):
        process = FORK.Process(target=_write, args=(out, 1))
        process.start()
        process.join()
        with pytest.raises(CannotCreateError, match="another program"):
            _write(out, 2)
    assert int(open_set(out).read(np.array([0])).max()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _refused(out: Path, together: Any) -> None:
    together.wait()
    try:
        _write(out)
    except CannotCreateError:
        os._exit(73)
    os._exit(0)


def test_without_locks_four_writers_do_not_mix_their_files(tmp_path: Path) -> None:
    together = FORK.Barrier(4)
    processes = [FORK.Process(target=_refused, args=(tmp_path / "out", together)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert set(codes) <= {0, 73}
    assert 0 in codes
    assert len(open_set(tmp_path / "out").rows) == 300
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_dead_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    own = temporary_path(out)
    dead, other = (own.with_name(own.name.replace(str(os.getpid()), pid)) for pid in (str(2**30), "1"))
    foreign = out.with_name(".out.elsewhere-1.tmp")
    kept = [out.with_name(".out.json.elsewhere-1.tmp"), out.with_name(".outer.elsewhere-1.tmp")]
    for path in (dead, other, foreign, *kept):
        path.touch()
    remove_leftovers(tmp_path, ["out"])
    assert sorted(tmp_path.iterdir()) == sorted([other, foreign, *kept])
    with claimed([out], note=ignore):
        assert sorted(set(tmp_path.iterdir()) - {tmp_path / ".out.lock"}) == sorted(kept)


def test_names_of_any_length_have_a_temporary_file(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        with claimed([tmp_path / name], note=pytest.fail), atomic_write(tmp_path / name) as file:
            file.write(b"x")
        assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("num", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_the_number_of_listings_does_not_grow_with_the_number_of_shards(
    num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda file: None)
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, _noting(getattr(os, name), listed))
    numbers = []
    for size in (3, num):
        _write_shards(tmp_path / str(size), size)
        numbers.append(listed.count(tmp_path / str(size)))
    assert 0 < numbers[0] == numbers[1] < 10


def _noting(function: Callable[..., Any], listed: list[Path]) -> Callable[..., Any]:
    def noting(path: Any = ".") -> Any:
        listed.append(Path(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path))
        return function(path)

    return noting


def _write_shards(root: Path, num: int) -> None:
    """Write a set in shards as `sample --shards` does."""
    folder = ShardFolder(root, num=num, format="packed")
    folder.begin({"shards": num}, replace=False)
    folder.clear_shards(range(num))
    for index in folder.missing():
        statistics, rows = Statistics(), make_rows([f"{index:06d}"])
        images = statistics.watch([np.zeros((1, 3, 1, 1), dtype=np.uint8)])
        write_set(folder.path(index), rows, images, class_names=(), header={}, format="packed")
        folder.finish_shard(index, statistics)
    folder.finish(class_names=(), header={})
