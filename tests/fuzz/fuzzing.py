"""Run command lines on mutated files: `python tests/fuzz/fuzzing.py --case KIND:SEED` repeats one case.

The process imports everything once and forks workers, in which cases run one after another. A case fails if it ends in
a traceback, in exit code 1 or in an undocumented one, in a signal, after more than 10 seconds, with more than one line
of error, with a part of its target in place, after using too much memory, or, for files with hashes, with another
result than from the undamaged file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import fnmatch
import hashlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_SEC = 10.0  # of computing
LONGEST_WAIT_SEC = 60.0  # on a machine that does other things as well
MOST_BYTES = 1 << 29  # of memory that a case may use more than the process before it
ADDRESS_BYTES = 2 << 30  # of address space, likewise
CODES = {0, 2, 65, 66, 69, 73, 74, 75, 78}
_INDEX = ".*index.safetensors"  # of a tar, written by whoever reads it


class Case(NamedTuple):
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}"


class Result(NamedTuple):
    """How a case ended; `problem` is empty if it did as it should."""

    case: Case
    what: str
    code: int
    problem: str
    message: str
    seconds: float


def main() -> int:
    """Run the cases that the arguments name, print what fails, and return whether something did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="*")
    parser.add_argument("--case", help="KIND:SEED")
    parser.add_argument("--debug", action="store_true", help="show the traceback of the case")
    parser.add_argument("--json", type=Path, help="file for a summary")
    options = parser.parse_args()
    started = time.monotonic()
    _import_everything()
    from kinds import KINDS

    only = options.case.partition(":")[0] if options.case else options.only
    names = [name for name in KINDS if fnmatch.fnmatch(name, only)]
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as folder:
        root = Path(folder)
        opened = _in_fork(lambda: _prepare(root, names))
        print(f"{len(names)} kinds of files, ready after {time.monotonic() - started:.0f} s", flush=True)
        if options.case:
            kind, seed = options.case.split(":")
            cases = [Case(kind, int(seed))]
            if options.debug:
                os.environ["CORECLI_DEBUG"] = "1"
        else:
            cases = choose(names, options.cases, options.seed)
        results = list(_run_all(cases, root, options.workers))
    bad = [result for result in results if result.problem]
    for result in bad if not options.case else results:
        print(f"{result.case} [{result.what}] exit {result.code}, {result.seconds:.1f} s: {result.problem}")
        print("    " + result.message.strip().replace("\n", "\n    "))
    summary = summarize(results, time.monotonic() - started)
    print(json.dumps({name: value for name, value in summary.items() if name != "kinds"}))
    if options.json:
        options.json.write_text(json.dumps({**summary, **opened, "bad": [r._asdict() for r in bad]}))
    return len(bad) > 0


def choose(names: list[str], num: int, seed: int) -> list[Case]:
    """Return `num` cases, shared among the kinds by their weight; each kind has at least one."""
    from kinds import KINDS

    total = sum(KINDS[name].weight for name in names)
    counts = {name: max(1, round(num * KINDS[name].weight / total)) for name in names}
    cases = [Case(name, seed * 1_000_000 + i) for name, count in counts.items() for i in range(count)]
    random.Random(seed).shuffle(cases)
    return cases[:num] if num < len(cases) else cases


def summarize(results: list[Result], seconds: float) -> dict[str, Any]:
    """Return counts of cases, exit codes and problems, and for each kind its cases and the seconds they computed."""
    by_kind: dict[str, list[float]] = collections.defaultdict(list)
    for result in results:
        by_kind[result.case.kind].append(result.seconds)
    return {
        "cases": len(results),
        "seconds": round(seconds, 1),
        "case_seconds": round(sum(result.seconds for result in results), 1),
        "slowest": round(max(result.seconds for result in results), 2),
        "codes": dict(collections.Counter(result.code for result in results)),
        "problems": dict(collections.Counter(result.problem.partition(":")[0] for result in results if result.problem)),
        "kinds": {kind: [len(found), round(sum(found), 2)] for kind, found in sorted(by_kind.items())},
    }


