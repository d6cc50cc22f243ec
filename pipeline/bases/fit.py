"""Fitting a basis on training rows, block by block: what it needs of them are moments, however many rows there are."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.bases.basis import Basis, Mix, Regions, Scale, Stage
from pipeline.bases.directions import directions
from pipeline.bases.moments import Blocks, Moments
from pipeline.basis_name import BasisName
from pipeline.errors import PipelineError
from pipeline.row_layout import RowLayout

logger = logging.getLogger("headgraft.bases")

# Kept projections were made by this version of the fit: change it with any number below.
BASIS_VERSION = 6

SAME = 3e-3  # deviation over root mean square: below, there is little but the rounding of float16 and of sums


@dataclass
class Memo:
    """What bases of the same rows have in common, kept while several of them are fitted."""

    regions: dict[str, Tensor] = field(default_factory=dict)  # rows in them, (M, R0)
    stages: dict[BasisName, Sequence[Stage]] = field(default_factory=dict)  # by the name up to its whitening
    moments: dict[BasisName, Moments] = field(default_factory=dict)  # of the training rows after these stages

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return sum(rows.nbytes for rows in self.regions.values())


def start_basis(name: str, layout: RowLayout) -> Basis:
    """The stage of a basis that needs no fitting, its regions; none of rows as they lie."""
    parsed = BasisName.parse(name)
    if parsed.regions == "full" and parsed.shrinkage is None:
        return Basis(name, ())
    return Basis(name, (Regions(torch.from_numpy(layout.region_weights(parsed.regions))),))


def fit_basis(
    start: Basis,
    blocks: Blocks,
    num_classes: int,
    layout: RowLayout,
    memo: Memo | None = None,
    sample: Blocks | None = None,
) -> Basis:
    """Fit what follows `start` on `blocks` of training rows in it, less what `memo` has of bases of the same rows.

    All rows are read once, for a whitening twice, for directions once more. Rows are held for principal directions of
    very wide rows alone: those of `sample`, if given.
    """
    name, memo = BasisName.parse(start.name), memo or Memo()
    first = replace(name, components=None, discriminant=None)
    if first not in memo.stages:
        memo.stages[first] = _first_stages(name, blocks, num_classes, layout)
    before = Basis("", tuple(memo.stages[first]))
    width = start.out_features(layout.in_features)

    def after(these: Blocks) -> Blocks:
        return lambda: ((before.transform(rows), labels) for rows, labels in these())

    def moments() -> Moments:
        if first not in memo.moments:
            memo.moments[first] = Moments.of(after(blocks), width, num_classes)
        return memo.moments[first]

    last = directions(name, width, moments, after(sample or blocks))
    return Basis(start.name, (*start.stages, *before.stages, *last))


def _first_stages(name: BasisName, blocks: Blocks, num_classes: int, layout: RowLayout) -> list[Stage]:
    """Standardising and, if it has any, whitening; nothing for `full` alone."""
    if name == BasisName("full"):
        return []
    scale = _standardise(blocks, layout)
    if name.shrinkage is None:
        return [scale]
    return [scale, *_whiten(name.shrinkage, name.regions, scale, blocks, num_classes, layout)]


def parts_of(layout: RowLayout, width: int) -> list[slice]:
    """Features of rows of this width, in blocks of channels, that are fitted together.

    The map's, and of each vector before it by itself; all of rows without a map.
    """
    alone = layout.vectors if layout.grid and width > layout.channels else 0
    starts = [block * layout.channels for block in range(alone + 1)]
    return [slice(*both) for both in pairwise([*starts, width])]


def _standardise(blocks: Blocks, layout: RowLayout) -> Scale:
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows, _ in blocks():
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)  # few rows each
    return fit_scale(count, total, squares, layout)


def fit_scale(count: int, total: Tensor, squares: Tensor, layout: RowLayout) -> Scale:
    """Unit deviation of `count` rows from sums and sums of squares of each feature, (R,) float64.

    It is softened by a tenth of the overall deviation so that nearly constant features stay small.
    """
    deviation = _deviation(squares, total, count)
    overall = torch.empty_like(deviation)
    for part in parts_of(layout, len(total)):
        overall[part] = _deviation(squares[part].sum(), total[part].sum(), count * len(total[part]))
    size = (squares / count).sqrt()  # root mean square
    if not (deviation > SAME * size.maximum(squares.mean().div(count).sqrt())).any():
        raise PipelineError(
            "the features of all training images are the same, expected differences: "
            "check that the images are not all of one colour, and the backbone's weights"
        )
    return Scale((total / count).float(), (deviation + 0.1 * overall + 1e-6).float())


def _deviation(squares: Tensor, total: Tensor, count: int) -> Tensor:
    """Standard deviation of `count` values from their sum and sum of squares, float64."""
    return ((squares - total.square() / count) / max(count - 1, 1)).clamp_min(0).sqrt()


def _whiten(
    shrinkage: float, regions: str, scale: Scale, blocks: Blocks, num_classes: int, layout: RowLayout
) -> list[Stage]:
    """Whiten the channels of each part by themselves; all features of rows without a map at once."""
    width = len(scale.mean)
    channels = layout.channels if layout.grid else width
    parts, matrices, spread = parts_of(layout, width), [], torch.empty(width)
    for part in parts:
        matrix, spread[part] = _whitening(shrinkage, regions, scale, blocks, num_classes, channels, part)
        matrices += [matrix] * ((part.stop - part.start) // channels)
    return [Mix(torch.stack(matrices) if len(parts) > 1 else matrices[0]), Scale(torch.zeros(width), spread)]


def _whitening(
    shrinkage: float, regions: str, scale: Scale, blocks: Blocks, num_classes: int, channels: int, part: slice
) -> tuple[Tensor, float]:
    """What whitens the channels of a part, from the rows."""
    of_images = Moments.zeros(channels, num_classes, torch.float64)  # of means over the map
    of_vectors = Moments.zeros(channels, 1, torch.float64)
    for rows, labels in blocks():
        z = scale.apply(rows)[:, part].reshape(len(rows), -1, channels)  # (n, K, channels)
        of_images.add((z[:, 0] if regions == "pyramid" else z.mean(1)).double(), labels)  # its first is the whole map
        of_vectors.add(z.reshape(-1, channels))
    return whitening_of(shrinkage, of_images, of_vectors)


def whitening_of(shrinkage: float, of_images: Moments, of_vectors: Moments) -> tuple[Tensor, float]:
    """What whitens c channels by the shrunken covariance within classes, (c, c), and one scale for all.

    `of_images` are the moments of standardised means over the map, by class, `of_vectors` those of all places, in one
    class. Channels are not mixed where the rows of each class are the same, as with one image per class and no passes.
    """
    covariance, channels = of_images.within, len(of_images.products)
    if not float(covariance.diagonal().mean()) > SAME**2:  # less than the rounding of sums
        logger.warning(
            "+white: the training rows of each class are the same, as with one image per class and no passes, so that "
            "channels are not whitened; extract --passes 1 makes rows that differ"
        )
        # The covariance of all rows is then that between classes, and whitening by it hides what tells them apart.
        covariance = torch.eye(channels, dtype=torch.float64)
    shrinking = shrinkage * covariance.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance + shrinking)
    matrix = vectors * values.rsqrt()
    # Scaling each direction by itself would undo the shrinkage.
    squares, total = (matrix * (of_vectors.products @ matrix)).sum(), (of_vectors.by_class[0] @ matrix).sum()
    spread = _deviation(squares, total, int(of_vectors.counts.sum()) * channels).clamp_min(1e-6)
    return matrix.float().contiguous(), float(spread.float())
