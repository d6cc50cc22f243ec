"""How much each image looks like each class, by ridge regression of the other folds; kept up to date label by label.

The covariance of features is of all images, whatever their labels; labels enter through the means of the classes alone.
All classes have the same weight, or the scores of a rare class would shrink to its share of the images. So a changed
label changes sums of two classes, and what follows has as many rows and columns as there are classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

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

    Attributes:
        labels: of each image (N,).
        folds: of each image (N,).
        num_classes: C.
        known: whether images of each class (C,) are in every fold; the others cannot be checked, and score -inf.
        scores: (N, C).
        agreement: how much the features of each image agree with each class, (N, C), 0 to 1; 0 where none is known.
    """

    def __init__(self, rows: Tensor, labels: Tensor, folds: Tensor, num_classes: int) -> None:
        self.labels, self.folds, self.num_classes = labels.clone(), folds, num_classes
        inside = [(folds == fold).nonzero().flatten() for fold in range(FOLDS)]
        centre = rows.mean(0)  # sums about it keep more digits
        parts = [rows[places] - centre for places in inside]
        moments = [self._moments(part, places) for part, places in zip(parts, inside, strict=True)]
        whole = sum(moments[1:], moments[0])
        others = [whole - own for own in moments]
        self._parts = [_Part(*each) for each in zip(inside, parts, others, strict=True)]
        self._place = torch.empty_like(folds)  # in its fold
        for places in inside:
            self._place[places] = torch.arange(len(places))
        self.scores = torch.empty(len(rows), num_classes)
        self._score()

    def _moments(self, rows: Tensor, places: Tensor) -> Moments:
        labels, count = self.labels[places], self.num_classes
        found = Moments.zeros(rows.shape[1], count + 1)
        found.add(rows, torch.where(labels == NO_LABEL, count, labels))
        return found

    def relabel(self, images: Tensor, label: int) -> None:
        """Give the images at these places (k,) another label, or `NO_LABEL`; one of C or more makes new classes."""
        if label >= self.num_classes:
            self.num_classes = label + 1
            self.scores = pad(self.scores, (0, label + 1 - self.scores.shape[1]), value=-torch.inf)
        signs = torch.zeros(len(images), self.num_classes)
        for row, old in enumerate(self.labels[images].tolist()):
            for one, sign in ((old, -1.0), (label, 1.0)):
                if one != NO_LABEL:
                    signs[row, one] += sign
        self.labels[images] = label
        theirs, places = self.folds[images], self._place[images]
        rows = torch.stack([self._parts[fold].rows[place] for fold, place in zip(theirs, places, strict=True)])
        for number, part in enumerate(self._parts):
            outside = theirs != number
            part.change(rows[outside], signs[outside])
        self._score()

    def _score(self) -> None:
        self.known = known_classes(self.labels, self.folds, self.num_classes)[0]
        for part in self._parts:
            self.scores[part.places] = part.scores(self.known)
        scores = SHARPNESS * self.scores
        self.agreement = torch.softmax(scores, dim=1) if self.known.any() else torch.zeros_like(scores)


class _Part:
    """The images of a fold, their `rows` (n, R), and the fit of the others by their moments."""

    def __init__(self, places: Tensor, rows: Tensor, others: Moments) -> None:
        self.places, self.rows = places, rows
        self._centre, self._count, self._counts = others.mean, others.counts.sum(), others.counts[:-1]
        variance = others.total
        variance.diagonal().add_(PENALTY * variance.diagonal().mean())
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(variance))
        self._sums = others.by_class[:-1] - self._counts[:, None] * self._centre
        projected = self._inverse @ self._sums.T
        self._of_rows, self._of_sums = self._through(projected), self._sums @ projected  # X A⁻¹ Sᵀ and S A⁻¹ Sᵀ

    def _through(self, projected: Tensor) -> Tensor:
        """Rows about the centre of the others times (R, k)."""
        return self.rows @ projected - self._centre @ projected

    def change(self, rows: Tensor, signs: Tensor) -> None:
        """Add rows (k, R) of the other folds to the class sums with `signs` (k, C), each -1, 0 or 1."""
        if (more := signs.shape[1] - len(self._counts)) > 0:
            self._counts, self._sums = pad(self._counts, (0, more)), pad(self._sums, (0, 0, 0, more))
            self._of_rows, self._of_sums = pad(self._of_rows, (0, more)), pad(self._of_sums, (0, more, 0, more))
        if not len(rows):
            return
        rows = rows - self._centre
        projected = self._inverse @ rows.T  # (R, k)
        across = self._sums @ projected @ signs
        self._of_rows += self._through(projected) @ signs
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
        found = torch.full((len(self.rows), len(known)), -torch.inf)
        by_sums, offset = (core / counts[:, None]).float(), (share @ of_means @ core).float()
        found[:, known] = self._of_rows[:, known] @ by_sums - offset
        return found
