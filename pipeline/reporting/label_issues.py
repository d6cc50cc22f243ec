"""Label issues: images whose features agree with another class than their label, by a fit that did not see them.

Out-of-fold predictions as in confident learning (Northcutt, Jiang and Chuang, JAIR 2021), here of ridge regression on
the pyramid of features: in closed form, from sums, so that a million images need no more memory than a thousand. All
classes have the same weight, or the scores of a rare class would shrink to its share of the images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.bases.moments import Moments
from pipeline.bases.reduced import unchecked
from pipeline.errors import RunError
from pipeline.reporting.rows import CleanRows, narrow
from pipeline.statistics.folds import stratified_folds
from pipeline.statistics.groups import Groups

FOLDS = 5
# Chosen on flowers with 5 % of the labels changed in four ways (docs/decisions/label-issues.md).
PENALTY = 0.3  # times the mean variance of a feature
SHARPNESS = 40.0  # of the softmax: scores of one-hot labels are near 0 and 1


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

    RunError where the rows were made by a basis that was fitted on these labels.
    """
    if reason := unchecked(cache, index):
        raise RunError(reason)
    images, count = index.split("train", "valid"), len(index.classes)
    labels = torch.from_numpy(index.labels(images))
    folds = stratified_folds(images, labels, groups, FOLDS)
    counts = torch.zeros(count, FOLDS, dtype=torch.int64).index_put_(
        (labels, folds), torch.ones_like(labels), accumulate=True
    )
    known = (counts > 0).all(1)
    kept = known[labels]
    rows = CleanRows(cache, narrow(cache), [images[place] for place in kept.nonzero().flatten()], labels[kept])
    left = {place: int(counts[place].sum()) for place in range(count) if counts[place].any() and not known[place]}
    if not rows.images:
        return LabelIssues([], 0, left)
    scores = out_of_fold(rows, folds[kept], count).masked_fill(~known, -torch.inf)
    agreement = torch.softmax(SHARPNESS * scores, dim=1)
    own, suggested = agreement.gather(1, rows.labels[:, None]).squeeze(1).tolist(), agreement.argmax(1).tolist()
    issues = (LabelIssue(*one) for one in zip(rows.images, rows.labels.tolist(), suggested, own, strict=True))
    found = [issue for issue in issues if issue.label != issue.suggested]
    found.sort(key=lambda one: (one.agreement, one.image.path))
    return LabelIssues(found, len(rows.images), left)


def out_of_fold(rows: CleanRows, folds: Tensor, num_classes: int) -> Tensor:
    """(N, C): how much each image looks like each class, by a fit of the other folds than its own, `folds` (N,)."""
    parts = [Moments.zeros(rows.width, num_classes) for _ in range(FOLDS)]
    for block, places, fold in _by_fold(rows, folds):
        parts[fold].add(block, rows.labels[places])
    whole = sum(parts[1:], parts[0])
    fits = [_fit(whole - part) for part in parts]
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


def _fit(found: Moments) -> tuple[Tensor, Tensor]:
    """Weights (R, C) and mean (R,) of ridge regression on one-hot labels, all classes with the same weight.

    The intercept is left out: it is the same for all classes.
    """
    mean, covariance, cross = found.balanced()
    penalty = PENALTY * covariance.diagonal().mean()
    return torch.linalg.solve(covariance + penalty * torch.eye(len(covariance)), cross), mean