# Workers


def _run_all(cases: list[Case], root: Path, num: int) -> Iterator[Result]:
    """Run the cases in workers, and again alone those that end or hold a worker up."""
    left = list(reversed(cases))
    again: collections.Counter[Case] = collections.Counter()
    workers = [_Worker(root, index) for index in range(num)]
    while left or any(worker.case for worker in workers):
        for worker in workers:
            if worker.case is None and left:
                worker.start(left.pop())
        busy = {worker.results: worker for worker in workers if worker.case}
        for ready in select.select(list(busy), [], [], 0.2)[0]:
            yield busy[ready].result()
        for worker in workers:
            if worker.case and worker.is_late():
                case, trace = worker.case, worker.kill()
                again[case] += 1
                if again[case] < 2:
                    left.append(case)
                else:
                    yield Result(case, "", -9, f"hang: more than {LONGEST_SEC:.0f} s", trace, LONGEST_SEC)
    for worker in workers:
        worker.kill()


class _Worker:
    """A fork that runs cases; a new one after a case that ended it."""

    def __init__(self, root: Path, index: int) -> None:
        self._root, self._index, self._pid = root, index, 0
        self.case: Case | None = None
        self.since = self._used = 0.0
        self.results = -1

    def start(self, case: Case) -> None:
        if not self._pid:
            self._fork()
        self.case, self.since, self._used = case, time.monotonic(), _cpu_seconds(self._pid)
        os.write(self._requests, f"{case}\n".encode())

    def is_late(self) -> bool:
        """Whether the current case has computed, or waited, for too long."""
        passed = time.monotonic() - self.since
        return passed > LONGEST_WAIT_SEC or (
            passed > LONGEST_SEC and _cpu_seconds(self._pid) - self._used > LONGEST_SEC
        )

    def result(self) -> Result:
        """Return the result of the current case, once `results` can be read."""
        assert self.case is not None
        text = b""
        while not text.endswith(b"\n"):
            part = os.read(self.results, 1 << 16)
            if not part:
                return self._died(self.case)
            text += part
        case, self.case = self.case, None
        found = json.loads(text)
        return Result(case, *found)

    def kill(self) -> str:
        """Kill the process; return where it was."""
        trace = ""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGUSR1)
                time.sleep(0.2)
                os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._close()
            path = self._root / f"trace-{self._index}"
            trace = path.read_text() if self.case and path.exists() else ""
        self._pid, self.case = 0, None
        return trace

    def _died(self, case: Case) -> Result:
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._close()
        self._pid, self.case = 0, None
        seconds = time.monotonic() - self.since
        return Result(case, "", status, f"died: {status}", (self._root / f"trace-{self._index}").read_text(), seconds)

    def _fork(self) -> None:
        theirs, self._requests = os.pipe()
        self.results, ours = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(self.results)
            try:
                _serve(self._root, self._index, theirs, ours)
            except BaseException:  # noqa: BLE001
                (self._root / f"trace-{self._index}").write_text(traceback.format_exc())
            os._exit(9)
        os.close(theirs)
        os.close(ours)

    def _close(self) -> None:
        os.close(self._requests)
        os.close(self.results)


def _serve(root: Path, index: int, requests: int, results: int) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the process that forked it
    trace = open(root / f"trace-{index}", "w")
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace)
    space = _memory("VmSize") + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    work = root / f"work-{index}"
    for text in os.fdopen(requests):
        kind, seed = text.strip().split(":")
        result = run_case(Case(kind, int(seed)), root, work)
        os.write(results, json.dumps(result[1:]).encode() + b"\n")
        if _memory("VmRSS") > _memory_at_start + 2 * MOST_BYTES:
            os._exit(0)


# One case


