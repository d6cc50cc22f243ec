"""Each class by itself: its images, how often it is found, and what it is taken for."""

from collections import Counter
from dataclasses import dataclass

from cache.index import SetIndex
from pipeline.reporting.confusion import Cell, Confusion


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


def class_rows(index: SetIndex, confusion: Confusion) -> list[ClassRow]:
    """One of each class, in the order of the head's outputs."""
    images = Counter((image.label, image.split) for image in index.images)
    cells = confusion.cells.values()
    rows = []
    for place, label in enumerate(index.classes):
        train, valid, test = (images[label, split] for split in ("train", "valid", "test"))
        hits = confusion.cells.get((place, place))
        right, predicted = hits.count if hits else 0, sum(cell.count for cell in cells if cell.predicted == place)
        wrong = [cell for cell in cells if cell.truth == place != cell.predicted]
        rows.append(
            ClassRow(
                place,
                train,
                valid,
                test,
                hits,
                taken=max(wrong, key=lambda cell: cell.count, default=None),
                recall=right / valid if valid else None,
                precision=right / predicted if predicted else None,
            )
        )
    return rows
