"""forget: drop a set's index; prune: drop the rows that no set uses."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache import layout
from cache.errors import UnknownSet
from cache.files import sync_folder
from cache.index import index_path
from cache.keys import RowKey, unpack_keys
from cache.lock import writing
from cache.projections import projection_files
from cache.shard import Shard, write_shard
from cache.store import FeatureCache
from cache.writer import spare_copies

logger = logging.getLogger("headgraft.cache")


@dataclass
class PruneResult:
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
        return f"{self.rows} rows, {self.bytes / 1e6:.1f} MB {'would be deleted' if self.dry_run else 'deleted'}"


@dataclass(frozen=True)
class ForgetResult:
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
    """Drop the index of set `name`; its rows stay until `prune`. UnknownSet if there is none."""
    FeatureCache.open(path)  # where there is no cache, nothing is made, not even a lock
    with writing(path):
        cache = FeatureCache.open(path)
        if name not in cache.sets():
            raise UnknownSet(f"{path} has no set {name!r} (sets: {', '.join(cache.sets()) or 'none'})")
        file = index_path(path / layout.SET_FOLDER, name)
        file.unlink()
        sync_folder(file.parent)
    return ForgetResult(str(path), name)


def prune(path: Path, dry_run: bool = False) -> PruneResult:
    """Drop rows of images that no set has, passes of images that no set trains on, spare copies and projections.

    What is kept of a shard is durable before the shard goes. An unreadable index raises: its rows would count as
    unused.
    """
    FeatureCache.open(path)  # where there is no cache, nothing is made, not even a lock
    with writing(path):
        cache = FeatureCache.open(path)
        spare = spare_copies(cache.shards)
        used = _used(cache)
        kept = [
            (shard, [row for row, key in enumerate(shard.keys) if used(key)])
            for shard in cache.shards
            if shard not in spare
        ]
        projections = projection_files(path)
        rows, size = _waste(kept, [*(shard.path for shard in spare), *projections])
        counted = f"{rows} rows that no set uses, {len(spare)} spare shards, {len(projections)} projections"
        logger.info(f"{counted}: {size / 1e6:.1f} MB")
        if not dry_run:
            # What is kept of a shard may be a spare copy, byte for byte: then that one stays.
            written = {_keep_only(shard, rows_kept) for shard, rows_kept in kept}
            for file in (*(shard.path for shard in spare), *projections):
                if file not in written:
                    file.unlink(missing_ok=True)
            sync_folder(path / layout.SHARD_FOLDER)
    return PruneResult(str(path), rows, size, dry_run)


def _used(cache: FeatureCache) -> Callable[[RowKey], bool]:
    """Whether a set may ask for a row: the clean view of its images, any other of those it trains on."""
    indexes = [cache.index(name) for name in cache.sets()]
    known = {image.key for index in indexes for image in index.images}
    trained = {image.key for index in indexes for image in index.split("train")}
    return lambda key: key[0] in (known if key[1] == layout.CLEAN_VIEW else trained)


def _waste(kept: Sequence[tuple[Shard, list[int]]], whole: Sequence[Path]) -> tuple[int, int]:
    """Rows and bytes that would go: single rows, and whole files."""
    dropped = [(len(shard) - len(rows), shard.rows.nbytes // len(shard)) for shard, rows in kept]
    size = sum(count * each for count, each in dropped) + sum(file.stat().st_size for file in whole)
    return sum(count for count, _ in dropped), size


def _keep_only(shard: Shard, used: list[int]) -> Path | None:
    """Rewrite a shard with its rows `used` and return where they are now; None where there are none."""
    if len(used) == len(shard):
        return shard.path
    written = None
    if used:
        keys = unpack_keys(shard.packed_keys[used])
        augmented = any(layout.is_augmented(view) for _, view in keys)
        header = replace(shard.header, augmentation_digest=shard.header.augmentation_digest if augmented else "")
        written = write_shard(shard.path.parent, header, keys, shard.read()[used])
    shard.path.unlink(missing_ok=True)
    return written
