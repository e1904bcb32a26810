"""Check and run `corecli verify`."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from corecli.base.errors import CorecliError, DataError, MissingInputError
from corecli.base.files import missing
from corecli.base.outcome import Outcome
from corecli.base.sums import Watch
from corecli.commands.verify.options import Config
from corecli.commands.verify.parents import Parent, find_parents
from corecli.commands.verify.paths import check_path, num_bytes
from corecli.data.imageset import is_named
from corecli.engine.environment import find_launch
from corecli.engine.progress import Progress

IS_ALONE = True  # torch is imported only for torch files
_AFTER_SEC = 1.5  # a shorter check shows no progress
_MB = 1_000_000


@dataclass(kw_only=True)
class Report:
    """What was found at a path."""

    path: str
    kind: str | None = None
    watch: Watch = field(default_factory=Watch)
    parents: list[Parent] = field(default_factory=list)
    error: CorecliError | None = None

    @property
    def status(self) -> str:
        """ok, missing or differs."""
        if self.error is None:
            return "ok"
        return "missing" if isinstance(self.error, MissingInputError) else "differs"

    def line(self) -> str:
        """Return the line for people."""
        if self.error is not None:
            return f"{self.path}\t{self.status}\t{self.error}"
        watch, compared = self.watch, sum(parent.state == "ok" for parent in self.parents)
        parts = [str(self.kind), _size(watch.num_bytes), _counted(watch.num_hashes, "hash", "hashes")]
        parts += [_counted(compared, "parent", "parents")] if compared else []
        return f"{self.path}\tok\t{', '.join(parts)}"

    def record(self) -> dict[str, Any]:
        """Return the object for --json."""
        return {
            "path": self.path,
            "status": self.status,
            "kind": self.kind,
            "bytes": self.watch.num_bytes,
            "hashes": self.watch.num_hashes,
            "parents": [asdict(parent) for parent in self.parents],
            "notes": self.watch.notes,
            "error": None if self.error is None else str(self.error),
        }


class _Shown(Watch):
    """A watch that shows progress once a check has taken longer than a moment."""

    def __init__(self, spec: str, *, shown: bool) -> None:
        super().__init__()
        self._spec, self._shown, self._started = spec, shown, time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, num_bytes: int) -> None:
        super().__call__(num_bytes)
        if self._progress is None and self._shown and time.monotonic() - self._started > _AFTER_SEC:
            self._progress = Progress(f"verify {self._spec} (MB)", total=max(1, self._total() // _MB))
            self._progress.__enter__()
        if self._progress is not None:
            self._progress.advance(self.num_bytes // _MB - self._progress.done)

    def close(self) -> None:
        """Remove the progress."""
        if self._progress is not None:
            self._progress.__exit__()

    def _total(self) -> int:
        return max(num_bytes(self._spec), self.num_bytes)


def check(config: Config) -> dict[str, Any]:
    """Return the size of what would be read. Errors: MissingInputError with --dry-run, which reads nothing."""
    for spec in config.paths if config.dry_run else ():
        if not is_named(spec) and not Path(spec).exists():
            raise missing(spec, "file or directory")
    return {"bytes": sum(map(num_bytes, config.paths))} if config.dry_run else {}


def run(config: Config) -> Outcome:
    """Check every path. The outcome has the first error, or how many paths have one."""
    if find_launch(os.environ).rank > 0:
        return Outcome()
    reports = [_report(spec, config) for spec in config.paths]
    notes = tuple(note for report in reports for note in _notes(report))
    lines = tuple(report.line() for report in reports)
    return Outcome(
        lines=lines, records=tuple(report.record() for report in reports), notes=notes, failure=_failure(reports)
    )


def _report(spec: str, config: Config) -> Report:
    watch = _Shown(spec, shown=not config.quiet)
    report = Report(path=spec, watch=watch)
    try:
        report.kind, record = check_path(spec, watch)
        report.parents = find_parents(Path(spec), record)
        _require_parents(report, config, watch)
    except CorecliError as error:
        report.error = error
    finally:
        watch.close()
    return report


def _require_parents(report: Report, config: Config, watch: Watch) -> None:
    """Check that parents have their fingerprints and, with --parents, that they exist and are whole."""
    seen: set[str] = set()
    todo = [(Path(report.path), parent) for parent in report.parents]
    while todo:
        path, parent = todo.pop(0)
        if parent.state == "differs":
            reason = f"{parent.place} is not the {parent.name} that it was made from"
            raise DataError(reason, where=path, hint=f"its fingerprint was {parent.fingerprint[:12]}")
        if not config.parents:
            continue
        if parent.place is None:
            raise MissingInputError(f"its {parent.name} {parent.spec} is not there", where=path)
        if parent.place not in seen:
            seen.add(parent.place)
            _, record = check_path(parent.place, watch)
            above = find_parents(Path(parent.place), record)
            report.parents += above
            todo += [(Path(parent.place), one) for one in above]


def _notes(report: Report) -> list[str]:
    absent = [parent for parent in report.parents if parent.state in ("not found", "not compared")]
    return [*report.watch.notes, *(f"{report.path}: its {one.name} {one.spec} was {one.state}" for one in absent)]


def _failure(reports: list[Report]) -> CorecliError | None:
    errors = [report.error for report in reports if report.error is not None]
    if len(errors) <= 1:
        return next(iter(errors), None)
    codes = [error.exit_code for error in errors]
    code = next((code for code in (DataError.exit_code, MissingInputError.exit_code) if code in codes), codes[0])
    reason = f"{len(errors)} of {len(reports)} paths differ or are missing"
    return CorecliError(reason, hint="their lines on standard output say why", exit_code=code)


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"


def _counted(num: int, one: str, many: str) -> str:
    return f"{num} {one if num == 1 else many}"
