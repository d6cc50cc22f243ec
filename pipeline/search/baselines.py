"""What a head must beat: the majority class, shrunken discriminants as a classifier, and logistic regression."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.bases.data import LabelledRows
from pipeline.bases.moments import Moments, shrunken
from pipeline.config import WIDEST

SHRINKAGES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # times the mean variance within classes
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)
_MOST_NUMBERS = 1 << 27  # of all rows that logistic regression holds, half a GB
_ITERATIONS = 500


@dataclass(frozen=True)
class Baselines:
    """Validation accuracies of classifiers in `basis`.

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


def baselines(data: LabelledRows, basis: str) -> Baselines:
    """Each at the penalty that is best on validation."""
    start = time.perf_counter()
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    majority = float((data.valid_labels == counts.argmax()).double().mean())
    narrow = data.in_features <= WIDEST
    fits = narrow and len(data.train_labels) * data.in_features <= _MOST_NUMBERS and int((counts > 0).sum()) > 1
    shrinkage, discriminant = _best(_discriminant(data)) if narrow else (None, None)
    penalty, logistic = _best(_logistic(data)) if fits else (None, None)
    return Baselines(basis, majority, discriminant, shrinkage, logistic, penalty, time.perf_counter() - start)


def _best(accuracies: dict[float, float]) -> tuple[float, float]:
    """The first setting of those that validate best, and its accuracy."""
    return max(accuracies.items(), key=lambda item: item[1])


def _discriminant(data: LabelledRows) -> dict[float, float]:
    """Validation accuracy by shrinkage: classes of equal covariance, G times its mean diagonal added to that.

    Friedman, Regularized discriminant analysis, JASA 1989, with gamma = G / (1 + G).
    """
    moments = Moments.of(data.all_views, data.in_features, data.num_classes)
    within, total = moments.within.double(), moments.total
    fits = {shrinkage: _fit(moments, shrunken(within, total, shrinkage)) for shrinkage in SHRINKAGES}
    hits, mean = dict.fromkeys(SHRINKAGES, 0), moments.mean
    for rows, labels in data.validation():
        for shrinkage, (weight, bias) in fits.items():
            hits[shrinkage] += int((((rows - mean) @ weight + bias).argmax(1) == labels).sum())
    return {shrinkage: count / len(data.valid_labels) for shrinkage, count in hits.items()}


def _fit(moments: Moments, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (R, C) and biases (C,) over centred rows; a class without images is never named."""
    means = moments.class_means - moments.mean
    weight = torch.linalg.solve(covariance, means.T.double()).float()
    return weight, moments.shares.log() - (means.T * weight).sum(0) / 2


def _logistic(data: LabelledRows) -> dict[float, float]:
    """Validation accuracy by C, of scikit-learn's multinomial logistic regression."""
    x, y = _arrays(data.clean())
    valid, truth = _arrays(data.validation())
    scaler = StandardScaler(copy=False).fit(x)
    x, valid = scaler.transform(x), scaler.transform(valid)
    found, model = {}, LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    for inverse in INVERSE_PENALTIES:
        found[inverse] = float(model.set_params(C=inverse).fit(x, y).score(valid, truth))
    return found


def _arrays(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = zip(*blocks, strict=True)
    return torch.cat(rows).numpy(), torch.cat(labels).numpy()
