"""Sums over rows of several classes, from which discriminants, principal directions, whitening and ridge follow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # each call: the same rows (n, R) float32, and labels (n,)


@dataclass
class Moments:
    """Sums over N rows of R features in C classes.

    Those of a part of the rows can be subtracted: what is left is of the others, as folds need it.

    Attributes:
        products: sums of products of two features (R, R).
        by_class: sums of features by class (C, R).
        counts: rows of each class (C,).
    """

    products: Tensor
    by_class: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, width: int, num_classes: int, dtype: torch.dtype = torch.float32) -> "Moments":
        """The moments of no rows, added up in `dtype`."""
        products, by_class = torch.zeros(width, width, dtype=dtype), torch.zeros(num_classes, width, dtype=dtype)
        return cls(products, by_class, torch.zeros(num_classes, dtype=dtype))

    @classmethod
    def of(cls, blocks: Blocks, width: int, num_classes: int) -> "Moments":
        """The moments of all blocks of rows (n, width)."""
        found = cls.zeros(width, num_classes)
        for rows, labels in blocks():
            found.add(rows, labels)
        return found

    def add(self, rows: Tensor, labels: Tensor | None = None) -> None:
        """Add rows (n, R) of classes (n,); without labels, all are of the only class.

        Rows are of the dtype of the sums; without labels, float32 may be added to float64.
        """
        if self.products.dtype == torch.float32:
            self.products.addmm_(rows.T, rows)  # in place: R² numbers may be many
        else:
            self.products += rows.T @ rows
        if labels is None:
            self.by_class += rows.sum(0)
            self.counts += len(rows)
        else:
            self.by_class.index_add_(0, labels, rows)
            self.counts += torch.bincount(labels, minlength=len(self.counts))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.products + other.products, self.by_class + other.by_class, self.counts + other.counts)

    def __sub__(self, other: "Moments") -> "Moments":
        return Moments(self.products - other.products, self.by_class - other.by_class, self.counts - other.counts)

    @property
    def mean(self) -> Tensor:
        """(R,)."""
        return self.by_class.sum(0) / self.counts.sum()

    @property
    def class_means(self) -> Tensor:
        """(C, R); 0 of a class without rows."""
        return self.by_class / self.counts.clamp_min(1)[:, None]

    @property
    def shares(self) -> Tensor:
        """Fraction of the rows that each class has, (C,)."""
        return self.counts / self.counts.sum()

    @property
    def total(self) -> Tensor:
        """Covariance of all rows, (R, R)."""
        return self.products / self.counts.sum() - self.mean.outer(self.mean)

    @property
    def within(self) -> Tensor:
        """Covariance within classes, pooled over all rows, (R, R)."""
        return (self.products - self.by_class.T @ self.class_means) / self.counts.sum()

    @property
    def between(self) -> Tensor:
        """Class means less the mean, times the square root of the class's share of the rows, (C, R)."""
        return (self.class_means - self.mean) * self.shares.sqrt()[:, None]


def shrunken(within: Tensor, total: Tensor, shrinkage: float) -> Tensor:
    """The covariance `within` classes with `shrinkage` times its mean diagonal added to its diagonal, (R, R)."""
    # Where the rows of each class are the same, only the rounding of sums is within: the total is then the measure.
    size = within.diagonal().mean().maximum(1e-5 * total.diagonal().mean()).clamp_min(1e-12)
    result = within.clone()
    result.diagonal().add_(shrinkage * size)
    return result
