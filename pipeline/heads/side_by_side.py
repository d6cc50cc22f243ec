"""Heads of the same settings on rows of their own, trained side by side: folds, or parts of a set."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.bases.data import HeadData
from pipeline.config.heads import HeadSettings
from pipeline.errors import RunError
from pipeline.heads.fit import class_weights, hyperparameters_of, matmul_dtype_on
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.device import CPU, full_precision

Batch = tuple[Tensor, Tensor]


def fit_side_by_side(
    datas: Sequence[HeadData],
    settings: HeadSettings,
    steps: Sequence[int],
    seeds: Sequence[int],
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> list[Head]:
    """A head for each of `datas`, all of the same width and classes: that which `fit_head` trains on it alone.

    Each has its own seed, and takes so many steps, epoch after epoch; those with as many are one group. Weights are of
    `dtype`; products in float32 are computed as `fit_head` computes them. Raises RunError where weights become NaN or
    infinite.
    """
    heads: dict[int, Head] = {}
    for its in sorted(set(steps)):
        places = [place for place, each in enumerate(steps) if each == its]
        members = [hyperparameters_of(settings, seeds[place]) for place in places]
        group = _trained([datas[place] for place in places], settings, members, its, device, dtype)
        for number, place in enumerate(places):
            tensors = {name: tensor.cpu() for name, tensor in group.weights(number).items()}
            heads[place] = Head.from_tensors(tensors, settings.dropout).to(dtype)
    return [heads[place] for place in range(len(datas))]


def steps_of(data: HeadData, settings: HeadSettings, epochs: int) -> int:
    """How many steps so many epochs have."""
    return epochs * math.ceil(len(data.train_labels) / settings.batch_size)


def _trained(
    datas: Sequence[HeadData],
    settings: HeadSettings,
    members: Sequence[HeadHyperparameters],
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> HeadGroup:
    shape = HeadShape(datas[0].in_features, settings.hidden, datas[0].num_classes, steps)
    products = matmul_dtype_on(device) if dtype == torch.float32 else None
    group = HeadGroup([HeadState.new(one, shape, dtype) for one in members], shape, None, products, device)
    of_class = [class_weights(settings, data) for data in datas]
    datas = [replace(data, rows=data.rows.to(products or dtype)) for data in datas]  # once, and not in each epoch
    endless = (_endless(data, settings.batch_size, one.seed) for data, one in zip(datas, members, strict=True))
    with full_precision(device):
        for batch in islice(zip(*endless, strict=True), steps):
            counts = [len(labels) for _, labels in batch]
            rows, labels = (pad_sequence(list(parts), batch_first=True) for parts in zip(*batch, strict=True))
            weights = _weights(batch, of_class, dtype)
            group.step(rows.to(device), labels.to(device), weights.to(device), counts)
    if not group.finite().all():
        raise RunError(f"weights became NaN or infinite: lower --lr, now {settings.lr}")
    return group


def _endless(data: HeadData, batch_size: int, seed: int) -> Iterator[Batch]:
    """The batches of all epochs."""
    for epoch in count(1):
        yield from data.batches(batch_size, shuffle_rng(seed, epoch))


def _weights(batch: Sequence[Batch], of_class: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """Of the rows of each head (G, B), their mean 1 over the longest batch; 0 of what fills up the others."""
    longest = max(len(labels) for _, labels in batch)
    weights = torch.zeros(len(batch), longest, dtype=dtype)
    for number, ((_, labels), classes) in enumerate(zip(batch, of_class, strict=True)):
        own = torch.ones(len(labels)) if classes is None else classes[labels]
        weights[number, : len(labels)] = own.double() * longest / own.double().sum()
    return weights
