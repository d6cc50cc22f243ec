"""Rows of images in all their views, in memory: the basis of any part of them, and what a head is trained on there."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.index import ImageRecord
from cache.keys import RowKey, pack_keys, unpack_keys
from cache.layout import CLEAN_VIEW
from pipeline.bases.basis import Basis
from pipeline.bases.data import ROWS_AT_ONCE, HeadData
from pipeline.bases.fit import fit_basis, start_basis
from pipeline.bases.sums import RegionSums, basis_of_sums, block_of
from pipeline.bases.trainset import TrainingSet
from pipeline.basis_name import BasisName
from pipeline.console import counted, size
from pipeline.errors import RunError
from pipeline.row_layout import RowLayout

logger = logging.getLogger("headgraft.cross_validation")

_ROWS_TO_SUM = 2048  # together


@dataclass(frozen=True)
class ImageRows:
    """N images of a set, in the regions of a basis.

    Attributes:
        start: the stage of the basis that needs no fitting.
        layout: of the cache's rows.
        num_classes: C.
        rows: distinct rows (M, R0) float32.
        views: places in `rows` of the views of each image (N, P), the clean one first; an image without a view has its
            clean one there.
        labels: (N,).
    """

    start: Basis
    layout: RowLayout
    num_classes: int
    rows: Tensor
    views: Tensor
    labels: Tensor

    @classmethod
    def load(cls, trainset: TrainingSet, images: Sequence[ImageRecord], basis: str, memory: int) -> "ImageRows":
        """Read the rows of `images` in all views of `trainset`; RunError where they take more than `memory` bytes."""
        cache, index = trainset.cache, trainset.index
        start = start_basis(basis, trainset.layout)
        width = start.out_features(cache.in_features)
        keys = _keys(trainset, images)
        distinct = list(dict.fromkeys(key for views in keys for key in views))
        if (needed := 2 * 4 * width * len(distinct)) > memory:
            raise RunError(
                f"{counted(len(distinct), 'row')} of {counted(width, 'feature')} take {size(needed)} in two copies, "
                f"{size(memory)} are allowed: choose a narrower basis or fewer --passes, or reduce the cache"
            )
        place = {key: number for number, key in enumerate(distinct)}
        rows = torch.empty(len(distinct), width)
        for positions, block in cache.blocks(distinct, ROWS_AT_ONCE):
            rows[torch.from_numpy(positions)] = start.apply(block)
        views = torch.tensor([[place[key] for key in of_image] for of_image in keys])
        labels = torch.from_numpy(index.labels(images))
        return cls(start, trainset.layout, len(index.classes), rows, views, labels)

    @property
    def block(self) -> int | None:
        """As `block_of` has it."""
        return block_of(BasisName.parse(self.start.name), self.layout, self.rows.shape[1])

    def blocks(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n, R0) and labels (n,) of all views of the images at these places (m,)."""
        labels = self.labels[images].repeat_interleave(self.views.shape[1])
        for some, theirs in zip(
            self.views[images].flatten().split(_ROWS_TO_SUM), labels.split(_ROWS_TO_SUM), strict=True
        ):
            yield self.rows[some], theirs

    def sums(self, images: Tensor) -> RegionSums | None:
        """Of the images at these places; None where the basis is not fitted by sums."""
        if self.block is None:
            return None
        return RegionSums.of(self.blocks(images), self.rows.shape[1], self.block, self.num_classes)

    def basis(self, images: Tensor) -> Basis:
        """Fitted on the images at these places, by sums or row by row."""
        if sums := self.sums(images):
            return basis_of_sums(self.start, sums, self.layout)
        return fit_basis(self.start, lambda: self.blocks(images), self.num_classes, self.layout)

    def basis_without(self, all_sums: RegionSums | None, others: Tensor) -> Basis:
        """Fitted on all images but the `others`: by the sums of all images less theirs, or row by row."""
        if all_sums and (sums := self.sums(others)):
            return basis_of_sums(self.start, all_sums - sums, self.layout)
        kept = torch.ones(len(self.labels), dtype=torch.bool)
        kept[others] = False
        return self.basis(kept.nonzero().flatten())

    def data(self, basis: Basis, trained: Tensor, held_out: Tensor) -> HeadData:
        """Rows in `basis` to train on the images at places `trained`, and to score those at `held_out`."""
        views, clean = self.views[trained], self.views[held_out, 0]
        rest, rows = Basis(basis.name, basis.stages[len(self.start.stages) :]), self.rows
        if rest.stages:  # of these images alone
            needed, places = torch.cat([views.flatten(), clean]).unique(return_inverse=True)
            views, clean = places[: views.numel()].view_as(views), places[views.numel() :]
            rows = torch.empty(len(needed), rest.out_features(rows.shape[1]))
            for part, some in zip(rows.split(ROWS_AT_ONCE), needed.split(ROWS_AT_ONCE), strict=True):
                part.copy_(rest.transform(self.rows[some]))
        return HeadData(rows, views, self.labels[trained], clean, self.labels[held_out], self.num_classes)


def _keys(trainset: TrainingSet, images: Sequence[ImageRecord]) -> list[list[RowKey]]:
    """Of the views of each image; where one is not there, and need not be, of its clean view instead."""
    wanted = [[(image.key, view) for view in trainset.views] for image in images]
    optional = [key for image, views in zip(images, wanted, strict=True) if image.split != "train" for key in views[1:]]
    absent = set(unpack_keys(trainset.cache.without(pack_keys(optional)))) if optional else set()
    if without := sum(any(key in absent for key in views) for views in wanted):
        logger.info(f"{counted(without, 'validation image')} without augmented passes: trained on their clean view")
    return [[(key[0], CLEAN_VIEW) if key in absent else key for key in views] for views in wanted]
