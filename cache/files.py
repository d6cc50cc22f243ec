"""Durable file writing: a reader sees the whole new file or the old one, also after a crash."""

import errno
import hashlib
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil

from cache.errors import CacheError, DamagedCache
from cache.layout import TEMPORARY_SUFFIX

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux: process numbers mean something until the next boot
_PROCESSES = Path("/proc/self/ns/pid")  # Linux: and among the processes of one container
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{32}" + re.escape(TEMPORARY_SUFFIX))
_LARGEST_PROCESS = (1 << 31) - 1  # number of one
_SECONDS_TO_LIVE = 86400  # of a temporary file whose writer cannot be asked for


@cache
def _machine() -> str:
    """Eight hex digits for this machine since it started; containers count as machines, by what processes they see."""
    boot = _BOOT_ID.read_bytes() if _BOOT_ID.is_file() else b""
    processes = os.fsencode(_PROCESSES.readlink()) if _PROCESSES.is_symlink() else b""
    return hashlib.sha256(platform.node().encode() + boot + processes).hexdigest()[:8]


def temporary_name() -> str:
    """A new name for a file being written; it says by which process of which machine."""
    return f".{_machine()}-{os.getpid()}-{uuid4().hex}{TEMPORARY_SUFFIX}"


def is_temporary(path: Path) -> bool:
    """Whether this is the name of a file being written."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_abandoned(temporary: Path) -> bool:
    """Whether nobody writes this temporary file any more: its process has ended, or it is a day old."""
    match = _TEMPORARY.fullmatch(temporary.name)
    if match and match[1] == _machine():
        process = int(match[2])
        return process == os.getpid() or process > _LARGEST_PROCESS or not psutil.pid_exists(process)
    try:
        return time.time() - temporary.stat().st_mtime > _SECONDS_TO_LIVE
    except FileNotFoundError:
        return True


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; OSError for a pipe or a device, which might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def read_undamaged(path: Path, advice: str) -> bytes:
    """The bytes of a file of the cache; DamagedCache where they cannot be read."""
    try:
        return read_regular(path)
    except OSError as error:
        raise DamagedCache(f"{path} cannot be read ({error.strerror}); {advice}") from error


def unwritable(folder: Path, error: OSError, advice: str = "choose another path") -> CacheError:
    """The message for a folder that the system lets nobody write in."""
    return CacheError(f"cannot write in {folder}: {error.strerror or error}; {advice}")


def unwritten(path: Path, error: OSError) -> CacheError:
    """The message for a file that could not be written; no rows are lost by that."""
    return CacheError(
        f"could not write {path}: {error.strerror or error}; "
        "what was written before is kept: make room or fix the disk, then rerun the command"
    )


def refuse_unwritable(folder: Path, advice: str = "choose another path") -> None:
    """CacheError where no file can be made in `folder`, which need not exist yet; this is tried, and leaves nothing."""
    existing, missing = folder.absolute(), Path()
    while not os.path.lexists(existing):
        existing, missing = existing.parent, existing.name / missing
    trial = existing / temporary_name()
    try:
        if missing.parts:
            (trial / missing).mkdir(parents=True)
        else:
            trial.touch(exist_ok=False)
            trial.unlink()
    except OSError as error:
        raise unwritable(folder, error, advice) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for what takes the place of `path` when the block ends, durably; on an error nothing changes.

    The folder is made if it does not exist. CacheError where the system refuses, in the block too.
    """
    with _replacing_together(path.parent, [path.name]) as temporaries:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporaries[path.name]


def write_atomically(path: Path, *data: bytes | memoryview) -> None:
    """Write `data`, one after the other, to `path`, durably: a reader sees all of it, or what was there before.

    CacheError where the system refuses; a file that was there before is kept.
    """
    with _replacing_together(path.parent, [path.name]) as temporaries, open(temporaries[path.name], "xb") as file:
        file.writelines(data)


def write_together(folder: Path, contents: Mapping[str, bytes | memoryview], removed: Iterable[str] = ()) -> None:
    """Write several files of `folder` as one: all are on the disk under temporary names before the first is renamed.

    The files `removed` are removed just before that, so the folder is incomplete for some milliseconds only. Errors as
    of `write_atomically`.
    """
    with _replacing_together(folder, contents, removed) as temporaries:
        for name, temporary in temporaries.items():
            with open(temporary, "xb") as file:
                file.write(contents[name])


@contextmanager
def _replacing_together(folder: Path, names: Iterable[str], removed: Iterable[str] = ()) -> Iterator[dict[str, Path]]:
    """Temporary paths by name; renamed in this order when all are durable and `removed` is gone."""
    temporaries = {name: folder / temporary_name() for name in names}
    try:
        yield temporaries
        for temporary in temporaries.values():
            _sync(temporary)
        for name in removed:
            (folder / name).unlink(missing_ok=True)
        for name, temporary in temporaries.items():
            os.replace(temporary, folder / name)
        sync_folder(folder)
    except OSError as error:
        raise unwritten(folder / ", ".join(temporaries), error) from error
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):  # as on a disk that became read-only: the error above says so
                temporary.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file, durably; one that a kill cut short before stays a line of its own.

    CacheError where the system refuses; the file is then as it was.
    """
    try:
        with open(path, "a+b", buffering=0) as file:
            before = file.tell()
            if before:
                file.seek(-1, os.SEEK_END)
                line = b"\n" * (file.read(1) != b"\n") + line
            try:
                written = file.write(line + b"\n")
                if written != len(line) + 1:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)  # part of a line would be read as one
                raise
    except OSError as error:
        raise unwritten(path, error) from error


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def remove(files: Iterable[Path]) -> None:
    """Remove files, durably; one that is gone already is no error."""
    files = list(files)
    for file in files:
        file.unlink(missing_ok=True)
    for folder in {file.parent for file in files}:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system can open a folder at all."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
