"""Fitting a basis on training rows, block by block: what it needs of them are moments, however many rows there are."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.bases.basis import Basis, Mix, Regions, Scale, Stage
from pipeline.bases.directions import (
    WIDEST,
    Blocks,
    ScatterMatrices,
    discriminant,
    principal,
    principal_of_rows,
    scatter_of,
    side_by_side,
)
from pipeline.basis_name import BasisName
from pipeline.errors import PipelineError

logger = logging.getLogger("headgraft.bases")

Shape = tuple[int, ...]

# Kept projections were made by this version of the fit: change it with any number below.
BASIS_VERSION = 6

SAME = 3e-3  # deviation over root mean square: below, there is little but the rounding of float16 and of sums


def start_basis(name: str, row_shape: Shape) -> Basis:
    """What of a basis needs no fitting: its regions."""
    parsed = BasisName.parse(name)
    first = region_stage(parsed.regions, row_shape)
    if first is None and parsed.shrinkage is not None:
        first = whitening_regions(row_shape)
    return Basis(name, (first,) if first else ())


def region_stage(name: str, row_shape: Shape) -> Regions | None:
    """First stage of a basis on rows of (channels, height, width); None for whole rows as they lie."""
    if name == "full":
        return None
    if len(row_shape) != 3:
        raise PipelineError(
            f"basis {name} needs rows of channels x height x width, these are {row_shape}: "
            "use full, alone or with +white, +pca:R or +lda"
        )
    _, height, width = row_shape
    boxes = _boxes(height, width) if name == "pyramid" else [(slice(None), slice(None))]
    weights = torch.zeros(height, width, len(boxes))
    for number, (rows, columns) in enumerate(boxes):
        weights[rows, columns, number] = 1 / weights[rows, columns, number].numel()
    return Regions(weights.view(height * width, -1))


def _boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    """The whole, four quadrants that share the middle line of an odd side, and the centre third."""

    def parts(side: int) -> tuple[slice, slice, slice]:
        return slice(0, -(-side // 2)), slice(side // 2, side), slice(side // 3, side - side // 3)

    (top, bottom, middle), (left, right, centre) = parts(height), parts(width)
    quadrants = [(top, left), (top, right), (bottom, left), (bottom, right)]
    return [(slice(None), slice(None)), *quadrants, (middle, centre)]


def whitening_regions(row_shape: Shape) -> Regions:
    """Whole rows as blocks of channels, one a position, so that channels can be mixed."""
    return Regions(torch.eye(int(np.prod(row_shape[1:]))))


@dataclass
class Shared:
    """What bases of the same rows have in common, kept while several of them are fitted."""

    regions: dict[str, Tensor] = field(default_factory=dict)  # rows in them, (M, R0)
    first: dict[BasisName, tuple[list[Stage], Tensor]] = field(default_factory=dict)  # stages, rows after them (M, R1)
    spreads: dict[BasisName, ScatterMatrices] = field(default_factory=dict)  # of the training rows among these

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return sum(rows.nbytes for rows in (*self.regions.values(), *(rows for _, rows in self.first.values())))


def fit_basis(
    start: Basis,
    blocks: Blocks,
    num_classes: int,
    row_shape: Shape,
    sample: Blocks | None = None,
) -> Basis:
    """Fit what follows `start` on `blocks` of training rows in it.

    All rows are read once, for a whitening twice, for directions once more. Rows are held for principal directions of
    very wide rows alone: those of `sample`, if given.
    """
    name = BasisName.parse(start.name)
    stages = first_stages(name, blocks, num_classes, row_shape)
    before = Basis(start.name, tuple(stages))

    def after(these: Blocks) -> Blocks:
        return lambda: ((before.transform(rows), labels) for rows, labels in these())

    width = started_width(start, row_shape)
    stages += directions(name, width, lambda: scatter_of(after(blocks), num_classes), after(sample or blocks))
    return Basis(start.name, (*start.stages, *stages))


def started_width(start: Basis, row_shape: Shape) -> int:
    """Features of a row in its regions."""
    return start.transform(torch.zeros(1, int(np.prod(row_shape)))).shape[1]


def directions(name: BasisName, width: int, spread: Callable[[], ScatterMatrices], rows: Blocks) -> list[Stage]:
    """Last stages of a basis on rows (n, width) of this spread: discriminants, principal directions or both, if any."""
    if name.discriminant is None and name.components is not None and width > WIDEST:
        return principal_of_rows(rows, name.components)
    chosen: list[list[Stage]] = []
    found = spread() if name.discriminant is not None or name.components is not None else None
    if found and name.discriminant is not None:
        chosen.append(discriminant(found, name.discriminant))
    if found and name.components is not None:
        chosen.append(principal(found, name.components))
    return side_by_side(chosen)


def without_last(name: BasisName) -> BasisName:
    """The basis up to its whitening."""
    return replace(name, components=None, discriminant=None)


def first_stages(name: BasisName, blocks: Blocks, num_classes: int, row_shape: Shape) -> list[Stage]:
    """Standardising and, if it has any, whitening; nothing for `full` alone."""
    if name == BasisName("full"):
        return []
    scale = _standardise(blocks)
    if name.shrinkage is None:
        return [scale]
    return [scale, *_whiten(name, scale, blocks, num_classes, row_shape[0])]


def _standardise(blocks: Blocks) -> Scale:
    """Unit deviation, softened by a tenth of the overall one so that nearly constant features stay small."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows, _ in blocks():
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)  # few rows each
    deviation = _deviation(squares, total, count)
    overall = _deviation(squares.sum(), total.sum(), count * len(total))
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


