"""What the page has room for of what was found: how much of each kind, and in which order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cache.index import ImageRecord
from pipeline.duplicates.near_duplicates import Pair as Duplicate
from pipeline.labelling.label_issues import LabelIssue
from pipeline.reporting.confusion import Cell, ClassRow, Pair, class_rows
from pipeline.reporting.findings import Findings
from pipeline.statistics.intervals import of_each_class

PAIRS, PICTURES, UNLIKE, LABEL_ISSUES, DUPLICATES, IN_CELL = 25, 24, 12, 48, 24, 40  # that are shown


@dataclass(frozen=True)
class Shown:
    """What the page shows, the most telling first.

    Attributes:
        mistakes: places of misclassified validation images, the most confident first.
        hits: places of correctly classified validation images, the least confident first.
        pairs: classes that are confused.
        label_issues: images that agree least with their label.
        unlike: places of the validation images that are most unlike the training images.
        duplicates: near-duplicates with their images, those across splits or labels first.
        classes: those of the least recall first, by cross-validation where it was run, those without images last.
        cells: cells of the confusion matrix that something on the page leads to: of a thousand classes there are more
            than a page holds.
    """

    mistakes: list[int]
    hits: list[int]
    unlike: list[int]
    pairs: list[Pair]
    label_issues: list[LabelIssue]
    duplicates: list[tuple[Duplicate, ImageRecord, ImageRecord]]
    classes: list[ClassRow]
    cells: list[Cell]


def choose_shown(found: Findings) -> Shown:
    """What of the findings the page has room for."""
    valid, confusion = found.valid, found.confusion
    sure_first = np.argsort(-valid.confidence, kind="stable").tolist()
    unsure_first = np.argsort(valid.confidence, kind="stable").tolist()
    recalls = of_each_class(valid.hits, valid.truth, found.duplicates.groups.numbers(valid.images))
    by_folds = found.cross_validated.of_each_class() if found.cross_validated else []
    pairs, classes = confusion.pairs()[:PAIRS], class_rows(found.index, confusion, recalls, by_folds)
    linked = [cell for cell, *_ in confusion.drawn]
    linked += [cell for pair in pairs for cell in (pair.cell, pair.other) if cell]
    linked += [cell for row in classes for cell in (row.hits, row.taken) if cell]
    return Shown(
        mistakes=[place for place in sure_first if not valid.hits[place]][:PICTURES],
        hits=[place for place in unsure_first if valid.hits[place]][:PICTURES],
        unlike=found.sureness.unlike[:UNLIKE],
        pairs=pairs,
        label_issues=found.label_issues.found[:LABEL_ISSUES],
        duplicates=_duplicates(found),
        classes=sorted(classes, key=lambda row: (row.seen is None, row.seen and row.seen[0], found.name(row.place))),
        cells=list({cell.key: cell for cell in linked}.values()),
    )


def _duplicates(found: Findings) -> list[tuple[Duplicate, ImageRecord, ImageRecord]]:
    images = {image.path: image for image in found.index.images}
    pairs = list(dict.fromkeys([*found.across, *found.duplicates.pairs]))[:DUPLICATES]
    return [(pair, images[pair.a], images[pair.b]) for pair in pairs]


def wanted_pictures(found: Findings, shown: Shown) -> Iterator[ImageRecord]:
    """The images that the page shows, the most telling first."""
    images = found.valid.images
    yield from (images[place] for place in shown.mistakes)
    yield from (issue.image for issue in shown.label_issues)
    for _, a, b in shown.duplicates:
        yield from (a, b)
    yield from (images[place] for place in shown.hits)
    yield from (images[place] for place in shown.unlike)
    cells = found.confusion.cells.values()
    for cell in sorted(cells, key=lambda cell: cell.truth == cell.predicted):  # mistakes before hits
        yield from (images[place] for place in cell.images[:IN_CELL])
