"""Which classes are taken for which, in what order they are read best, and each class by itself."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from cache.index import SetIndex
from pipeline.cross_validation.predictions import ClassRecall
from pipeline.reporting.predictions import Predictions
from pipeline.statistics.intervals import Interval, Places

MOST_CLASSES = 150  # in the matrix: more are a grey square
_LEAST = 1e-6  # of a probability


@dataclass(frozen=True)
class Cell:
    """The images of class `truth` that were taken for `predicted`.

    Attributes:
        truth: place of a class.
        predicted: place of a class.
        images: places in the predictions, the most confident first.
        share: of the images of class `truth`, a fraction.
    """

    truth: int
    predicted: int
    images: tuple[int, ...]
    share: float

    @property
    def count(self) -> int:
        """Images."""
        return len(self.images)

    @property
    def key(self) -> str:
        """Its name in the page."""
        return f"cell-{self.truth}-{self.predicted}"


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused, the commoner way first; `other` is the other way round, where that happens."""

    cell: Cell
    other: Cell | None

    @property
    def count(self) -> int:
        """Images, both ways."""
        return self.cell.count + (self.other.count if self.other else 0)


@dataclass(frozen=True)
class Confusion:
    """The cells that are not empty, by (truth, predicted); `order` are the classes of the matrix."""

    cells: dict[tuple[int, int], Cell]
    order: tuple[int, ...]

    @property
    def drawn(self) -> list[tuple[Cell, int, int]]:
        """The cells of the matrix, each with its column and row."""
        at = {label: number for number, label in enumerate(self.order)}
        inside = (cell for cell in self.cells.values() if cell.truth in at and cell.predicted in at)
        return [(cell, at[cell.predicted], at[cell.truth]) for cell in inside]

    def pairs(self) -> list[Pair]:
        """Confused classes, those with most images first."""
        wrong = {key: cell for key, cell in self.cells.items() if key[0] != key[1]}
        found = []
        for (truth, predicted), cell in wrong.items():
            other = wrong.get((predicted, truth))
            if other is None or (cell.count, other.truth) > (other.count, cell.truth):
                found.append(Pair(cell, other))
        return sorted(found, key=lambda pair: (-pair.count, pair.cell.truth, pair.cell.predicted))


def confusion(found: Predictions) -> Confusion:
    """Of predictions; where there are more than `MOST_CLASSES`, the matrix has those with most mistakes."""
    places: dict[tuple[int, int], list[int]] = {}
    for image in np.argsort(-found.confidence, kind="stable").tolist():
        places.setdefault((int(found.truth[image]), int(found.predicted[image])), []).append(image)
    counts = np.bincount(found.truth, minlength=found.num_classes)
    cells = {key: Cell(*key, tuple(images), len(images) / counts[key[0]]) for key, images in sorted(places.items())}
    wrong = ~found.hits
    errors = sum(np.bincount(of[wrong], minlength=found.num_classes) for of in (found.truth, found.predicted))
    return Confusion(cells, _order(found, np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])))


def _order(found: Predictions, shown: Places) -> tuple[int, ...]:
    """Classes that share probability side by side: leaves of an average linkage, ordered optimally.

    Bar-Joseph et al., Fast optimal leaf ordering for hierarchical clustering, Bioinformatics 2001. Probabilities say
    more than the few images that were taken for another class.
    """
    if len(shown) < 3:
        return tuple(shown.tolist())
    counts = np.bincount(found.truth, minlength=found.num_classes)
    given = np.zeros((found.num_classes, found.num_classes))
    np.add.at(given, found.truth, found.probabilities)
    given /= np.maximum(counts, 1)[:, None]
    shared = (given + given.T)[np.ix_(shown, shown)] / 2
    distance = -np.log(np.clip(shared, _LEAST, 1))
    np.fill_diagonal(distance, 0)
    leaves = leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))
    return tuple(shown[leaves].tolist())


@dataclass(frozen=True)
class ClassRow:
    """A class: its images by split, and those that were predicted; its cells, and how often it is found and meant.

    None where it has no images. `interval` is that of the recall; `cross_validated` is the recall by cross-validation,
    of more images, where that was run.
    """

    place: int
    train: int
    valid: int
    test: int
    predicted: int
    hits: Cell | None
    taken: Cell | None
    recall: float | None
    precision: float | None
    interval: Interval | None
    cross_validated: ClassRecall | None

    @property
    def seen(self) -> tuple[float, int] | None:
        """The recall by most images, and how many these are."""
        if self.cross_validated:
            return self.cross_validated.recall, self.cross_validated.images
        return None if self.recall is None else (self.recall, self.predicted)


def _predicted(cell: Cell) -> int:
    return cell.predicted


def _truth(cell: Cell) -> int:
    return cell.truth


def class_rows(
    index: SetIndex, confusion: Confusion, intervals: Mapping[int, Interval], cross_validated: Iterable[ClassRecall]
) -> list[ClassRow]:
    """One of each class, in the order of the head's outputs; `intervals` of the recall by place."""
    recalls = {one.label: one for one in cross_validated}
    images = Counter((image.label, image.split) for image in index.images)
    cells = confusion.cells.values()
    rows = []
    for place, label in enumerate(index.classes):
        train, valid, test = (images[label, split] for split in ("train", "valid", "test"))
        hits = confusion.cells.get((place, place))
        right = hits.count if hits else 0
        named, own = (sum(cell.count for cell in cells if of(cell) == place) for of in (_predicted, _truth))
        wrong = [cell for cell in cells if cell.truth == place != cell.predicted]
        rows.append(
            ClassRow(
                place,
                train,
                valid,
                test,
                own,
                hits,
                taken=max(wrong, key=lambda cell: cell.count, default=None),
                recall=right / own if own else None,
                precision=right / named if named else None,
                interval=intervals.get(place),
                cross_validated=recalls.get(label),
            )
        )
    return rows
