"""One writer at a time, or several of different parts: the lock, who holds it, and clearing what a killed writer left.

The lock keeps writers from doing work twice. Nothing that is served depends on it: shards land whole under the
digest of their contents, and a writer's temporary files are left alone while it lives. Other folders, such as runs,
are locked alike with `claimed`.
"""

import errno
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cache import layout
from cache.errors import CacheBusy, CacheError
from cache.files import is_abandoned, read_regular, refuse_unwritable, unwritable, write_atomically

try:
    import fcntl
except ImportError:  # as on Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of a file system without them
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}  # EACCES: of locks that are emulated, as over NFS
_SECONDS_BETWEEN_TRIES = 0.2

Say = Callable[[str], None]


@contextmanager
def writing(cache: Path, part: tuple[int, int] | None = None, say: Say = lambda _: None) -> Iterator[None]:
    """Hold the cache for writing and clear what a killed writer left; CacheBusy says who else holds it.

    With `part` (i, n), others may write beside this one, each another part. Where the file system has no locks, that
    is said, and the work goes on.
    """
    with _alone(cache, say) if part is None else _beside_others(cache, *part, say):
        check_writable(cache)
        _clear(_folders(cache))
        yield


def check_free(cache: Path, part: tuple[int, int] | None = None) -> None:
    """CacheBusy where another process writes the cache, or the part, before work is done for it; makes nothing."""
    if cache.is_dir():
        with writing(cache, part):
            return


@contextmanager
def claimed(folder: Path, say: Say = lambda _: None, patience: float = math.inf) -> Iterator[None]:
    """Hold `folder`, made if it does not exist, alone; another process that holds it is waited for, which is said.

    After `patience` seconds CacheBusy says who holds it. A killed process holds nothing. In the end nothing of the
    claim is left, nor the folder if it was made here and is empty.
    """
    made, waited, end = not os.path.lexists(folder), False, time.monotonic() + patience
    try:
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(_alone(folder, say, remove=True))
                    break
                except CacheBusy:
                    if time.monotonic() >= end:
                        raise
                if not waited:
                    say(f"{_holder(folder)} is writing {folder}: waiting until it ends")
                waited = True
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
def _beside_others(cache: Path, number: int, parts: int, say: Say) -> Iterator[None]:
    """The cache's lock shared with other parts, the part's own alone."""
    with ExitStack() as held:
        if not held.enter_context(_locked(cache, layout.LOCK_FILE, say, shared=True)):
            raise _busy(cache)
        if not held.enter_context(_locked(cache, layout.part_lock(number, parts), lambda _: None)):
            raise CacheBusy(f"another process computes part {number}/{parts} of {cache}: leave it to that")
        yield


@contextmanager
def _alone(cache: Path, say: Say, remove: bool = False) -> Iterator[None]:
    with _locked(cache, layout.LOCK_FILE, say, remove=remove) as held:
        if not held:
            raise _busy(cache)
        holder = cache / layout.HOLDER_FILE
        try:
            about = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            with suppress(CacheError):  # only a courtesy to others: what a full disk means, the first shard will say
                write_atomically(holder, json.dumps(about).encode())  # not through a link that lies there
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def _locked(cache: Path, name: str, say: Say, shared: bool = False, remove: bool = False) -> Iterator[bool]:
    """Hold a lock of the cache, made if it is not there; yields False where another holds it, or just removed it.

    A `shared` lock others may share. With `remove`, the lock file is removed when it is released.
    """
    file, held = cache / name, False
    try:
        cache.mkdir(parents=True, exist_ok=True)
        handle = _open(file)
    except OSError as error:
        raise unwritable(cache, error) from error
    if handle is None:
        yield False
        return
    try:
        held = _flock(cache, handle, shared, say)
        if held and remove and os.fstat(handle).st_nlink == 0:  # removed between opening and locking it
            held = False
        yield held
    finally:
        if held and remove:
            file.unlink(missing_ok=True)
        os.close(handle)


def _open(file: Path) -> int | None:
    """A handle of the lock file; None where its folder was removed just now."""
    try:
        # Open for both: over NFS a shared lock needs a file open for reading, and one held alone for writing.
        return os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    except FileNotFoundError:
        if file.parent.exists():
            raise
        return None


def _flock(cache: Path, handle: int, shared: bool, say: Say) -> bool:
    if fcntl is None:
        say("this system has no file locks that Headgraft uses: two writers of one cache may do the same work")
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise unwritable(cache, error) from error
        say(f"{cache} is on a file system without locks ({error.strerror}): two writers there may do the same work")
    return True


def _busy(cache: Path) -> CacheBusy:
    return CacheBusy(f"{_holder(cache)} is writing {cache}: wait until it ends, then run this again")


def _holder(cache: Path) -> str:
    """Who holds the lock, in words; it wrote so itself."""
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
