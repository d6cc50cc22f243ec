"""The images of a set that can be labelled, one for each content, and their rows in memory."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.clean_rows import CleanRows, narrow
from pipeline.bases.fit import fit_basis, start_basis
from pipeline.bases.reduced import unchecked
from pipeline.bases.trainset import refuse_seen_labels
from pipeline.console import counted, size
from pipeline.duplicates.near_duplicates import NearDuplicates, find_duplicates
from pipeline.errors import RunError
from pipeline.labelling.label_issues import folded
from pipeline.row_layout import RowLayout

logger = logging.getLogger("headgraft.labelling")

COMPONENTS = 256  # principal directions that heads are trained in while labels come
_SPLITS = ("train", "valid", UNLABELLED)


@dataclass(frozen=True)
class Contents:
    """N contents of a set as it was extracted.

    Attributes:
        images: a file of each; of identical files the first, training images before validation images.
        rows: what label issues are fitted on, (N, R) float32; (N, 0) where labels cannot be checked.
        reduced: the same in at most `COMPONENTS` principal directions, that no label has part in, (N, K).
        folds: of each, for label issues (N,).
        duplicates: near-duplicates of the set.
        refusal: why labels cannot be checked; "" where they can.
    """

    images: tuple[ImageRecord, ...]
    rows: Tensor
    reduced: Tensor
    folds: Tensor
    duplicates: NearDuplicates
    refusal: str

    @classmethod
    def load(cls, cache: FeatureCache, index: SetIndex, memory: int) -> "Contents":
        """Read the rows of training, validation and unlabelled images; RunError where they exceed `memory` bytes."""
        distinct = {image.digest: image for image in reversed(index.split(*_SPLITS))}
        if len(distinct) < 2:
            raise RunError(f"set {index.name!r} has fewer than two different images: extract more")
        if cache.reduction:
            refuse_seen_labels(cache, index.labelled)
        start = narrow(cache)
        width = start.out_features(cache.in_features)
        _refuse_beyond(memory, len(distinct), width)
        logger.info(f"reading {counted(len(distinct), 'image')}, looking for near-duplicates")
        duplicates = find_duplicates(cache, index)
        images, _, folds = folded(_of(index, distinct), duplicates.groups)
        rows = torch.empty(len(images), width)
        for block, places in CleanRows(cache, start, images, torch.empty(0)):
            rows[places] = block
        refusal = unchecked(cache, index)
        logger.info("fitting on all images")
        reduced = _reduced(rows, RowLayout.of(cache.row_shape, cache.manifest.base.layer), start)
        return cls(tuple(images), rows[:, :0] if refusal else rows, reduced, folds, duplicates, refusal)

    @cached_property
    def units(self) -> Tensor:
        """Reduced rows about their mean, of unit length (N, K): products are cosines."""
        return normalize(self.reduced - self.reduced.mean(0))

    def groups(self) -> npt.NDArray[np.int64]:
        """The group of each, of images that are no independent evidence (N,)."""
        return self.duplicates.groups.numbers(self.images)


def _of(index: SetIndex, distinct: dict[str, ImageRecord]) -> SetIndex:
    """The index with these images alone."""
    return replace(index, images=tuple(distinct.values()))


def _refuse_beyond(memory: int, images: int, width: int) -> None:
    needed = 4 * (2 * images * width + 6 * width * width)
    if needed > memory:
        raise RunError(
            f"{counted(images, 'row')} of {counted(width, 'feature')} take {size(needed)} while labels are given, "
            f"{size(memory)} are allowed: allow more with --memory, or use a reduced cache"
        )


def _reduced(rows: Tensor, layout: RowLayout, start: Basis) -> Tensor:
    """Standardised rows in their principal directions."""
    count = min(COMPONENTS, len(rows) - 1, rows.shape[1])
    if count == rows.shape[1]:
        return rows
    named = start_basis(f"{start.name}+pca:{count}", layout)
    basis = fit_basis(named, lambda: [(rows, torch.zeros(len(rows), dtype=torch.int64))], 1, layout)
    rest = Basis(basis.name, basis.stages[len(named.stages) :])
    return torch.cat([rest.transform(block) for block in rows.split(1024)])
