"""A soak: every verb is killed at random moments and at random changes of files, and must end with the same bytes.

`python -m pytest tests/resume/test_soak.py -m slow -s` prints the kills, runs and seconds of every line and verb.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lines import Ended, Fork, Nursery, children, contents
from soak import NAMES, Inputs, Soaked, make_images, make_inputs, soaked

_LOST = (1, 137)  # exit codes of a launcher that lost a process
Table = dict[str, list[tuple[int, int, float]]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Kills, runs and seconds by verb, which are printed at the end."""
    found: Table = {}
    yield found
    rows = {verb: tuple(map(sum, zip(*results, strict=True))) for verb, results in found.items()}
    rows["all"] = tuple(map(sum, zip((0, 0, 0.0), *rows.values(), strict=True)))
    print("\n" + "\n".join(f"{verb}\t{row[0]} kills\t{row[1]} runs\t{row[2]:.0f} s" for verb, row in rows.items()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_soak(name: str, inputs: Inputs, nursery: Nursery, table: Table, tmp_path: Path) -> None:
    started, work = time.monotonic(), soaked(inputs)[name]
    runs = survive(Bench(work, nursery, tmp_path), kills=work.kills, seed=NAMES.index(name))
    seconds = time.monotonic() - started
    print(f"{work.verb}: {name}: {work.kills} kills in {runs} runs, {seconds:.0f} s", flush=True)
    table.setdefault(work.verb, []).append((work.kills, runs, seconds))


def test_every_line_of_the_soak_is_in_its_list(tmp_path: Path) -> None:
    works = soaked(Inputs(tmp_path))
    kills = Counter[str]()
    for work in works.values():
        kills[work.verb] += work.kills
    assert (set(works), min(kills.values()) >= 50, kills.total() >= 1000) == (set(NAMES), True, True), kills


@pytest.mark.parametrize("name", ["materialized directory", "grammar"])
def test_a_kill_at_a_change_of_names(name: str, nursery: Nursery, tmp_path: Path) -> None:
    """The last change of each kind, such as the removal of the lock."""
    (tmp_path / "inputs").mkdir()
    bench = Bench(soaked(make_images(tmp_path / "inputs"))[name], nursery, tmp_path)
    assert {*bench.counts} > {"link", "remove", "fsync", "open", "write"}
    for kind, at in sorted(bench.counts.items()):
        inside = bench.new_folder()
        assert bench.start(inside, kind, at)[0].end().code == -signal.SIGKILL
        bench.check([line.end() for line in bench.start(inside)], inside)


class Bench:
    """A line under test, and what it makes when it is left alone."""

    def __init__(self, work: Soaked, nursery: Nursery, folder: Path) -> None:
        self.work, self._nursery, self._folder = work, nursery, folder
        self._streams, self._num = folder / "streams", 0
        self._streams.mkdir()
        alone, counts = self.new_folder(), folder / "counts.json"
        started = time.monotonic()
        self._wanted_out, self.wanted = "", {}
        self.counts: Counter[str] = Counter()
        ends = []
        for argv in work.argvs(alone):
            line = nursery.start(argv, folder=self._streams, faults={"folder": str(alone), "save": str(counts)})
            ends.append(line.end())
            self.counts |= Counter(json.loads(counts.read_text()))
        assert {end.code for end in ends} == {0}, ends
        self.seconds = (time.monotonic() - started) / len(ends)
        self.wanted = everything(alone)
        self._wanted_out = ends[-1].out.replace(str(alone), "")

    def new_folder(self) -> Path:
        self._num += 1
        inside = self._folder / f"run{self._num}"
        inside.mkdir()
        return inside

    def start(self, inside: Path, kind: str | None = None, at: int = 0) -> list[Fork]:
        faults = None if kind is None else {"folder": str(inside), "kind": kind, "at": at}
        return [self._nursery.start(v, folder=self._streams, faults=faults) for v in self.work.argvs(inside)]

    def draw(self, random: random.Random) -> tuple[str | None, int]:
        """Return a change of files, each kind as often, or None for a moment."""
        kinds = sorted(self.counts)
        kind = random.choice(kinds) if kinds and self.work.processes == 1 and random.random() < 0.5 else None
        return kind, random.randint(1, self.counts[kind]) if kind else 0

    def check(self, ends: list[Ended], inside: Path) -> None:
        assert {end.code for end in ends} == {0}, ends
        found = everything(inside)
        assert found.keys() == self.wanted.keys(), found.keys() ^ self.wanted.keys()
        assert not [name for name in self.wanted if found[name] != self.wanted[name]]
        if len(ends) == 1:
            assert ends[0].out.replace(str(inside), "") == self._wanted_out


def everything(folder: Path) -> dict[str, Any]:
    """Every file below a folder with its content, and every folder."""
    found = contents(folder)
    captions = {name: (folder / name).read_bytes() for name in found if name.endswith(".jsonl") and ".d/" not in name}
    folders = {f"{path.relative_to(folder)}/": None for path in folder.rglob("*") if path.is_dir()}
    return {**found, **captions, **folders}


def survive(bench: Bench, *, kills: int, seed: int) -> int:
    """Kill the lines so many times; return the number of runs that this took."""
    draw, runs = random.Random(seed), 0
    sessions: set[int] = set()
    ends: list[Ended] = []
    while kills > 0:
        inside = bench.new_folder()
        with Watch(inside, bench.wanted) as watch:
            was_killed = True
            while was_killed:
                kind, at = bench.draw(draw) if kills > 0 else (None, 0)
                lines = bench.start(inside, kind, at)
                runs += len(lines)
                sessions |= {line.pid for line in lines}
                if kills > 0 and kind is None:
                    _kill(lines, draw, bench)
                ends = [line.end() for line in lines]
                killed = sum(end.code == -signal.SIGKILL or _lost(end, bench) for end in ends)
                kills, was_killed = kills - killed, killed > 0
        bench.check(ends, inside)
        assert not watch.broken
        assert watch.sightings
    _check_gone(sessions)
    return runs


def _lost(end: Ended, bench: Bench) -> bool:
    return bench.work.processes > 1 and end.code in _LOST


def _kill(lines: list[Fork], draw: random.Random, bench: Bench) -> None:
    """Kill each line at a random moment of its life; of several processes of a line, any one."""
    moments = sorted((draw.uniform(0, 1.05 * bench.seconds), number) for number in range(len(lines)))
    started = time.monotonic()
    for moment, number in moments:
        while time.monotonic() < started + moment and lines[number].runs():
            time.sleep(0.002)
        processes = [lines[number].pid, *children(lines[number].pid)] if bench.work.processes > 1 else []
        if len(processes) > 1 and draw.random() < 0.5 and lines[number].runs():
            os.kill(draw.choice(processes[1:]), signal.SIGKILL)
        else:
            lines[number].signal(signal.SIGKILL)


def _check_gone(sessions: set[int]) -> None:
    """Check that no process of killed lines still runs, for example one that loads data."""
    until = time.monotonic() + 20
    while left := [pid for pid in _processes() if _session_of(pid) in sessions]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@dataclass
class Watch(threading.Thread):
    """Looks at the targets every few milliseconds: whatever is visible must be what an undisturbed line makes."""

    folder: Path
    wanted: dict[str, Any]
    broken: list[str] = field(default_factory=list)
    sightings: int = 0

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        shown = [name for name in self.wanted if not _is_hidden(name)]
        manifests = [name for name in shown if Path(name).name == "manifest.json"]
        self._sets = {name.rpartition("/")[0]: name for name in manifests}
        inside = tuple(f"{root}/" for root in self._sets)
        files = [name for name in shown if not name.endswith("/") and not name.startswith(inside)]
        shards = [root for root in self._sets if f"{root}/shards.json" in self.wanted]
        files += [name for name in shown for root in shards if name.startswith(f"{root}/") and name[-1] != "/"]
        self._alone = tuple(dict.fromkeys(files))
        self._whole = {root: name for root, name in self._sets.items() if root not in shards}
        self._seen: set[str] = set()

    __hash__ = threading.Thread.__hash__

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self._look()

    def run(self) -> None:
        while not self._over.wait(0.003):
            self._look()

    def _look(self) -> None:
        for name in self._alone:
            if name not in self._seen and (self.folder / name).exists():
                self._compare(name, [name])
        for root in self._whole:
            if root not in self._seen and (self.folder / root).exists():
                self._compare(root, [name for name in self.wanted if name.startswith(f"{root}/") and name[-1] != "/"])

    def _compare(self, what: str, names: list[str]) -> None:
        self._seen.add(what)
        self.sightings += 1
        for name in names:
            path = self.folder / name
            if not path.exists() or path.read_bytes() != self.wanted[name]:
                self.broken.append(f"{what}: {name}")


def _is_hidden(name: str) -> bool:
    """Whether a name is of work in progress, or of a file that is not a target."""
    return ".d/" in name or name.rpartition("/")[2].startswith(".") or name == "/"


SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVING_LINES = ("extract", "directory", "server")
OTHER_LINES = ("probe", "fid with a cache", "show a sheet", "materialized directory")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVING_LINES)
def test_each_signal_saves(name: str, inputs: Inputs, nursery: Nursery, tmp_path: Path) -> None:
    bench, codes = Bench(soaked(inputs)[name], nursery, tmp_path), set()
    for number in SIGNALS:
        inside = bench.new_folder()
        (line,) = bench.start(inside)
        while line.runs() and not any(inside.glob("*.d/[!.r]*")):  # saved work, not run.json
            time.sleep(0.002)
        line.signal(number)
        codes.add(line.end().code)
        bench.check([line.end() for line in bench.start(inside)], inside)
    assert 75 in codes
    assert codes <= {0, 75}, codes


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_LINES)
def test_a_verb_without_saved_work_ends_at_once(name: str, inputs: Inputs, nursery: Nursery, tmp_path: Path) -> None:
    bench, draw = Bench(soaked(inputs)[name], nursery, tmp_path), random.Random(1)
    for number in SIGNALS:
        inside = bench.new_folder()
        (line,) = bench.start(inside)
        time.sleep(draw.uniform(0.1, 0.6) * bench.seconds)
        line.signal(number)
        assert line.end(20).code in (0, 130 if number == signal.SIGINT else -number)
        bench.check([line.end() for line in bench.start(inside)], inside)
