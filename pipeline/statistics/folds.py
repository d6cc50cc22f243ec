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
    names, together = groups.names(images), dict[str, list[int]]()
    for place, name in enumerate(names):
        together.setdefault(name, []).append(place)

    def order(places: list[int]) -> tuple[int, str]:
        """Large groups first, since the others can make up for them."""
        name = names[places[0]]
        return -len(places), hashlib.sha256(f"{repeat}:{name}".encode()).hexdigest() if repeat else name

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
    names = groups.names(images)
    ranked = sorted(range(len(images)), key=lambda place: hashlib.sha256(f"{draw}:{names[place]}".encode()).hexdigest())
    totals, seen = torch.bincount(labels).tolist(), dict[int, int]()
    begins: dict[str, float] = {}  # of each group: the share of its classes that comes before it, the least of them
    for place in ranked:
        label, name = int(labels[place]), names[place]
        begins[name] = min(begins.get(name, 1.0), seen.get(label, 0) / totals[label])
        seen[label] = seen.get(label, 0) + 1
    at = torch.tensor([begins[name] for name in names], dtype=torch.float64)
    return [(at < share - 1e-9).nonzero().flatten() for share in shares]
