"""Clean rows of a set in a basis, read from the cache as they are asked for: a report keeps none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cache.index import ImageRecord, SetIndex
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.fit import start_basis
from pipeline.config.heads import WIDEST
from pipeline.row_layout import RowLayout


@dataclass(frozen=True)
class CleanRows:
    """Those of `images` in `basis`, with the places of their classes, `labels` (N,)."""

    cache: FeatureCache
    basis: Basis
    images: Sequence[ImageRecord]
    labels: Tensor

    @cached_property
    def width(self) -> int:
        """R, the length of a row."""
        return self.basis.out_features(self.cache.in_features)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n, R) and their places in `images` (n,), shard by shard."""
        for positions, block in self.cache.blocks([(image.key, CLEAN_VIEW) for image in self.images]):
            yield self.basis.apply(block), torch.from_numpy(positions)


@dataclass(frozen=True)
class SplitRows:
    """Training and validation rows, as baselines are fitted on them."""

    train: CleanRows
    valid: CleanRows
    num_classes: int

    @property
    def in_features(self) -> int:
        """R."""
        return self.train.width

    @property
    def train_labels(self) -> Tensor:
        """(N,)."""
        return self.train.labels

    @property
    def valid_labels(self) -> Tensor:
        """(V,)."""
        return self.valid.labels

    def clean(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Training rows and labels."""
        return ((rows, self.train.labels[places]) for rows, places in self.train)

    all_views = clean  # a report reads clean views alone, since others may be gone

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Validation rows and labels."""
        return ((rows, self.valid.labels[places]) for rows, places in self.valid)


def clean_rows(cache: FeatureCache, index: SetIndex, basis: Basis, *splits: str) -> CleanRows:
    """Of the images of some splits."""
    images = [image for split in splits for image in index.split(split)]
    return CleanRows(cache, basis, images, torch.from_numpy(index.labels(images)))


def narrow(cache: FeatureCache, basis: Basis | None = None) -> Basis:
    """`basis` where a covariance of its rows can be had, else the pyramid of means, unfitted; of no map, whole rows."""
    if basis and CleanRows(cache, basis, (), torch.empty(0)).width <= WIDEST:
        return basis
    layout = RowLayout.of(cache.row_shape, cache.manifest.base.layer)
    return start_basis("pyramid" if layout.grid else "full", layout)
