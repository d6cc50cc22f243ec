"""Training rows that do not fit in memory: whole shards in random order, shuffled in a window."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cache import layout
from cache.keys import Digests, PackedKeys, join_keys
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.bases.basis import Basis

ROWS_AT_ONCE = 256  # turned to float32 and into the basis together


@dataclass(frozen=True)
class StreamedData:
    """The same rows and labels as `HeadData`, read from the shards in each epoch; `window` rows (R) are held."""

    cache: FeatureCache
    basis: Basis
    train: Digests
    train_labels: Tensor
    valid: Digests
    valid_labels: Tensor
    num_classes: int
    views: tuple[str, ...]
    in_features: int
    window: int

    @property
    def num_images(self) -> int:
        """Training images: rows of an epoch."""
        return len(self.train)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (batch_size, R) and labels of an epoch: one drawn pass of each training image.

        A batch is a random draw from the window, so it mixes at least as many rows as the window holds; rows of a
        shard are themselves a random part of the set, since they are extracted in the order of their digests.
        """
        views = np.array(self.views, dtype=layout.VIEW_DTYPE)
        drawn = torch.randint(len(views), (self.num_images,), generator=generator).numpy()
        keys = join_keys(self.train, views[drawn])
        rows, labels = torch.empty(0, self.in_features), torch.empty(0, dtype=torch.int64)
        for positions, block in self._parts(keys, generator):
            rows, labels = torch.cat([rows, block]), torch.cat([labels, self.train_labels[positions]])
            if len(rows) >= max(self.window, 2 * batch_size):
                order = torch.randperm(len(rows), generator=generator)
                leaving = len(rows) // 2 // batch_size * batch_size
                for batch in order[:leaving].split(batch_size):
                    yield rows[batch], labels[batch]
                rows, labels = rows[order[leaving:]], labels[order[leaving:]]
        rest = torch.randperm(len(rows), generator=generator).split(batch_size) if len(rows) else ()
        for batch in rest:
            yield rows[batch], labels[batch]

    @property
    def bytes(self) -> int:
        """Memory that the window takes."""
        return 4 * self.window * self.in_features

    def clean(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the clean view of the training images, in any order."""
        return self._of_view(layout.CLEAN_VIEW)

    def all_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of all views of the training images, in any order."""
        for view in self.views:
            yield from self._of_view(view)

    def _of_view(self, view: str) -> Iterator[tuple[Tensor, Tensor]]:
        keys = join_keys(self.train, np.full(len(self.train), view, dtype=layout.VIEW_DTYPE))
        for positions, block in self._parts(keys):
            yield block, self.train_labels[positions]

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images, in `valid_order`; held where the window could hold them."""
        return self._validation if len(self.valid) <= self.window else self._read_validation()

    @cached_property
    def _validation(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._read_validation())

    @cached_property
    def valid_order(self) -> Tensor:
        """Positions of the validation images in `valid_labels` (V,), in the order in which they are read."""
        return torch.from_numpy(np.concatenate([part.positions for part in self.cache.parts(self._valid_keys)]))

    @property
    def _valid_keys(self) -> PackedKeys:
        return join_keys(self.valid, np.full(len(self.valid), layout.CLEAN_VIEW, dtype=layout.VIEW_DTYPE))

    def _read_validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        for positions, block in self._parts(self._valid_keys):
            yield block, self.valid_labels[positions]

    def _parts(self, keys: PackedKeys, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions in `keys` and their rows in the basis."""
        for positions, rows in read_shards(self.cache, keys, generator):
            yield positions, self.basis.apply(rows)


def read_shards(
    cache: FeatureCache, keys: PackedKeys, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Float16Array]]:
    """Positions in `keys` (n,) and their rows (n, D), `ROWS_AT_ONCE` at most; each shard is read once, and checked.

    Shards in their own order or, with a `generator`, in a random one.
    """
    parts = cache.parts(keys)
    order = range(len(parts)) if generator is None else torch.randperm(len(parts), generator=generator).tolist()
    for number in order:
        rows = parts[number].shard.read()
        for positions, block in parts[number].blocks(rows, ROWS_AT_ONCE):
            yield torch.from_numpy(positions), block
        del rows  # before the next shard is read
