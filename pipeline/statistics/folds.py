"""Folds of images: groups stay together, and each class is spread over as many folds as it can be."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.index import ImageRecord
from pipeline.statistics.groups import Groups


def stratified_folds(
    images: Sequence[ImageRecord], labels: Tensor, groups: Groups, count: int, repeat: int = 0
) -> Tensor:
    """The fold of each image (N,), from 0: a group in one, each class in as many as it can be, in equal parts.

    Depends on contents, labels and groups, not on the order or the names of files. Each `repeat` is another draw.
    """
    together: dict[int, list[int]] = {}
    for place, group in enumerate(groups.numbers(images).tolist()):
        together.setdefault(group, []).append(place)

    def order(places: list[int]) -> tuple[int, str]:
        """Large groups first, since the others can make up for them."""
        lowest = min(images[one].digest for one in places)
        return -len(places), hashlib.sha256(f"{repeat}:{lowest}".encode()).hexdigest() if repeat else lowest

    totals, label_of = torch.bincount(labels).tolist(), labels.tolist()
    filled = [[0.0] * (len(totals) + 1) for _ in range(count)]  # share of each class, then of images
    folds = torch.empty(len(images), dtype=torch.int64)
    for places in sorted(together.values(), key=order):
        classes = {label_of[place] for place in places}
        fold = min(range(count), key=lambda one: (max(filled[one][label] for label in classes), filled[one][-1], one))
        folds[places] = fold
        for place in places:
            filled[fold][label_of[place]] += 1 / totals[label_of[place]]
            filled[fold][-1] += 1
    return folds


def folds_of_groups(images: Sequence[ImageRecord], groups: Groups) -> Tensor:
    """The fold of each image (N,) where every group is a fold of its own."""
    return torch.from_numpy(np.unique(groups.numbers(images), return_inverse=True)[1])


def nested_parts(
    images: Sequence[ImageRecord], labels: Tensor, groups: Groups, shares: Sequence[float], draw: int
) -> list[Tensor]:
    """Places of the images in parts of rising shares: each holds the one before it, and every class in its share.

    Groups come whole, in an order that `draw` decides; of each class the first is in every part.
    """
    numbers = groups.numbers(images)
    lowest: dict[int, str] = {}
    for image, number in zip(images, numbers.tolist(), strict=True):
        lowest[number] = min(image.digest, lowest.get(number, image.digest))
    order = {number: hashlib.sha256(f"{draw}:{digest}".encode()).hexdigest() for number, digest in lowest.items()}
    ranked = sorted(range(len(images)), key=lambda place: order[int(numbers[place])])
    totals, seen = torch.bincount(labels).tolist(), dict[int, int]()
    begins: dict[int, float] = {}  # of each group: the share of its classes that comes before it, the least of them
    for place in ranked:
        label, number = int(labels[place]), int(numbers[place])
        begins[number] = min(begins.get(number, 1.0), seen.get(label, 0) / totals[label])
        seen[label] = seen.get(label, 0) + 1
    at = torch.tensor([begins[number] for number in numbers.tolist()], dtype=torch.float64)
    return [(at < share - 1e-9).nonzero().flatten() for share in shares]
