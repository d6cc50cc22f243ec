"""One writer at a time, or several of different parts: the lock, who holds it, and clearing what a killed writer left.

The lock keeps writers from doing work twice. Nothing that is served depends on it: shards land whole under the
digest of their contents, and a writer's temporary files are left alone while it lives.
"""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cache import layout
from cache.errors import CacheBusy, CacheError
from cache.files import is_abandoned, read_regular, write_atomically


@contextmanager
def writing(cache: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the cache for writing and clear what a killed writer left; CacheBusy says who else holds it.

    With `part` (i, n), others may write beside this one, each another part.
    """
    with _alone(cache) if part is None else _beside_others(cache, *part):
        _clear(cache)
        yield


@contextmanager
def _beside_others(cache: Path, number: int, parts: int) -> Iterator[None]:
    """The cache's lock shared with other parts, the part's own alone."""
    with ExitStack() as held:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            shared = held.enter_context(open(cache / layout.LOCK_FILE, "a"))
            fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
            held.enter_context(FileLock(cache / layout.part_lock(number, parts)).acquire(blocking=False))
        except Timeout as error:
            raise CacheBusy(f"another process computes part {number}/{parts} of {cache}: leave it to that") from error
        except BlockingIOError as error:
            raise _busy(cache) from error
        except OSError as error:
            raise _unwritable(cache, error) from error
        yield


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / layout.LOCK_FILE)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise _busy(cache) from error
    except OSError as error:
        raise _unwritable(cache, error) from error
    holder = cache / layout.HOLDER_FILE
    try:
        about = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(CacheError):  # only a courtesy to others: what a full disk means, the first shard will say
            write_atomically(holder, json.dumps(about).encode())  # not through a link that lies there
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _busy(cache: Path) -> CacheBusy:
    return CacheBusy(f"{_holder(cache)} is writing {cache}: wait until it ends, then run this again")


def _unwritable(cache: Path, error: OSError) -> CacheError:
    return CacheError(f"cannot write in {cache}: {error.strerror}; name another folder with --cache")


def _holder(cache: Path) -> str:
    """Who holds the lock, in words; it wrote so itself."""
    try:
        about = json.loads(read_regular(cache / layout.HOLDER_FILE))
        return f"process {about['process']} on {about['machine']} (since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _clear(cache: Path) -> None:
    for folder in (cache, *(cache / name for name in layout.FOLDERS)):
        for left in folder.glob(f".*{layout.TEMPORARY_SUFFIX}"):
            if is_abandoned(left):
                left.unlink(missing_ok=True)
