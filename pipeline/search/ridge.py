"""Ridge regression on one-hot labels, in closed form from sums over rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

Blocks = Iterable[tuple[Tensor, Tensor]]  # rows (n, R) and their labels (n,)


@dataclass
class Moments:
    """Sums over rows: of products of features (R, R), of features by class (C, R), of rows of each class (C,)."""

    products: Tensor
    by_class: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, width: int, num_classes: int) -> Self:
        """Of no rows."""
        return cls(torch.zeros(width, width), torch.zeros(num_classes, width), torch.zeros(num_classes))

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Rows (n, R) of classes (n,)."""
        self.products.addmm_(rows.T, rows)
        self.by_class.index_add_(0, labels, rows)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def __add__(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        return Moments(self.products + other.products, self.by_class + other.by_class, self.counts + other.counts)

    def __sub__(self, other: "Moments") -> "Moments":
        """Of the rows that the other has not."""
        return Moments(self.products - other.products, self.by_class - other.by_class, self.counts - other.counts)

    @property
    def mean(self) -> Tensor:
        """(R,)."""
        return self.by_class.sum(0) / self.counts.sum()

    @property
    def shares(self) -> Tensor:
        """Of the classes, (C,)."""
        return self.counts / self.counts.sum()

    @property
    def covariance(self) -> Tensor:
        """Of the features, (R, R)."""
        return self.products / self.counts.sum() - self.mean.outer(self.mean)

    @property
    def cross(self) -> Tensor:
        """Covariance of the features with one-hot labels, (R, C)."""
        return (self.by_class / self.counts.sum() - self.shares[:, None] * self.mean).T

    def balanced(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (R,), covariance (R, R) and cross (R, C) as if all classes that have rows had equally many.

        The covariance within classes is pooled over all rows, since a few rows of a class say little of theirs; the
        one between classes is of the class means, each with the same weight. A class without rows has a cross of 0.
        """
        known = self.counts > 0
        means = self.by_class / self.counts.clamp_min(1)[:, None]
        within = (self.products - self.by_class.T @ means) / self.counts.sum()
        mean = means[known].mean(0)
        apart = (means - mean) * known[:, None]
        return mean, within + apart.T @ apart / known.sum(), apart.T / known.sum()
