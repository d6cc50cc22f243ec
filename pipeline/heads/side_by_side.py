"""Heads of the same settings on rows of their own, trained side by side: folds, or parts of a set."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.bases.data import HeadData
from pipeline.config import HeadSettings
from pipeline.heads.fit import class_weights, hyperparameters_of, matmul_dtype_on, shape_of
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.device import CPU, full_precision

Batch = tuple[Tensor, Tensor]


def fit_side_by_side(
    datas: Sequence[HeadData],
    settings: HeadSettings,
    epochs: int,
    seed: int,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> list[Head]:
    """A head for each of `datas`, all of the same width and classes: that which `fit_head` trains on it alone.

    Those with as many steps in an epoch are one group. Weights are of `dtype`; products in float32 are computed as
    `fit_head` computes them.
    """
    heads: dict[int, Head] = {}
    by_steps: dict[int, list[int]] = {}
    for place, data in enumerate(datas):
        by_steps.setdefault(math.ceil(len(data.train_labels) / settings.batch_size), []).append(place)
    for places in by_steps.values():
        group = _trained([datas[place] for place in places], settings, epochs, seed, device, dtype)
        for number, place in enumerate(places):
            tensors = {name: tensor.cpu() for name, tensor in group.weights(number).items()}
            heads[place] = Head.from_tensors(tensors, settings.dropout).to(dtype)
    return [heads[place] for place in range(len(datas))]


def _trained(
    datas: Sequence[HeadData], settings: HeadSettings, epochs: int, seed: int, device: torch.device, dtype: torch.dtype
) -> HeadGroup:
    shape = shape_of(settings, datas[0], epochs)
    states = [HeadState.new(hyperparameters_of(settings, seed), shape, dtype) for _ in datas]
    products = matmul_dtype_on(device) if dtype == torch.float32 else None
    group = HeadGroup(states, shape, None, products, device)
    of_class = [class_weights(settings, data) for data in datas]
    datas = [replace(data, rows=data.rows.to(products or dtype)) for data in datas]  # once, and not in each epoch
    with full_precision(device):
        for epoch in range(1, epochs + 1):
            batches = (data.batches(settings.batch_size, shuffle_rng(seed, epoch)) for data in datas)
            for batch in zip(*batches, strict=True):
                counts = [len(labels) for _, labels in batch]
                rows, labels = (pad_sequence(list(parts), batch_first=True) for parts in zip(*batch, strict=True))
                weights = _weights(batch, of_class)
                group.step(rows.to(device), labels.to(device), weights.to(device), counts)
    return group


def _weights(batch: Sequence[Batch], of_class: Sequence[Tensor | None]) -> Tensor:
    """Of the rows of each head (G, B), their mean 1 over the longest batch; 0 of what fills up the others."""
    longest = max(len(labels) for _, labels in batch)
    weights = torch.zeros(len(batch), longest, dtype=torch.float64)
    for number, ((_, labels), classes) in enumerate(zip(batch, of_class, strict=True)):
        own = torch.ones(len(labels)) if classes is None else classes[labels]
        weights[number, : len(labels)] = own.double() * longest / own.double().sum()
    return weights
