"""Keep two jobs that write the same target apart.

A job that makes OUT holds a lock on the file `.OUT.lock` beside it, which names the host and the process. The lock ends
with the process, even if it is killed. A second job waits for a short time, then it is refused.

Temporary files have the host and the process in their names, so that jobs that cannot lock do not mix their files. A
target that another program creates or replaces after this job has claimed it is kept, and the job is refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from corecli.base.errors import BusyError, CannotCreateError

MANIFEST = "manifest.json"  # written last into a directory of images: it marks the directory as complete
WAIT_SEC = 30.0  # as long as SLURM lets a stopped job save (KillWait), so that a requeued job succeeds it
_POLL_SEC = 0.05
_GONE_SEC = 1.0  # a folder that cannot be made for so long is no other job's
_NAME_BYTES = 160  # a longer name of a target is replaced by its hash in names of temporary files
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40]

_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.(?P<host>[A-Za-z0-9-]*)-(?P<process>\d+)(t\d+)?\.(tmp|old)", re.DOTALL)

Version = tuple[int, ...] | None  # what is at a path: its inode and time of change, None for nothing
_claims: dict[Path, Version] = {}  # the targets of this job, as they were when it claimed them or last wrote them


@contextmanager
def claimed(targets: Iterable[Path], *, note: Callable[[str], None]) -> Iterator[None]:
    """Lock targets for the length of the context, and remove what killed jobs have left of them.

    Where no lock is possible, `note` gets a line, or the writer reports what is wrong with the path.
    Errors: BusyError if another job holds a lock for longer than WAIT_SEC.
    """
    with ExitStack() as stack:
        named = {_place(path): path for path in targets}
        for place in sorted(named):  # in one order, so that no two jobs wait for each other
            stack.enter_context(_claimed(place, named[place], note))
        yield


def temporary_path(path: Path, ending: str = "tmp") -> Path:
    """Return the hidden path beside `path` that only this thread writes to."""
    thread = threading.current_thread()
    writer = f"{os.getpid()}" if thread is threading.main_thread() else f"{os.getpid()}t{threading.get_ident()}"
    return path.with_name(f".{_stem(path)}.{_HOST}-{writer}.{ending}")


def remove_leftovers(folder: Path, names: Iterable[str] | None = None, *, alive: bool = False) -> None:
    """Remove temporary files from processes of this host that have died; with `alive`, from any process.

    names: of the targets in the folder whose temporary files are removed, of all by default. The folder is listed once.
    """
    stems = None if names is None else {_stem(folder / name) for name in names}
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if not found or (stems is not None and found["stem"] not in stems):
                continue
            if alive or (found["host"] == _HOST and not _is_alive(int(found["process"]))):
                _remove(Path(entry.path))


def put_file(temporary: Path, path: Path) -> None:
    """Rename a finished file to `path`. Errors: CannotCreateError if the target was claimed and changed since."""
    place = _place(path)
    if place not in _claims:
        os.replace(temporary, path)
        return
    _refuse_change(place)
    if _claims[place] is None:
        _link(temporary, path)
    else:
        os.replace(temporary, path)
    _claims[place] = _version(place)


def put_directory(temporary: Path, path: Path) -> None:
    """Rename a finished directory to `path`, whose earlier content is deleted. Errors: as `put_file`."""
    place, old = _place(path), temporary_path(path, "old")
    if place in _claims:
        _refuse_change(place)
    try:
        if os.path.lexists(path):
            _remove(old)
            os.replace(path, old)  # a directory cannot be replaced in one step
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _changed(path) from error
        raise
    finally:
        _remove(old)
    if place in _claims:
        _claims[place] = _version(place)


@contextmanager
def _claimed(path: Path, shown: Path, note: Callable[[str], None]) -> Iterator[None]:
    lock = path.with_name(f".{_stem(path)}.lock")
    above = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    descriptor = _lock(lock, shown, note)
    remove_leftovers(path.parent, [path.name], alive=descriptor is not None)
    _claims[path] = _version(path)
    try:
        yield
    finally:
        del _claims[path]
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink()
            os.close(descriptor)
        with suppress(OSError):  # folders that were made for the lock and are empty
            for folder in above:
                folder.rmdir()


def _lock(lock: Path, path: Path, note: Callable[[str], None]) -> int | None:
    """Return the open and locked file; None where that is impossible. Errors: BusyError.

    These locks belong to a process, so that data loading processes, which are forks of it, do not keep them alive.
    """
    started, is_noted = time.monotonic(), False
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another job has just removed the empty folder
            if time.monotonic() < started + _GONE_SEC:
                continue
            return None
        except OSError:
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another job"
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                _forgo(lock, path, error, note)
                return None
        else:
            if _is_same(descriptor, lock):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {_HOST}\n".encode(), 0)
                return descriptor
            os.close(descriptor)  # the job that held it has removed it
            continue
        if time.monotonic() >= started + WAIT_SEC:
            raise BusyError(f"{holder} is writing it", where=path, hint="run the same line again when that has ended")
        if not is_noted:
            note(f"{path}: waiting for {holder}, which is writing it")
            is_noted = True
        time.sleep(_POLL_SEC)


def _forgo(lock: Path, path: Path, error: OSError, note: Callable[[str], None]) -> None:
    with suppress(OSError):
        lock.unlink()
    reason = (error.strerror or str(error)).lower()
    note(f"{path}: not locked, because the file system cannot ({reason}); start no second job that writes it")


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _refuse_change(path: Path) -> None:
    if _version(path) != _claims[path]:
        raise _changed(path)


def _changed(path: Path) -> CannotCreateError:
    reason = "was written by another program while this job made it, and is kept"
    return CannotCreateError(reason, where=path, hint="choose another name, or replace it with --force")


def _link(temporary: Path, path: Path) -> None:
    """Rename a file, unless something is at `path`. Errors: CannotCreateError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _changed(path) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def _version(path: Path) -> Version:
    """Return what distinguishes a target from its replacement; a directory is judged by its manifest."""
    try:
        found = os.lstat(path)
        if not path.is_dir():
            return found.st_ino, found.st_mtime_ns
    except OSError:
        return None
    return found.st_ino, *(_version(path / MANIFEST) or ())


def _place(path: Path) -> Path:
    """Return the one absolute path of a target, which may be a link itself."""
    return Path(os.path.realpath(path.parent), path.name)


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    return path.name if len(name) <= _NAME_BYTES else hashlib.sha256(name).hexdigest()[:32]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