def run_case(case: Case, root: Path, work: Path) -> Result:
    """Run one case in the folder `work`."""
    from kinds import KINDS
    from mutations import damage, forge, replace_file

    warnings.filterwarnings("ignore", message="Duplicate name")  # of the mutations
    kind, rng = KINDS[case.kind], random.Random(str(case))
    _copy(root / case.kind, work)
    os.chdir(work)
    paths = sorted({path for pattern in kind.files for path in work.glob(pattern) if path.is_file()})
    path = rng.choice(paths)
    number = rng.randrange(len(kind.lines)) if kind.lines else 0
    how = rng.choices(["damage", "forge", "replace"], [0.4, 0.55, 0.05])[0]
    what = f"{how} {path.relative_to(work)}"
    if how == "replace":
        what = f"{replace_file(path, rng)} {path.relative_to(work)}"
    else:
        content = path.read_bytes()
        path.write_bytes(damage(content, rng) if how == "damage" else forge(content, path.name, rng))
    before = _listed(work)
    started = time.process_time()
    code, err, used, made = _open(case.kind, number, root, work, before)
    seconds = time.process_time() - started
    problem = _problem(code, err, used, made, is_option=case.kind.startswith("config-"))
    undamaged = json.loads((root / f"{case.kind}.{number}.json").read_text())
    if not problem and how == "damage" and kind.hashed and code == 0 and made != undamaged:
        problem = "silent: another result from a damaged file"
    os.chdir(root)
    return Result(case, what, code, problem, err[-3000:], seconds)


def _problem(code: int, err: str, used: int, made: dict[str, str], *, is_option: bool = False) -> str:
    """Return what is wrong with the end of a case, or nothing."""
    lines = err.splitlines()
    errors = [text for text in lines if ": error: " in text]
    if "Traceback" in err:
        return "traceback: " + lines[-1][:100]
    if code == 1 and "out of memory" in err and is_option:
        return ""  # images may be of any size
    if code not in CODES:
        return f"exit code {code}"
    if used > MOST_BYTES:
        return f"memory: {used >> 20} MiB"
    if len(errors) != (code != 0) or not all(re.match(r"corecli( [a-z-]+)?: ", text) for text in lines):
        return f"stderr: {len(lines)} lines"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", err):
        return "stderr: control characters"
    if code and made:
        return f"partial: {', '.join(made)}"
    left = [name for name in made if Path(name).name.startswith(".") and not fnmatch.fnmatch(Path(name).name, _INDEX)]
    return f"left over: {', '.join(left)}" if left else ""


def _open(kind: str, number: int, root: Path, work: Path, before: set[str]) -> tuple[int, str, int, dict[str, str]]:
    """Run a line of a kind in `work`; return (exit code, stderr, bytes of memory used, hashes of new files)."""
    from kinds import KINDS

    from corecli.cli.app import run_line

    found = KINDS[kind]
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    at_start = _memory("VmRSS")
    with _redirected(root / f"out-{work.name}", root / f"err-{work.name}"), _environment(found.environment):
        if found.call is not None:
            code = _called(found.call, work)
        else:
            words = found.lines[number].replace("$S", str(root / "shared")).split()
            try:
                code = run_line(words)
            except Exception:  # noqa: BLE001, with CORECLI_DEBUG
                traceback.print_exc()
                code = 1
    used = _memory("VmHWM") - at_start
    err = (root / f"err-{work.name}").read_text(errors="backslashreplace")
    made = {name: _hash(work / name) for name in sorted(_listed(work) - before) if _is_result(name)}
    made |= {"-": _hash(root / f"out-{work.name}")} if code == 0 else {}
    return code, err, used, made


