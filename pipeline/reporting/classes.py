"""Each class by itself: its images, how often it is found, and what it is taken for."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cache.index import SPLITS
from pipeline.reporting.confusion import Cell
from pipeline.reporting.findings import Findings


@dataclass(frozen=True)
class ClassRow:
    """A class: its images by split, its cells, and how often it is found and meant; None where it has no images."""

    place: int
    train: int
    valid: int
    test: int
    hits: Cell | None
    taken: Cell | None
    recall: float | None
    precision: float | None


def class_rows(found: Findings) -> list[ClassRow]:
    """One of each class, in the order of the head's outputs."""
    images = Counter((image.label, image.split) for image in found.index.images)
    cells = found.confusion.cells
    said = np.bincount(found.valid.predicted, minlength=found.valid.num_classes)
    rows = []
    for place, label in enumerate(found.run.classes):
        of_split = {split: images[label, split] for split in SPLITS}
        hits = cells.get((place, place))
        wrong = [cell for (truth, predicted), cell in cells.items() if truth == place != predicted]
        right = hits.count if hits else 0
        rows.append(
            ClassRow(
                place=place,
                **of_split,
                hits=hits,
                taken=max(wrong, key=lambda cell: cell.count, default=None),
                recall=right / of_split["valid"] if of_split["valid"] else None,
                precision=right / int(said[place]) if said[place] else None,
            )
        )
    return rows
