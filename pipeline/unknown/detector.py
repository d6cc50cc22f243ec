"""How unlike the training images a picture is, from its features and its probabilities, as a p-value.

Sources: relative Mahalanobis distance by Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD
Detection, 2021, on normalised features as Mueller and Hein, Mahalanobis++, ICML 2025, found that it needs them; the
largest probability by Hendrycks and Gimpel, ICLR 2017, as log-odds. What each is worth alone and together:
docs/decisions/unknown-images.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.bases.directions import leading_eigenvectors
from pipeline.bases.moments import Moments, shrunken
from pipeline.row_layout import RowLayout
from pipeline.statistics.conformal import p_values

SCORE = "log-odds of the largest probability + relative Mahalanobis distance"
DIRECTIONS = 256  # principal ones of the normalised features: measured, as the next two are
SHRINKAGE = 0.1
WEIGHT = 2.0  # of the log-odds


def pooled(layout: RowLayout, rows: Tensor) -> Tensor:
    """Rows (N, D) as unit vectors (N, R): a map by its mean, vectors as they are."""
    if layout.grid:
        weights = torch.from_numpy(layout.region_weights("pool")).to(rows)
        rows = (rows.view(len(rows), -1, len(weights)) @ weights).flatten(1)
    return normalize(rows)


@dataclass(frozen=True)
class Distance:
    """Relative Mahalanobis distance of pooled rows from the nearest class.

    Attributes:
        mean: of the training images, (R,).
        projection: onto K directions in which the covariance within classes is 1, and that of all images diagonal,
            (R, K).
        variance: of all images in these directions, (K,).
        class_means: in these directions, of the classes with training images, (C, K).
    """

    mean: Tensor
    projection: Tensor
    variance: Tensor
    class_means: Tensor

    @classmethod
    def of(cls, moments: Moments) -> "Distance":
        """Of training images with these moments."""
        count, width = int(moments.counts.sum()), len(moments.products)
        total, within, mean = moments.total, moments.within, moments.mean
        kept = min(DIRECTIONS, width, max(count - 1, 1))
        principal = leading_eigenvectors(total.float(), kept)[1][:, -kept:].double()
        within, total = (principal.T @ matrix.double() @ principal for matrix in (within, total))
        lower = torch.linalg.cholesky(shrunken(within, total, SHRINKAGE))
        apart = torch.linalg.solve_triangular(lower, shrunken(total, total, SHRINKAGE), upper=False)
        variance, rotation = torch.linalg.eigh(torch.linalg.solve_triangular(lower, apart.T, upper=False))
        projection = principal @ torch.linalg.solve_triangular(lower.T, rotation, upper=True)
        known = moments.counts > 0
        means = (moments.class_means[known] - mean).double() @ projection
        return cls(mean.float(), projection.float(), variance.float(), means.float())

    def of_rows(self, rows: Tensor) -> Tensor:
        """Of pooled rows (N, R): (N,), the larger the more unlike."""
        found = (rows - self.mean) @ self.projection
        nearest = torch.cdist(found, self.class_means, compute_mode="donot_use_mm_for_euclid_dist").square().amin(1)
        return nearest - (found.square() / self.variance).sum(1)


@dataclass(frozen=True)
class UnknownDetector:
    """What an exported model knows of the images it was trained for.

    Attributes:
        distance: from the nearest class.
        scale: mean and deviation of the distance and of the log-odds of known images, (2, 2).
        known: scores of known images that trained neither, in rising order, (N,).
    """

    distance: Distance
    scale: Tensor
    known: Tensor

    def scores(self, rows: Tensor, log_probs: Tensor) -> Tensor:
        """Of pooled rows (N, R) and log-probabilities (N, C): (N,), the larger the more unlike the training images."""
        return unlikeness(self.distance.of_rows(rows), log_probs, self.scale)

    def p_values(self, rows: Tensor, log_probs: Tensor) -> Tensor:
        """Fraction of known images that are as unlike or more, (N,) float64."""
        known, scores = (tensor.double().numpy() for tensor in (self.known, self.scores(rows, log_probs)))
        return torch.from_numpy(p_values(known, scores))

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a safetensors file."""
        of_distance = {one.name: getattr(self.distance, one.name).contiguous() for one in fields(Distance)}
        return {**of_distance, "scale": self.scale, "known": self.known}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], width: int) -> "UnknownDetector":
        """The inverse of `tensors`, for pooled rows of `width` features; ValueError where they are not of these."""
        distance = Distance(*(tensors[one.name] for one in fields(Distance)))
        found = cls(distance, tensors["scale"], tensors["known"])
        directions = len(distance.variance)
        shapes = [tuple(tensor.shape) for tensor in (distance.mean, distance.projection, distance.class_means)]
        wanted = [(width,), (width, directions), (len(distance.class_means), directions)]
        if shapes != wanted or found.scale.shape != (2, 2) or found.known.ndim != 1 or not len(found.known):
            raise ValueError(f"a detector of unknown images of shapes {shapes}, expected {wanted}")
        if not bool((distance.variance > 0).all() and (found.scale[:, 1] > 0).all()):
            raise ValueError("a detector of unknown images without a variance")
        return found


def unlikeness(distances: Tensor, log_probs: Tensor, scale: Tensor) -> Tensor:
    """Distances (N,) and log-odds by log-probabilities (N, C), each in deviations of `scale` (2, 2), added up: (N,)."""
    (middle, spread), (top, reach) = scale
    found: Tensor = (distances - middle) / spread - WEIGHT * (log_odds(log_probs) - top) / reach
    return found


def log_odds(log_probs: Tensor) -> Tensor:
    """Logarithm of the largest probability over the sum of the others, (N,), of log-probabilities (N, C) or logits."""
    top, which = log_probs.max(1)
    others = log_probs.scatter(1, which[:, None], -torch.inf)
    return top - others.logsumexp(1)


def scale_of(distances: Tensor, log_probs: Tensor) -> Tensor:
    """Means and deviations over known images, for `unlikeness`: (2, 2)."""
    both = torch.stack([distances, log_odds(log_probs)])
    spread = both.std(1, correction=0).clamp_min(1e-6 * both.abs().amax(1).clamp_min(1e-6))
    return torch.stack([both.mean(1), spread], 1)
