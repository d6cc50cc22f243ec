"""How much each image looks like each class, by ridge regression of the other folds; kept up to date label by label.

The covariance of features is of all images, whatever their labels; labels enter through the means of the classes alone.
All classes have the same weight, or the scores of a rare class would shrink to its share of the images. So a changed
label changes sums of two classes, and what follows has as many rows and columns as there are classes.
"""

import torch
from torch import Tensor

from pipeline.bases.moments import Moments

# Chosen on flowers with 5 % of the labels changed in four ways (docs/decisions/label-issues.md).
PENALTY = 0.3  # times the mean variance of a feature
SHARPNESS = 40.0  # of the softmax: scores of one-hot labels are near 0 and 1
NO_LABEL = -1
FOLDS = 5


def fit_fold(found: Moments) -> tuple[Tensor, Tensor]:
    """Weights (R, C) and mean (R,) of ridge regression on one-hot labels; (x - mean) @ weights are the scores.

    The last class of the moments are the images without a label, so that they are of C + 1 classes. The covariance
    within classes is pooled, since a few rows of a class say little of theirs; the one between classes is of the class
    means, each with the same weight. A class without rows has no weight. The intercept is left out: it is the same for
    all classes.
    """
    counts, total, centre = found.counts[:-1], found.total, found.mean
    share = (counts > 0).to(total.dtype) / (counts > 0).sum()
    apart = (found.class_means[:-1] - centre) * (counts > 0)[:, None]
    mean = share @ apart
    covariance = total + (apart.T * (share - counts / found.counts.sum())) @ apart - mean.outer(mean)
    covariance.diagonal().add_(PENALTY * total.diagonal().mean())
    return torch.linalg.solve(covariance, (share[:, None] * (apart - mean)).T), centre + mean


