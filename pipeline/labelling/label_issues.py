"""Label issues: images whose features agree with another class than their label, by a fit that did not see them.

Out-of-fold predictions as in confident learning (Northcutt, Jiang and Chuang, JAIR 2021), here of ridge regression on
the pyramid of features: in closed form, from sums, so that a million images need no more memory than a thousand. All
classes have the same weight, or the scores of a rare class would shrink to its share of the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.bases.clean_rows import CleanRows, narrow
from pipeline.bases.moments import Moments
from pipeline.bases.reduced import unchecked
from pipeline.errors import RunError
from pipeline.labelling.ridge import FOLDS, NO_LABEL, SHARPNESS, fit_fold, known_classes
from pipeline.statistics.folds import stratified_folds
from pipeline.statistics.groups import Groups


@dataclass(frozen=True)
class LabelIssue:
    """An image that may have a wrong label.

    Attributes:
        image: of train or valid.
        label: class it has, a place in the set's classes.
        suggested: class that its features agree with most.
        agreement: how much they agree with its own, 0 to 1.
    """

    image: ImageRecord
    label: int
    suggested: int
    agreement: float


@dataclass(frozen=True)
class LabelIssues:
    """What was found in the training and validation images.

    Attributes:
        found: images that agree with another class more than with theirs, the least agreeing first.
        checked: how many images were checked.
        unchecked: images of each class that cannot be checked, by its place: not in every fold, as with fewer images,
            or groups of near-duplicates, than folds. None of them is in `found`, or took part in a fit.
    """

    found: list[LabelIssue]
    checked: int
    unchecked: dict[int, int]


def label_issues(cache: FeatureCache, index: SetIndex, groups: Groups) -> LabelIssues:
    """Predict each training and validation image from the others, those of its group left out.

    Unlabelled images say how features vary, and nothing of a class. RunError where the rows were made by a basis that
    was fitted on these labels.
    """
    if reason := unchecked(cache, index):
        raise RunError(reason)
    images, labels, folds = folded(index, groups)
    count = len(index.classes)
    known, counts = known_classes(labels, folds, count)
    kept = torch.where(known[labels] & (labels != NO_LABEL), labels, NO_LABEL)
    left = {place: int(counts[place].sum()) for place in range(count) if counts[place].any() and not known[place]}
    checked = (kept != NO_LABEL).nonzero().flatten()
    if not len(checked):
        return LabelIssues([], 0, left)
    scores = out_of_fold(CleanRows(cache, narrow(cache), images, kept), folds, count).masked_fill(~known, -torch.inf)
    agreement = torch.softmax(SHARPNESS * scores[checked], dim=1)
    own = agreement.gather(1, kept[checked, None]).squeeze(1).tolist()
    columns = [images[place] for place in checked], kept[checked].tolist(), agreement.argmax(1).tolist(), own
    found = [issue for one in zip(*columns, strict=True) if (issue := LabelIssue(*one)).label != issue.suggested]
    found.sort(key=lambda one: (one.agreement, one.image.path))
    return LabelIssues(found, len(checked), left)


def folded(index: SetIndex, groups: Groups) -> tuple[list[ImageRecord], Tensor, Tensor]:
    """Training, validation and unlabelled images, their labels (N,), `NO_LABEL` of the latter, and folds (N,)."""
    labelled, others = index.split("train", "valid"), index.split(UNLABELLED)
    labels = torch.cat([torch.from_numpy(index.labels(labelled)), torch.full((len(others),), NO_LABEL)])
    images = [*labelled, *others]
    strata = torch.where(labels == NO_LABEL, len(index.classes), labels)
    return images, labels, stratified_folds(images, strata, groups, FOLDS)


def out_of_fold(rows: CleanRows, folds: Tensor, num_classes: int) -> Tensor:
    """(N, C): how much each image looks like each class, by a fit of the other folds than its own, `folds` (N,)."""
    labels = torch.where(rows.labels == NO_LABEL, num_classes, rows.labels)
    parts = [Moments.zeros(rows.width, num_classes + 1) for _ in range(FOLDS)]
    for block, places, fold in _by_fold(rows, folds):
        parts[fold].add(block, labels[places])
    whole = sum(parts[1:], parts[0])
    fits = [fit_fold(whole - part) for part in parts]
    scores = torch.empty(len(rows.images), num_classes)
    for block, places, fold in _by_fold(rows, folds):
        weight, mean = fits[fold]
        scores[places] = (block - mean) @ weight
    return scores


def _by_fold(rows: CleanRows, folds: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows (n, R) of one fold, their places (n,), and which fold."""
    for block, places in rows:
        for fold in range(FOLDS):
            some = folds[places] == fold
            yield block[some], places[some], fold