def _whiten(name: BasisName, scale: Stage, blocks: Blocks, num_classes: int, channels: int) -> list[Stage]:
    """Whiten channels by the shrunken within-class covariance of their means over the map; one scale for all.

    Channels are not mixed where the rows of each class are the same, as with one image per class and no passes.
    """
    assert name.shrinkage is not None
    counts = torch.zeros(num_classes, 1, dtype=torch.float64)
    sums = torch.zeros(num_classes, channels, dtype=torch.float64)
    products, all_products = torch.zeros(2, channels, channels, dtype=torch.float64)
    all_sums, vectors = torch.zeros(channels, dtype=torch.float64), 0
    for rows, labels in blocks():
        z = scale.apply(rows).view(len(rows), -1, channels)  # (n, K, channels); a pyramid's first is the whole map
        means = (z[:, 0] if name.regions == "pyramid" else z.mean(1)).double()
        counts += torch.bincount(labels, minlength=num_classes).unsqueeze(1)
        sums.index_add_(0, labels, means)
        products += means.T @ means
        every = z.reshape(-1, channels)
        all_products += every.T @ every
        all_sums += every.sum(0)
        vectors += len(every)
    covariance = (products - sums.T @ (sums / counts.clamp_min(1))) / counts.sum()
    if not _differs(covariance):
        logger.warning(
            "+white: the training rows of each class are the same, as with one image per class and no passes, so that "
            "channels are not whitened; extract --passes 1 makes rows that differ"
        )
        # The covariance of all rows is then that between classes, and whitening by it hides what tells them apart.
        covariance = torch.eye(channels, dtype=torch.float64)
    matrix = _whitening(covariance, name.shrinkage)
    # Scaling each direction by itself would undo the shrinkage.
    squares, total = (matrix * (all_products @ matrix)).sum(), (all_sums @ matrix).sum()
    spread = _deviation(squares, total, vectors * channels).clamp_min(1e-6)
    width = channels * z.shape[1]
    return [Mix(matrix.float().contiguous()), Scale(torch.zeros(width), spread.float().expand(width).contiguous())]


def _differs(covariance: Tensor) -> bool:
    """Whether rows of this covariance (C, C), standardised, differ by more than the rounding of sums."""
    return float(covariance.diagonal().mean()) > SAME**2


def _whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """U w^(-1/2) of a covariance (C, C) to which `shrinkage` times its mean diagonal is added: (C, C) float64."""
    identity = torch.eye(len(covariance), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance + shrinkage * covariance.diagonal().mean() * identity)
    whitening: Tensor = vectors * values.rsqrt()
    return whitening
