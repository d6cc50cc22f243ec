"""forget: drop a set's index; prune: drop the rows that no set uses."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache import layout
from cache.errors import counted
from cache.files import remove
from cache.index import index_path
from cache.lock import writing
from cache.projections import projection_files
from cache.result import Result
from cache.shard import Shard, write_shard
from cache.store import FeatureCache
from cache.writer import spare_copies

logger = logging.getLogger("headgraft.cache")


@dataclass
class PruneResult(Result):
    """What `prune` deleted or, where `dry_run`, would delete.

    Attributes:
        cache: folder of the cache.
        rows: that no set uses, and spare copies.
        bytes: of shards and projections.
        dry_run: whether nothing was deleted.
    """

    cache: str
    rows: int
    bytes: int
    dry_run: bool

    def in_words(self) -> str:
        """One line."""
        done = "would be deleted" if self.dry_run else "deleted"
        return f"{counted(self.rows, 'row')}, {self.bytes / 1e6:.1f} MB {done}"


@dataclass(frozen=True)
class ForgetResult(Result):
    """What `forget` did.

    Attributes:
        cache: folder of the cache.
        set: name of the image set whose index was deleted.
    """

    cache: str
    set: str

    def in_words(self) -> str:
        """One line."""
        return f"{self.set} is forgotten; prune deletes rows that no set uses"


def forget(path: Path, name: str) -> ForgetResult:
    """Drop the index of set `name`; rows stay until `prune`, labels given by hand stay. UnknownSet if there is none."""
    cache = FeatureCache.open(path)  # where there is no cache, nothing is made, not even a lock
    with writing(path):
        remove([index_path(path / layout.SET_FOLDER, cache.set_name(name))])
    return ForgetResult(str(path), name)


def prune(path: Path, dry_run: bool = False) -> PruneResult:
    """Drop rows of images that no set has, passes of images that no set trains on, spare copies and projections.

    What is kept of a shard is durable before the shard goes. An unreadable index raises: its rows would count as
    unused.
    """
    cache = FeatureCache.open(path)  # where there is no cache, nothing is made, not even a lock
    with writing(path):
        spare, used = spare_copies(cache.shards), _used(cache)
        kept = [(shard, np.flatnonzero(used(shard))) for shard in cache.shards if shard not in spare]
        whole = [*(shard.path for shard in spare), *projection_files(path)]
        dropped = [(len(shard) - len(rows), shard.rows.strides[0]) for shard, rows in kept]
        count = sum(rows for rows, _ in dropped)
        size = sum(rows * each for rows, each in dropped) + sum(file.stat().st_size for file in whole)
        files = f"{counted(len(spare), 'spare shard')}, {counted(len(whole) - len(spare), 'projection')}"
        logger.info(f"{counted(count, 'row')} without a set, {files}: {size / 1e6:.1f} MB")
        if not dry_run:
            # What is kept of a shard may be a spare copy, byte for byte: then that one stays.
            written = {_keep_only(shard, rows) for shard, rows in kept}
            remove(file for file in whole if file not in written)
    return PruneResult(str(path), count, size, dry_run)


def _used(cache: FeatureCache) -> Callable[[Shard], list[bool]]:
    """Which rows of a shard a set may ask for: the clean view of its images, any other of those it trains on."""
    indexes = [read(name) for name in cache.sets() for read in (cache.extracted, cache.index)]
    known = {image.key for index in indexes for image in index.images}
    trained = {image.key for index in indexes for image in index.split("train")}
    return lambda shard: [digest in (known if view == layout.CLEAN_VIEW else trained) for digest, view in shard.keys]


def _keep_only(shard: Shard, rows: npt.NDArray[np.intp]) -> Path | None:
    """Rewrite a shard with some of its rows and return where they are now; None where there are none."""
    if len(rows) == len(shard):
        return shard.path
    written = None
    if len(rows):
        written = write_shard(shard.path.parent, shard.header, shard.packed_keys[rows], shard.read()[rows])
    remove([shard.path])
    return written
