"""What a head must beat: the majority class, shrunken discriminants as a classifier, and logistic regression."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.bases.directions import WIDEST, ScatterMatrices, scatter_of

SHRINKAGES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # times the mean variance within classes
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1)
_MOST_NUMBERS = 1 << 27  # of all rows that logistic regression holds, half a GB
_ITERATIONS = 500


class Data(Protocol):
    """Rows in a basis, some at a time, with their labels."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def train_labels(self) -> Tensor:
        """(N,)."""

    @property
    def valid_labels(self) -> Tensor:
        """(V,)."""

    @property
    def in_features(self) -> int:
        """R, the length of a row."""

    def clean(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows (n, R) and labels (n,) of the clean views of the training images."""

    def all_views(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The same of all views."""

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The same of the validation images."""


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


def baselines(data: Data, basis: str) -> Baselines:
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


def _discriminant(data: Data) -> dict[float, float]:
    """Validation accuracy by shrinkage: classes of equal covariance, G times its mean diagonal added to that.

    Friedman, Regularized discriminant analysis, JASA 1989, with gamma = G / (1 + G).
    """
    spread = scatter_of(data.all_views, data.num_classes)
    shares = torch.bincount(data.train_labels, minlength=data.num_classes) / len(data.train_labels)
    fits = {shrinkage: _fit(spread, shares, shrinkage) for shrinkage in SHRINKAGES}
    hits = dict.fromkeys(SHRINKAGES, 0)
    for rows, labels in data.validation():
        for shrinkage, (weight, bias) in fits.items():
            hits[shrinkage] += int((((rows - spread.mean) @ weight + bias).argmax(1) == labels).sum())
    return {shrinkage: count / len(data.valid_labels) for shrinkage, count in hits.items()}


def _fit(spread: ScatterMatrices, shares: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weights (R, C) and biases (C,) over centred rows; a class without images is never named."""
    means = spread.between / shares.clamp_min(1e-12).sqrt().unsqueeze(1)  # (C, R), less the mean of all
    within = spread.within.double()
    size = within.diagonal().mean().maximum(1e-5 * spread.total.diagonal().mean()).clamp_min(1e-12)
    within.diagonal().add_(shrinkage * size)
    weight = torch.linalg.solve(within, means.T.double()).float()
    return weight, shares.log() - (means.T * weight).sum(0) / 2


def _logistic(data: Data) -> dict[float, float]:
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
