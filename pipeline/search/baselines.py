"""What a head must beat: the majority class, shrunken discriminants as a classifier, and logistic regression."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.bases.data import LabelledRows
from pipeline.bases.moments import Moments, shrunken
from pipeline.config.heads import WIDEST

SHRINKAGES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # times the mean variance within classes
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)
_MOST_NUMBERS = 1 << 27  # of all rows that logistic regression holds, half a GB
_ITERATIONS = 500


@dataclass(frozen=True)
class Baselines:
    """Validation accuracies of classifiers in `basis`; over folds, of images that each was not fitted on.

    Attributes:
        basis: name of the basis.
        majority: accuracy of always naming the class with most training images, a fraction.
        discriminant: accuracy of shrunken linear discriminants as a classifier, fitted on all views at hand, a
            fraction (a report reads clean ones alone); None with more than `WIDEST` features.
        shrinkage: the one of `SHRINKAGES` that gave it.
        logistic: accuracy of logistic regression, fitted on standardised clean rows, a fraction; None with more than
            `WIDEST` features, more rows than fit in memory, or one class.
        inverse_penalty: scikit-learn's C, the one of `INVERSE_PENALTIES` that gave it.
        seconds: what all of them took.
    """

    basis: str
    majority: float
    discriminant: float | None
    shrinkage: float | None
    logistic: float | None
    inverse_penalty: float | None
    seconds: float

    @property
    def best(self) -> float:
        """The accuracy that a head must beat."""
        return max(self.majority, self.discriminant or 0.0, self.logistic or 0.0)


def baselines(splits: Sequence[LabelledRows], basis: str) -> Baselines:
    """Each at the penalty that is best on validation, over the validation images of all `splits`."""
    start = time.perf_counter()
    counts = [torch.bincount(data.train_labels, minlength=data.num_classes) for data in splits]
    named = sum(int((data.valid_labels == one.argmax()).sum()) for data, one in zip(splits, counts, strict=True))
    images, width = sum(len(data.valid_labels) for data in splits), splits[0].in_features
    narrow, most = width <= WIDEST, max(len(data.train_labels) for data in splits)
    fits = narrow and most * width <= _MOST_NUMBERS and all(int((one > 0).sum()) > 1 for one in counts)
    shrinkage, discriminant = _best(map(_discriminant, splits), images) if narrow else (None, None)
    penalty, logistic = _best(map(_logistic, splits), images) if fits else (None, None)
    seconds = time.perf_counter() - start
    return Baselines(basis, named / images, discriminant, shrinkage, logistic, penalty, seconds)


def _best(hits: Iterable[dict[float, int]], images: int) -> tuple[float, float]:
    """The first setting of those that are right about most images in all splits, and its accuracy."""
    total = Counter[float]()
    for of_split in hits:
        total.update(of_split)
    setting, count = max(total.items(), key=lambda item: item[1])
    return setting, count / images


def _discriminant(data: LabelledRows) -> dict[float, int]:
    """Validation images that are right, by shrinkage: equal covariances, G times their mean diagonal added.

    Friedman, Regularized discriminant analysis, JASA 1989, with gamma = G / (1 + G).
    """
    moments = Moments.of(data.all_views, data.in_features, data.num_classes)
    within, total = moments.within.double(), moments.total
    fits = {shrinkage: _fit(moments, shrunken(within, total, shrinkage)) for shrinkage in SHRINKAGES}
    hits, mean = dict.fromkeys(SHRINKAGES, 0), moments.mean
    for rows, labels in data.validation():
        for shrinkage, (weight, bias) in fits.items():
            hits[shrinkage] += int((((rows - mean) @ weight + bias).argmax(1) == labels).sum())
    return hits


def _fit(moments: Moments, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (R, C) and biases (C,) over centred rows; a class without images is never named."""
    means = moments.class_means - moments.mean
    weight = torch.linalg.solve(covariance, means.T.double()).float()
    return weight, moments.shares.log() - (means.T * weight).sum(0) / 2


def _logistic(data: LabelledRows) -> dict[float, int]:
    """Validation images that are right, by C, of scikit-learn's multinomial logistic regression."""
    x, y = _arrays(data.clean())
    valid, truth = _arrays(data.validation())
    scaler = StandardScaler(copy=False).fit(x)
    x, valid = scaler.transform(x), scaler.transform(valid)
    found, model = {}, LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    for inverse in INVERSE_PENALTIES:
        found[inverse] = int((model.set_params(C=inverse).fit(x, y).predict(valid) == truth).sum())
    return found


def _arrays(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = zip(*blocks, strict=True)
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()
