"""Fitting many bases on parts of the same rows: sums of each part, subtracted from those of all, say what is left.

A fold's basis is then that of the other folds, without reading their rows again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bases.basis import Basis, Mix, Scale, Stage
from pipeline.bases.directions import directions
from pipeline.bases.fit import fit_scale, parts_of, whitening_of
from pipeline.bases.moments import Moments
from pipeline.basis_name import BasisName
from pipeline.config.heads import WIDEST
from pipeline.row_layout import RowLayout


@dataclass(frozen=True)
class RegionSums:
    """Sums over rows in the regions of a basis, K blocks of c features, in C classes, float64.

    Attributes:
        products: sums of products of two features of one block (K, c, c); one block has all features where a basis
            needs the covariance of them all.
        by_class: sums of features by class (C, R), R = K · c.
        counts: rows of each class (C,).
    """

    products: Tensor
    by_class: Tensor
    counts: Tensor

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Tensor]], width: int, block: int, num_classes: int) -> "RegionSums":
        """Of blocks of rows (n, width) float32 and labels (n,), in blocks of `block` features.

        Products are of some rows at a time in their dtype, added up in float64.
        """
        zeros = torch.zeros(width // block, block, block, dtype=torch.float64)
        found = cls(
            zeros, *(torch.zeros(*shape, dtype=torch.float64) for shape in ((num_classes, width), (num_classes,)))
        )
        for rows, labels in blocks:
            each = rows.view(len(rows), width // block, block).transpose(0, 1)  # (K, n, c)
            found.products.add_(each.mT @ each)
            found.by_class.index_add_(0, labels, rows.double())
            found.counts.add_(torch.bincount(labels, minlength=num_classes))
        return found

    def __sub__(self, other: "RegionSums") -> "RegionSums":
        return RegionSums(self.products - other.products, self.by_class - other.by_class, self.counts - other.counts)

    def standardised(self, scale: Scale) -> "RegionSums":
        """Of the same rows after `scale`, by the mean of these rows."""
        mean, deviation = scale.mean.double(), scale.scale.double()
        block = self.products.shape[-1]
        shift, total, size = (x.view(-1, block, 1) for x in (mean, self.by_class.sum(0), deviation))
        count = self.counts.sum()
        crossed = shift @ total.mT  # nearly count · mean · meanᵀ: the mean is rounded to float32
        products = self.products - crossed - crossed.mT + count * shift @ shift.mT
        by_class = (self.by_class - self.counts[:, None] * mean) / deviation
        return RegionSums(products / size / size.mT, by_class, self.counts)

    def block(self, start: int, width: int) -> tuple[Tensor, Tensor]:
        """Products (width, width) of the features from `start` on, and their sums by class (C, width)."""
        number, first = divmod(start, self.products.shape[-1])
        some = slice(first, first + width)
        return self.products[number, some, some], self.by_class[:, start : start + width]


def block_of(name: BasisName, layout: RowLayout, width: int) -> int | None:
    """Features of a block that the basis needs the covariance of; None where it is not fitted by sums.

    That is where rows are too wide to hold the covariance of all features, and the basis needs it.
    """
    alone = name.components is None and name.discriminant is None and (name.regions != "full" or not layout.grid)
    block = layout.channels if alone and layout.grid else width
    return block if block <= WIDEST else None


def basis_of_sums(start: Basis, sums: RegionSums, layout: RowLayout) -> Basis:
    """What `fit_basis` makes of the rows that `sums` are of, to rounding."""
    name = BasisName.parse(start.name)
    width, count = sums.by_class.shape[1], int(sums.counts.sum())
    if name == BasisName("full"):
        return start
    squares = sums.products.diagonal(dim1=1, dim2=2).flatten()
    scale = fit_scale(count, sums.by_class.sum(0), squares, layout)
    stages: list[Stage] = [scale]
    standardised = sums.standardised(scale)
    if name.shrinkage is not None:
        stages += _whiten(name, standardised, layout)

    def moments() -> Moments:
        """After these stages, all of which but the first are linear."""
        rest = Basis("", tuple(stages[1:]))
        products = rest.transform(rest.transform(standardised.products[0].float()).T.contiguous())
        return Moments(products, rest.transform(standardised.by_class.float()), standardised.counts.float())

    return Basis(start.name, (*start.stages, *stages, *directions(name, width, moments, tuple)))


def _whiten(name: BasisName, sums: RegionSums, layout: RowLayout) -> list[Stage]:
    """As `fit` whitens rows, from standardised sums."""
    width = sums.by_class.shape[1]
    channels = layout.channels if layout.grid else width
    matrices, spread = [], torch.empty(width)
    parts = parts_of(layout, width)
    for part in parts:
        starts = range(part.start, part.stop, channels)
        blocks = [sums.block(start, channels) for start in starts]
        if name.regions == "pyramid" or len(blocks) == 1:  # the first is of the whole map
            of_images = Moments(*blocks[0], sums.counts)
        else:
            every = sums.products[0, part, part].view(len(blocks), channels, len(blocks), channels)
            by_class = sums.by_class[:, part].view(len(sums.by_class), len(blocks), channels)
            of_images = Moments(every.mean((0, 2)), by_class.mean(1), sums.counts)
        of_vectors = Moments(
            torch.stack([products for products, _ in blocks]).sum(0),
            torch.stack([by_class.sum(0, keepdim=True) for _, by_class in blocks]).sum(0),
            sums.counts.sum(0, keepdim=True) * len(blocks),
        )
        matrix, spread[part] = whitening_of(name.shrinkage or 0, of_images, of_vectors)
        matrices += [matrix] * len(blocks)
    return [Mix(torch.stack(matrices) if len(parts) > 1 else matrices[0]), Scale(torch.zeros(width), spread)]
