"""What a head must beat: the commonest class, and ridge regression in closed form."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.search.ridge import moments

PENALTIES = tuple(10.0**power for power in range(-5, 4))  # times the mean variance of a feature


class Data(Protocol):
    """Clean rows in a basis, some at a time, with their labels."""

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
        """Length of a row."""

    def clean(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Of the training images."""

    def validation(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Of the validation images."""


@dataclass(frozen=True)
class Baselines:
    """Validation accuracies, fractions; `ridge_penalty` is the one that validated best, `ridge_basis` where."""

    majority: float
    ridge: float
    ridge_penalty: float
    ridge_basis: str


def baselines(data: Data, basis: str) -> Baselines:
    """Of the clean rows in `data`: trained on train, scored on validation."""
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    majority = float((data.valid_labels == counts.argmax()).double().mean())
    penalty, ridge = max(_ridge(data).items(), key=lambda item: (item[1], item[0]))
    return Baselines(majority, ridge, penalty, basis)


def _ridge(data: Data) -> dict[float, float]:
    """Validation accuracy by penalty: least squares on one-hot labels, centred, all from one eigendecomposition."""
    found = moments(data.clean(), data.in_features, data.num_classes)
    variances, directions = torch.linalg.eigh(found.covariance)
    cross = directions.T @ found.cross
    hits = dict.fromkeys(PENALTIES, 0)
    for rows, labels in data.validation():
        along = (rows - found.mean) @ directions
        for penalty in PENALTIES:
            shrunk = along / (variances.clamp_min(0) + penalty * variances.mean())
            scores = shrunk @ cross + found.shares
            hits[penalty] += int((scores.argmax(1) == labels).sum())
    return {penalty: count / len(data.valid_labels) for penalty, count in hits.items()}
