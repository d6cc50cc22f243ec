"""Labels that may be wrong: images whose features agree with another class, by a fit that did not see them.

Out-of-fold predictions as in confident learning (Northcutt, Jiang and Chuang, JAIR 2021), here of ridge regression on
the pyramid of features: in closed form, from sums, so that a million images need no more memory than a thousand.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.bases.reduced import unchecked
from pipeline.errors import RunError
from pipeline.reporting.rows import CleanRows, clean_rows, narrow
from pipeline.search.ridge import Moments

FOLDS = 5
# Chosen on flowers with 5 % of the labels changed (CONTRIBUTING.md).
PENALTY = 1.0  # times the mean variance of a feature
SHARPNESS = 20.0  # of the softmax: scores of one-hot labels are near 0 and 1


@dataclass(frozen=True)
class Suspect:
    """An image, its class and the one that its features agree with most, as places, and how much with its own, 0..1."""

    image: ImageRecord
    label: int
    suggested: int
    agreement: float


def suspects(cache: FeatureCache, index: SetIndex) -> list[Suspect]:
    """Training and validation images that agree with another class more than with theirs, the least agreeing first."""
    if reason := unchecked(cache, index):
        raise RunError(reason)
    rows = clean_rows(cache, index, narrow(cache), "train", "valid")
    agreement = torch.softmax(SHARPNESS * out_of_fold(rows, len(index.classes)), dim=1)
    with_own = agreement.gather(1, rows.labels[:, None]).squeeze(1).tolist()
    suggested, labels = agreement.argmax(1).tolist(), rows.labels.tolist()
    found = [
        Suspect(image, labels[place], suggested[place], with_own[place])
        for place, image in enumerate(rows.images)
        if labels[place] != suggested[place]
    ]
    return sorted(found, key=lambda one: (one.agreement, one.image.path))


def out_of_fold(rows: CleanRows, num_classes: int) -> Tensor:
    """(N, C): how much each image looks like each class, by a fit of the other folds."""
    folds = _folds(rows)
    parts = [Moments.zeros(rows.width, num_classes) for _ in range(FOLDS)]
    for block, places, fold in _by_fold(rows, folds):
        parts[fold].add(block, rows.labels[places])
    whole = sum(parts[1:], parts[0])
    fits = [_fit(whole - part) for part in parts]
    scores = torch.empty(len(rows.images), num_classes)
    for block, places, fold in _by_fold(rows, folds):
        weight, mean, shares = fits[fold]
        scores[places] = (block - mean) @ weight + shares
    return scores


def _folds(rows: CleanRows) -> Tensor:
    """Of each image (N,), by its contents: identical files are in the same one."""
    return torch.tensor([int(image.digest[:8], 16) % FOLDS for image in rows.images])


def _by_fold(rows: CleanRows, folds: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Rows (n, R) of one fold, their places (n,), and which fold."""
    for block, places in rows:
        for fold in range(FOLDS):
            some = folds[places] == fold
            yield block[some], places[some], fold


def _fit(found: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (R, C), mean (R,) and intercept (C,) of ridge regression."""
    covariance = found.covariance
    penalty = PENALTY * covariance.diagonal().mean()
    return torch.linalg.solve(covariance + penalty * torch.eye(len(covariance)), found.cross), found.mean, found.shares
