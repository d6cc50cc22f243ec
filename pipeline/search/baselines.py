"""What a head must beat: the commonest class, and ridge regression in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bases.rows import HeadData
from pipeline.bases.stream import StreamedData

PENALTIES = tuple(10.0**power for power in range(-5, 4))  # times the mean variance of a feature


@dataclass(frozen=True)
class Baselines:
    """Validation accuracies, fractions; `ridge_penalty` is the one that validated best, `ridge_basis` where."""

    majority: float
    ridge: float
    ridge_penalty: float
    ridge_basis: str


def baselines(data: HeadData | StreamedData, basis: str) -> Baselines:
    """Of the clean rows in `data`: trained on train, scored on validation."""
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    majority = float((data.valid_labels == counts.argmax()).double().mean())
    penalty, ridge = max(_ridge(data).items(), key=lambda item: (item[1], item[0]))
    return Baselines(majority, ridge, penalty, basis)


def _ridge(data: HeadData | StreamedData) -> dict[float, float]:
    """Validation accuracy by penalty: least squares on one-hot labels, centred, all from one eigendecomposition."""
    products, cross, mean = _moments(data)
    variances, directions = torch.linalg.eigh(products)
    targets = torch.bincount(data.train_labels, minlength=data.num_classes) / data.num_images
    hits = dict.fromkeys(PENALTIES, 0)
    for rows, labels in data.validation():
        along = (rows - mean) @ directions
        for penalty in PENALTIES:
            shrunk = along / (variances.clamp_min(0) + penalty * variances.mean())
            scores = shrunk @ (directions.T @ cross) + targets
            hits[penalty] += int((scores.argmax(1) == labels).sum())
    return {penalty: count / len(data.valid_labels) for penalty, count in hits.items()}


def _moments(data: HeadData | StreamedData) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance (R, R) of the clean training rows, covariance with one-hot labels (R, C), and mean (R,)."""
    width, count = data.in_features, data.num_images
    products, total = torch.zeros(width, width), torch.zeros(width)
    by_class = torch.zeros(data.num_classes, width)
    for rows, labels in data.clean():
        products.addmm_(rows.T, rows)
        total += rows.sum(0)
        by_class.index_add_(0, labels, rows)
    mean = total / count
    shares = torch.bincount(data.train_labels, minlength=data.num_classes) / count
    return products / count - mean.outer(mean), (by_class / count - shares.unsqueeze(1) * mean).T, mean
