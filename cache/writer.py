"""Writing rows: they collect into shards that land whole; small shards are merged at the end."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from cache import layout
from cache.files import remove
from cache.keys import KeyTable, RowKey, pack_keys
from cache.shard import Float16Array, Shard, ShardHeader, write_shard

ROWS_PER_SHARD = 1000
SECONDS_PER_SHARD = 20.0  # the most that a kill can cost
FIRST_SECONDS = 2.0  # of rows go into the first shard: a kill soon after the start costs little too
MERGE_BELOW = ROWS_PER_SHARD // 2


class ShardWriter:
    """Collects rows and writes a shard at `rows_per_shard` rows, or before one waits too long, in a thread of its own.

    A row waits at most half of the time since the writer started, but 2 s soon after the start and never more than
    `seconds_per_shard`; with None, rows alone decide. A context manager: leaving it, also through an exception, writes
    what was collected.
    """

    def __init__(
        self,
        cache: Path,
        header: ShardHeader,
        rows_per_shard: int = ROWS_PER_SHARD,
        seconds_per_shard: float | None = SECONDS_PER_SHARD,
    ) -> None:
        self.folder = cache / layout.SHARD_FOLDER
        self.header = header
        self.rows_per_shard = rows_per_shard
        self.seconds_per_shard = seconds_per_shard
        self.seconds = 0.0  # spent writing
        self.waited = 0.0  # that whoever hands over rows had to wait for an earlier write
        self._keys: list[RowKey] = []
        self._rows: list[Float16Array] = []
        self._started = self._last = self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, "shard-writer")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
            self._wait()
        finally:
            self._pool.shutdown()

    def add(self, keys: Sequence[RowKey], rows: Float16Array) -> None:
        """Take `rows` (n, D) float16 under `keys`; they are durable when the shard they go into is written."""
        now = time.monotonic()
        if not self._keys:
            self._since = now
        self._keys += keys
        self._rows.append(rows)
        if self._overdue(now) or len(self._keys) >= self.rows_per_shard:
            self.flush()
        self._last = now

    def _overdue(self, now: float) -> bool:
        """Whether the oldest row collected would wait too long if the next rows took as long as these."""
        if self.seconds_per_shard is None:
            return False
        due = min(self.seconds_per_shard, max(FIRST_SECONDS, (now - self._started) / 2))
        return now + (now - self._last) - self._since >= due

    def flush(self) -> None:
        """Hand what was collected to the writing thread; an earlier write's error is raised here."""
        self._wait()
        if self._keys:
            self._pending = self._pool.submit(self._write, self._keys, self._rows)
            self._keys, self._rows = [], []

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            start = time.perf_counter()
            pending.result()
            self.waited += time.perf_counter() - start

    def _write(self, keys: list[RowKey], rows: list[Float16Array]) -> None:
        start = time.perf_counter()
        write_shard(self.folder, self.header, pack_keys(keys), *rows)
        self.seconds += time.perf_counter() - start


def merge_small_shards(shards: Sequence[Shard]) -> int:
    """Write small shards of one header together, then remove them and spare copies; return how many went.

    The new shard is durable before an old one goes, so a kill leaves at most spare copies.
    """
    spare = spare_copies(shards)
    groups: dict[str, list[Shard]] = {}
    for shard in shards:
        if shard not in spare and len(shard) < MERGE_BELOW:
            groups.setdefault(repr(replace(shard.header, augmentation_digest="")), []).append(shard)
    batches = [batch for group in groups.values() for batch in _batches(group) if len(batch) > 1]
    written = {_merge(batch) for batch in batches}
    gone = [*spare, *chain.from_iterable(batches)]
    remove(shard.path for shard in gone if shard.path not in written)
    return len(gone)


def by_kind(shards: Iterable[Shard]) -> list[list[Shard]]:
    """Shards whose rows are of one shape and basis together."""
    kinds: dict[tuple[object, ...], list[Shard]] = {}
    for shard in shards:
        kinds.setdefault((shard.header.basis, shard.header.row_shape), []).append(shard)
    return list(kinds.values())


def spare_copies(shards: Sequence[Shard]) -> list[Shard]:
    """Shards whose every row also stands in a larger one, as a kill during a merge leaves them."""
    spare = []
    for kind in by_kind(sorted(shards, key=lambda shard: (-len(shard), shard.path.name))):
        used = KeyTable([(number, shard.packed_keys) for number, shard in enumerate(kind)]).used
        spare += [shard for number, shard in enumerate(kind) if number not in used]
    return spare


def _batches(group: Sequence[Shard]) -> Iterator[list[Shard]]:
    batch: list[Shard] = []
    for shard in group:
        batch.append(shard)
        if sum(map(len, batch)) >= ROWS_PER_SHARD:
            yield batch
            batch = []
    yield batch


def _merge(batch: Sequence[Shard]) -> Path:
    """Write one shard with the rows of `batch`, which may overlap, and return its path."""
    keys = np.concatenate([shard.packed_keys for shard in batch])
    rows = np.concatenate([shard.read() for shard in batch])  # checked again: what is copied gets a new digest
    first = np.sort(np.unique(keys, return_index=True)[1])
    augmentation = max(shard.header.augmentation_digest for shard in batch)  # one manifest: "" or that one digest
    header = replace(batch[0].header, augmentation_digest=augmentation)
    return write_shard(batch[0].path.parent, header, keys[first], rows[first])
