"""One writer at a time, or several of different parts: the lock, who holds it, and clearing what a killed writer left.

The lock keeps writers from doing work twice. Nothing that is served depends on it: shards land whole under the
digest of their contents, and a writer's temporary files are left alone while it lives. Other folders, such as runs,
are locked alike with `claimed`.
"""

import errno
import json
import logging
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from cache import layout
from cache.errors import CacheBusy, CacheError
from cache.files import is_abandoned, read_regular, refuse_unwritable, unwritable, write_atomically

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("headgraft.cache")

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of a file system without them
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}  # EACCES: of locks that are emulated, as over NFS
_SECONDS_BETWEEN_TRIES = 0.2


@contextmanager
def writing(cache: Path, part: tuple[int, int] | None = None, quiet: bool = False) -> Iterator[None]:
    """Hold the cache for writing and clear what a killed writer left; CacheBusy says who else holds it.

    With `part` (i, n), others may write beside this one, each another part. Where the file system has no locks, that
    is logged unless `quiet`, and the work goes on.
    """
    with ExitStack() as held:
        if part is None:
            held.enter_context(_alone(cache, quiet))
        else:
            held.enter_context(_locked(cache, layout.LOCK_FILE, quiet, shared=True))
            number, parts = part
            what = f"part {number}/{parts} of {cache}"
            held.enter_context(_locked(cache, layout.part_lock(number, parts), quiet=True, what=what))
        check_writable(cache)
        _clear(_folders(cache))
        yield


def check_free(cache: Path, part: tuple[int, int] | None = None) -> None:
    """CacheBusy where another process writes the cache, or the part, before work is done for it; makes nothing."""
    if cache.is_dir():
        with writing(cache, part, quiet=True):
            return


@contextmanager
def claimed(folder: Path, patience: float = math.inf) -> Iterator[None]:
    """Hold `folder`, made if it does not exist, alone; another process that holds it is waited for, which is logged.

    After `patience` seconds CacheBusy says who holds it. A killed process holds nothing. In the end nothing of the
    claim is left, nor the folder if it was made here and is empty.
    """
    made, end = not os.path.lexists(folder), time.monotonic() + patience
    try:
        with ExitStack() as held:
            for tries in count():
                try:
                    held.enter_context(_alone(folder, remove=True))
                    break
                except CacheBusy:
                    if time.monotonic() >= end:
                        raise
                if not tries:
                    logger.info(f"{_holder(folder)} is writing {folder}: waiting until it ends")
                time.sleep(_SECONDS_BETWEEN_TRIES)
            _clear([folder])
            yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_writable(cache: Path) -> None:
    """CacheError where files of the cache could not be written; the cache need not exist yet."""
    for folder in _folders(cache):
        refuse_unwritable(folder)


@contextmanager
def _alone(folder: Path, quiet: bool = False, remove: bool = False) -> Iterator[None]:
    """Hold the folder's lock alone, and say so to others in a file."""
    with _locked(folder, layout.LOCK_FILE, quiet, remove=remove):
        holder = folder / layout.HOLDER_FILE
        try:
            about = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            with suppress(CacheError):  # only a courtesy to others: what a full disk means, the first shard will say
                write_atomically(holder, json.dumps(about).encode())  # not through a link that lies there
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def _locked(
    folder: Path, name: str, quiet: bool = False, shared: bool = False, remove: bool = False, what: str = ""
) -> Iterator[None]:
    """Hold a lock of the folder, or of `what`, made if it is not there; CacheBusy where another has it or removed it.

    A `shared` lock others may share. With `remove`, the lock file is removed when it is released.
    """
    # Open for both: over NFS a shared lock needs a file open for reading, and one held alone for writing.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    made = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = True
        handle = os.open(folder / name, flags, 0o666)
    except OSError as error:
        # Whoever held it removed the folder just now, after it was made here, or while it was found to be there.
        gone = isinstance(error, FileNotFoundError) if made else isinstance(error, FileExistsError)
        if gone and (folder.is_dir() or not os.path.lexists(folder)):
            raise _busy(folder, what) from error
        raise unwritable(folder, error) from error
    try:
        held = _flock(folder, handle, shared, quiet)
        if not held or (remove and os.fstat(handle).st_nlink == 0):  # removed between opening and locking it
            raise _busy(folder, what)
        try:
            yield
        finally:
            if remove:
                (folder / name).unlink(missing_ok=True)
    finally:
        os.close(handle)


def lack_of_locks(folder: Path) -> str:
    """Why files in `folder`, which exists and can be written, cannot be locked; "" where they can. Leaves nothing."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return _try_lock(folder, file.fileno())[1]


def _flock(cache: Path, handle: int, shared: bool, quiet: bool) -> bool:
    held, without = _try_lock(cache, handle, shared)
    if without and not quiet:
        logger.warning(f"{without}: two writers there may do the same work")
    return held


def _try_lock(cache: Path, handle: int, shared: bool = False) -> tuple[bool, str]:
    """Whether no other process holds the lock, and why there are no locks here, "" where there are."""
    if fcntl is None:
        return True, "this system has no file locks that Headgraft uses"
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True, ""
    except OSError as error:
        if error.errno in _HELD:
            return False, ""
        if error.errno not in _NO_LOCKS:
            raise unwritable(cache, error) from error
        return True, f"{cache} is on a file system without locks ({error.strerror})"


def _busy(folder: Path, part: str) -> CacheBusy:
    holder = "another process" if part else _holder(folder)  # whoever computes a part does not write that it does
    return CacheBusy(f"{holder} is writing {part or folder}: wait until it ends, then run this again")


def _holder(cache: Path) -> str:
    """Who holds the folder alone, as it wrote itself."""
    try:
        about = json.loads(read_regular(cache / layout.HOLDER_FILE))
        return f"process {about['process']} on {about['machine']} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _folders(cache: Path) -> tuple[Path, ...]:
    return (cache, *(cache / name for name in layout.FOLDERS))


def _clear(folders: Iterable[Path]) -> None:
    for folder in folders:
        for left in folder.glob(f".*{layout.TEMPORARY_SUFFIX}"):
            if is_abandoned(left):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
