"""Where in the picture decisions come from: over the validation images, and on average over those of a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.index import SetIndex
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.evidence.attribution import evidence_of
from pipeline.evidence.reference import mean_row
from pipeline.reporting.predictions import Predictions
from pipeline.row_layout import layout_of
from pipeline.run import Run

_FEWEST = 5  # images of a class whose mean map is shown
_CLASSES = 8
Square = tuple[int, int, float]  # column, row, and from -1 against to 1 for


@dataclass(frozen=True)
class ClassMap:
    """Mean evidence of a class's correctly classified images, for it rather than the runner-up.

    Attributes:
        place: of the class.
        images: that it is the mean of.
        cells: (height, width).
        border: fraction of the absolute evidence that is in cells at the border.
    """

    place: int
    images: int
    cells: Tensor
    border: float


@dataclass(frozen=True)
class EvidenceFound:
    """Of the validation images, by a head that did not see them.

    Attributes:
        cells: for the predicted class, rather than the true one of a mistake or the runner-up of a hit, (N, h, w).
        classes: those with most evidence at the border.
        border: fraction of the absolute evidence of all hits that is in cells at the border.
    """

    cells: Tensor
    classes: list[ClassMap]
    border: float

    @property
    def even(self) -> float:
        """Fraction of the cells that are at the border."""
        return _border(torch.ones(1, *self.cells.shape[1:]))


def squares(cells: Tensor) -> list[Square]:
    """The cells of a map (h, w) by the strongest of them, those that can be seen."""
    strength = cells / cells.abs().max().clamp_min(1e-12)
    each = ((column, row, float(value)) for row, line in enumerate(strength) for column, value in enumerate(line))
    return [(column, row, round(value, 2)) for column, row, value in each if abs(value) >= 0.05]


def find_evidence(run: Run, cache: FeatureCache, index: SetIndex, valid: Predictions) -> EvidenceFound | None:
    """None where rows have no cells, or are reduced, and where the head was trained on the validation images."""
    mean = None if run.record.refit else mean_row(cache, index.split("train"))
    if mean is None:
        return None
    layout, head = layout_of(cache.manifest), run.folded_head()
    predicted, log_probs = torch.from_numpy(valid.predicted), torch.from_numpy(valid.log_probs)
    runner_up = log_probs.scatter(1, predicted[:, None], -torch.inf).argmax(1)
    against = torch.where(torch.from_numpy(valid.hits), runner_up, torch.from_numpy(valid.truth))
    pairs = torch.stack([predicted, against], 1)
    cells = torch.empty(len(pairs), *(layout.grid or ()), dtype=torch.float64)
    for positions, block in cache.blocks([(image.key, CLEAN_VIEW) for image in valid.images]):
        places = torch.from_numpy(positions)
        found = evidence_of(head, torch.from_numpy(block.astype(np.float32)), mean, layout, pairs[places])
        cells[places] = torch.stack([one.cells for one in found])
    hits = torch.from_numpy(valid.hits)
    maps = _class_maps(cells[hits], valid.truth[valid.hits])
    return EvidenceFound(cells, sorted(maps, key=lambda one: -one.border)[:_CLASSES], _border(cells[hits]))


def _class_maps(cells: Tensor, truth: Sequence[int] | np.ndarray) -> list[ClassMap]:
    labels, counts = np.unique(truth, return_counts=True)
    known = [(int(label), int(count)) for label, count in zip(labels, counts, strict=True) if count >= _FEWEST]
    of_class = [(label, count, cells[torch.from_numpy(np.asarray(truth) == label)]) for label, count in known]
    return [ClassMap(label, count, some.mean(0), _border(some)) for label, count, some in of_class]


def _border(cells: Tensor) -> float:
    """Fraction of the absolute evidence of maps (N, h, w) that is in cells at the border; 0 of none."""
    size = cells.abs()
    return float(1 - size[:, 1:-1, 1:-1].sum() / size.sum().clamp_min(1e-12)) if len(cells) else 0.0
