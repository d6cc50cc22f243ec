"""Durable file writing: a reader sees the whole new file or the old one, also after a crash."""

import os
from pathlib import Path
from uuid import uuid4

from cache.errors import CacheError
from cache.layout import TEMPORARY_SUFFIX


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: temporary file beside it, fsync, rename, fsync of the folder.

    CacheError where the system refuses; a file that was there before is kept.
    """
    temporary = path.with_name(f".{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(
            f"could not write {path}: {error.strerror or error}; "
            "what was written before is kept: make room or mend the disk, then run the same command again"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system can open a folder at all."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