def _called(call: Any, work: Path) -> int:
    """Call a reader that no verb has; report its error as a verb does."""
    from corecli.base.errors import CorecliError

    try:
        call(work)
    except CorecliError as error:
        print(f"corecli: error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        print(f"corecli: error: unexpected: {error}", file=sys.stderr)
        return 1
    return 0


def _is_result(name: str) -> bool:
    """Whether a new file is a result, not work in progress or an index beside a tar."""
    return not re.search(r"\.d(/|$)", name) and not fnmatch.fnmatch(Path(name).name, _INDEX)


def _copy(original: Path, work: Path) -> None:
    if work.exists():
        for path in work.rglob("*"):  # whatever a case has left may be opened by the next
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(work)
    shutil.copytree(original, work, symlinks=True)


def _listed(work: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(work):
        found |= {os.path.relpath(os.path.join(folder, name), work) for name in (*folders, *files)}
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@contextlib.contextmanager
def _redirected(out: Path, err: Path) -> Iterator[None]:
    """Send what is written to the standard streams to files."""
    kept = [os.dup(number) for number in range(3)]
    try:
        for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]


def _cpu_seconds(pid: int) -> float:
    """Return how long a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(name: str) -> int:
    """Return a number of bytes from the status of this process."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) << 10  # pyright: ignore[reportOptionalSubscript]


# Before the first case


_memory_at_start = 0


def _import_everything() -> None:
    """Import what the lines import, and remove what the environment sets."""
    global _memory_at_start  # noqa: PLW0603
    for name in [name for name in os.environ if name.startswith("CORECLI_")]:
        del os.environ[name]
    os.environ |= {"CORECLI_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    import diffusers  # noqa: F401
    import kinds  # noqa: F401
    import torch
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    from corecli.cli.verbs import VERBS, command_of

    torch.set_num_threads(1)
    for verb in VERBS:
        command_of(verb)
    _memory_at_start = _memory("VmRSS")


def _prepare(root: Path, names: list[str]) -> dict[str, Any]:
    """Write the files of the kinds and open each undamaged; return the functions that each calls, and the headers."""
    from kinds import KINDS, write_all

    opened, wrong = {}, []
    with _redirected(root / "made-out", root / "made-err"):
        write_all(root, names)
    for name in names:
        called: set[str] = set()
        for number in range(max(1, len(KINDS[name].lines))):
            work = root / "work"
            _copy(root / name, work)
            os.chdir(work)
            with _watched(called):
                code, err, used, made = _open(name, number, root, work, _listed(work))
            problem = _problem(code, err, used, made)
            if code != KINDS[name].code or problem:
                wrong.append(f"{name}, line {number}: exit code {code}: {problem} {err}")
            (root / f"{name}.{number}.json").write_text(json.dumps(made))
        opened[name] = sorted(called)
    os.chdir(root)
    assert not wrong, "undamaged files fail:\n" + "\n".join(wrong)
    return {"opened": opened, "headers": _headers(root, names)}


def _headers(root: Path, names: list[str]) -> list[str]:
    """Return the kinds of headers of corecli in the files of all kinds."""
    from corecli.base.checkpoint import find_header
    from corecli.base.errors import DataError

    found = set()
    for path in (path for name in names for path in (root / name).rglob("*") if path.is_file()):
        with contextlib.suppress(DataError):  # what is stored beside a set has a header of its own
            found.add((find_header(path) or {}).get("kind"))
    return sorted(found - {None})


@contextlib.contextmanager
def _watched(called: set[str]) -> Iterator[None]:
    """Collect the functions of corecli that are called, as `data/masks.py:MaskedImages.read_mask`."""
    import corecli

    package = str(Path(corecli.__file__).parent) + "/"

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(package):
            called.add(f"{code.co_filename.removeprefix(package)}:{code.co_qualname}")

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def _in_fork(work: Any) -> Any:
    """Return what a function returns in a fork, whose threads and caches this process does not get."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            text = json.dumps(work())
            with open(writing, "w") as file:
                file.write(text)
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the files could not be made")
    return json.loads(text)


if __name__ == "__main__":
    sys.exit(main())