def known_classes(labels: Tensor, folds: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Whether images of each class are in every fold (C,), and how many are in which (C, FOLDS)."""
    labelled, counts = labels != NO_LABEL, torch.zeros(num_classes, FOLDS, dtype=torch.int64)
    counts.index_put_((labels[labelled], folds[labelled]), torch.ones((), dtype=torch.int64), accumulate=True)
    return (counts > 0).all(1), counts


class OutOfFoldRidge:
    """Scores (N, C) of rows (N, R), each by a fit of the other folds than its own; `NO_LABEL` takes no part in means.

    They equal those of `fit_fold` but for rounding. A fold keeps the inverse (R, R) of the penalised covariance of the
    others, A, and of the class sums S (C, R) what A makes of them: X A⁻¹ Sᵀ (n, C) and S A⁻¹ Sᵀ (C, C). With M the
    class means and E (C, C) the weights that turn A into the penalised covariance of `fit_fold`, A + Mᵀ E M, whose
    inverse times Mᵀ is A⁻¹ Mᵀ (I + E M A⁻¹ Mᵀ)⁻¹.
    """

    def __init__(self, rows: Tensor, labels: Tensor, folds: Tensor, num_classes: int) -> None:
        self.labels, self.folds, self.num_classes = labels.clone(), folds, num_classes
        self._rows = rows - rows.mean(0)
        self.scores = torch.empty(len(rows), num_classes)
        inside = [folds == fold for fold in range(FOLDS)]
        moments = [self._moments(some) for some in inside]
        whole = sum(moments[1:], moments[0])
        self._parts = [self._part(some, whole - own) for some, own in zip(inside, moments, strict=True)]
        self._score(self._parts)

    def _moments(self, some: Tensor) -> Moments:
        labels, count = self.labels[some], self.num_classes
        found = Moments.zeros(self._rows.shape[1], count + 1)
        found.add(self._rows[some], torch.where(labels == NO_LABEL, count, labels))
        return found

    def _part(self, inside: Tensor, others: Moments) -> "_Part":
        """The images that are `inside` a fold, and the fit of the others by their moments."""
        centre, variance = others.mean, others.total
        variance.diagonal().add_(PENALTY * variance.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(variance))
        counts = others.counts[:-1]
        sums = others.by_class[:-1] - counts[:, None] * centre
        rows = self._rows[inside] - centre
        projected = inverse @ sums.T
        return _Part(
            inside, centre, inverse, others.counts.sum(), counts, sums, rows, rows @ projected, sums @ projected
        )

    @property
    def known(self) -> Tensor:
        """Whether images of each class (C,) are in every fold: the others cannot be checked, and score -inf."""
        return known_classes(self.labels, self.folds, self.num_classes)[0]

    def relabel(self, images: Tensor, label: int) -> None:
        """Give the images at these places (k,) another label, or `NO_LABEL`; a label of C makes a new class."""
        if label >= self.num_classes:
            self.num_classes = label + 1
            self.scores = _padded(self.scores, label + 1)
        before = self.labels[images]
        self.labels[images] = label
        signs = torch.zeros(len(images), self.num_classes)
        for place, old in enumerate(before.tolist()):
            for one, sign in ((old, -1.0), (label, 1.0)):
                if one != NO_LABEL:
                    signs[place, one] += sign
        for number, part in enumerate(self._parts):
            outside = self.folds[images] != number
            part.grow(self.num_classes)
            if outside.any():
                part.change(self._rows[images[outside]], signs[outside])
        self._score(self._parts)

    def _score(self, parts: list["_Part"]) -> None:
        known = self.known
        for part in parts:
            self.scores[part.inside] = part.scores(known)

    def agreement(self) -> Tensor:
        """How much the features of each image agree with each class, (N, C), 0 to 1; 0 of those that are not known."""
        return torch.softmax(SHARPNESS * self.scores, dim=1)


class _Part:
    """The images of a fold, `rows` (n, R) about `centre`, and the fit of the others."""

    def __init__(
        self,
        inside: Tensor,
        centre: Tensor,
        inverse: Tensor,
        count: Tensor,
        counts: Tensor,
        sums: Tensor,
        rows: Tensor,
        of_rows: Tensor,
        of_sums: Tensor,
    ) -> None:
        self.inside, self._rows = inside.nonzero().flatten(), rows
        self._centre, self._inverse, self._count = centre, inverse, count
        self._counts, self._sums = counts, sums
        self._of_rows, self._of_sums = of_rows, of_sums  # X A⁻¹ Sᵀ and S A⁻¹ Sᵀ

    def grow(self, num_classes: int) -> None:
        """Make room for new classes."""
        if (more := num_classes - len(self._counts)) > 0:
            self._counts = torch.nn.functional.pad(self._counts, (0, more))
            self._sums = torch.nn.functional.pad(self._sums, (0, 0, 0, more))
            self._of_rows = torch.nn.functional.pad(self._of_rows, (0, more))
            self._of_sums = torch.nn.functional.pad(self._of_sums, (0, more, 0, more))

    def change(self, rows: Tensor, signs: Tensor) -> None:
        """Add rows (k, R) of the other folds to the class sums with `signs` (k, C), each -1, 0 or 1."""
        rows = rows - self._centre
        projected = self._inverse @ rows.T  # (R, k)
        across = self._sums @ projected @ signs
        self._of_rows += self._rows @ projected @ signs
        self._of_sums += across + across.T + signs.T @ (rows @ projected) @ signs
        self._sums += signs.T @ rows
        self._counts += signs.sum(0)

    def scores(self, known: Tensor) -> Tensor:
        """(n, C), -inf of classes that are not known."""
        counts = self._counts[known].double()
        share = torch.full_like(counts, 1 / max(len(counts), 1))
        of_means = self._of_sums[known][:, known].double() / counts.outer(counts)
        weights = (share - counts / self._count).diag() - share.outer(share)
        core = torch.linalg.solve(torch.eye(len(counts)) + weights @ of_means, share.diag() - share.outer(share))
        found = torch.full((len(self._rows), len(known)), -torch.inf)
        core, offset = (core / counts[:, None]).float(), (share @ of_means @ core).float()
        found[:, known] = self._of_rows[:, known] @ core - offset
        return found


def _padded(scores: Tensor, num_classes: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, num_classes - scores.shape[1]), value=-torch.inf)
