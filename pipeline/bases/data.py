"""Training rows in a basis: held in memory (HeadData), or read from the shards in each epoch (StreamedData)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cache import layout
from cache.keys import Digests, PackedKeys, join_keys, keys_of
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.trainset import TrainingSet

ROWS_AT_ONCE = 256  # turned to float32 and into the basis together
ROWS_TO_SCORE = 1024  # together


class LabelledRows(Protocol):
    """Training and validation rows (n, R) in a basis, some at a time, with their labels (n,)."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def train_labels(self) -> Tensor:
        """(N,)."""

    @property
    def valid_labels(self) -> Tensor:
        """(V,)."""

    @property
    def in_features(self) -> int:
        """R, the length of a row."""

    def clean(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows and labels of the clean view of the training images, in any order."""

    def all_views(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows and labels of all views of the training images at hand, in any order."""

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images."""


@dataclass(frozen=True)
class HeadData:
    """Rows in memory: `rows` (M, R) float32; `train_rows` (N, P) and `valid_rows` (V,) point into it."""

    rows: Tensor
    train_rows: Tensor
    train_labels: Tensor
    valid_rows: Tensor
    valid_labels: Tensor
    num_classes: int

    @property
    def in_features(self) -> int:
        """R, the length of a row."""
        return self.rows.shape[1]

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return self.rows.nbytes

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (batch_size, R) and labels of an epoch, shuffled: one drawn pass of each training image."""
        images, views = self.train_rows.shape
        drawn = torch.randint(views, (images,), generator=generator)
        for batch in torch.randperm(images, generator=generator).split(batch_size):
            yield self.rows[self.train_rows[batch, drawn[batch]]], self.train_labels[batch]

    def clean(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the clean view of the training images."""
        return self._blocks(self.train_rows[:, 0], self.train_labels)

    def all_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of all views of the training images."""
        return (block for view in self.train_rows.T for block in self._blocks(view, self.train_labels))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images."""
        return self._blocks(self.valid_rows, self.valid_labels)

    @property
    def valid_order(self) -> Tensor:
        """Positions of the validation images in `valid_labels` (V,), in the order of `validation`."""
        return torch.arange(len(self.valid_labels))

    def _blocks(self, places: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for some, theirs in zip(places.split(ROWS_TO_SCORE), labels.split(ROWS_TO_SCORE), strict=True):
            yield self.rows[some], theirs


@dataclass(frozen=True)
class StreamedData:
    """Rows that do not fit in memory: whole shards in random order, shuffled in a window of `window` rows (R)."""

    trainset: TrainingSet
    basis: Basis
    in_features: int
    window: int
    train_labels: Tensor
    valid_labels: Tensor
    num_classes: int

    @property
    def bytes(self) -> int:
        """Memory that the window takes."""
        return 4 * self.window * self.in_features

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (batch_size, R) and labels of an epoch: one drawn pass of each training image.

        A batch is a random draw from the window, so it mixes at least as many rows as the window holds; rows of a
        shard are themselves a random part of the set, since they are extracted in the order of their digests.
        """
        views = np.array(self.trainset.views, dtype=layout.VIEW_DTYPE)
        drawn = torch.randint(len(views), (len(self._train),), generator=generator).numpy()
        keys = join_keys(self._train, views[drawn])
        rows, labels = torch.empty(0, self.in_features), torch.empty(0, dtype=torch.int64)
        for block, theirs in self._read(keys, self.train_labels, generator):
            rows, labels = torch.cat([rows, block]), torch.cat([labels, theirs])
            if len(rows) >= max(self.window, 2 * batch_size):
                order = torch.randperm(len(rows), generator=generator)
                leaving = len(rows) // 2 // batch_size * batch_size
                for batch in order[:leaving].split(batch_size):
                    yield rows[batch], labels[batch]
                rows, labels = rows[order[leaving:]], labels[order[leaving:]]
        if len(rows):
            for batch in torch.randperm(len(rows), generator=generator).split(batch_size):
                yield rows[batch], labels[batch]

    def clean(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the clean view of the training images, in any order."""
        return self._read(keys_of(self._train, layout.CLEAN_VIEW), self.train_labels)

    def all_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of all views of the training images, in any order."""
        for view in self.trainset.views:
            yield from self._read(keys_of(self._train, view), self.train_labels)

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images, in `valid_order`; held where the window could hold them."""
        if len(self.valid_labels) > self.window:
            return self._read(self._valid_keys, self.valid_labels)
        return self._validation

    @cached_property
    def valid_order(self) -> Tensor:
        """Positions of the validation images in `valid_labels` (V,), in the order in which they are read."""
        parts = self.trainset.cache.parts(self._valid_keys)
        return torch.from_numpy(np.concatenate([part.positions for part in parts]))

    @cached_property
    def _validation(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._read(self._valid_keys, self.valid_labels))

    @cached_property
    def _train(self) -> Digests:
        return self.trainset.digests("train")

    @cached_property
    def _valid_keys(self) -> PackedKeys:
        return keys_of(self.trainset.digests("valid"), layout.CLEAN_VIEW)

    def _read(
        self, keys: PackedKeys, labels: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for positions, rows in read_shards(self.trainset.cache, keys, generator):
            yield self.basis.apply(rows), labels[positions]


TrainingData = HeadData | StreamedData


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
