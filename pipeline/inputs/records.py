"""What listed files are now: their records, with digests."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.index import ImageRecord, SetIndex, SkippedImage
from pipeline.inputs.folders import Listed
from pipeline.inputs.listing import Listing

Record = ImageRecord | SkippedImage

_FILES_AT_ONCE = 64  # hashed by one thread


def records_of(listing: Listing, hashed: SetIndex | None) -> list[Record]:
    """What each file is now, in order; what is as `hashed` has it, by size and time, is not hashed again."""
    root = listing.root
    before = {os.path.join(hashed.root, image.path): image for image in hashed.images} if hashed else {}  # noqa: PTH118

    def record(item: Listed) -> Record:
        path = os.path.relpath(item.path, root)
        if item.fault:
            return SkippedImage(path, "", item.fault)
        try:
            found, kept = item.path.stat(), before.get(os.path.join(root.absolute(), path))  # noqa: PTH118
            same = kept and (found.st_size, found.st_mtime_ns) == (kept.size, kept.mtime_ns)
            digest = kept.digest if kept and same else _digest(item.path)
        except OSError as error:
            return SkippedImage(path, "", f"cannot be read: {error.strerror}")
        return ImageRecord(path, digest, item.label, item.split, found.st_size, found.st_mtime_ns, item.group)

    # Some at a time: a task of the pool takes more memory than a record, and for small files more time than hashing.
    parts = [listing.files[start : start + _FILES_AT_ONCE] for start in range(0, len(listing.files), _FILES_AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        return [item for part in pool.map(lambda part: list(map(record, part)), parts) for item in part]


def _digest(path: Path) -> str:
    """SHA-256 of a regular file; OSError for anything else, which might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "not a regular file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
