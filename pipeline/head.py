"""The head: Linear(D, H), ReLU, Dropout, Linear(H, C), LogSoftmax."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a head: D inputs, H hidden units, C classes; `dropout` is the share of hidden units left out."""

    in_features: int
    hidden: int
    num_classes: int
    dropout: float = 0.5


def build_head(config: HeadConfig, generator: torch.Generator | None = None) -> nn.Sequential:
    """A new head, (B, D) → log-probabilities (B, C); weights as `nn.Linear` draws them, from `generator`."""
    head = _layers(config)
    for layer in (head[0], head[3]):
        assert isinstance(layer, nn.Linear)
        bound = 1 / math.sqrt(layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return head


def _layers(config: HeadConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.utils.skip_init(nn.Linear, config.in_features, config.hidden),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.utils.skip_init(nn.Linear, config.hidden, config.num_classes),
        nn.LogSoftmax(dim=1),
    )


def head_from_tensors(tensors: dict[str, Tensor], dropout: float = 0.0) -> nn.Sequential:
    """The head of `0.weight (H, D), 0.bias, 3.weight (C, H), 3.bias`, in eval mode."""
    hidden, in_features = tensors["0.weight"].shape
    head = _layers(HeadConfig(in_features, hidden, len(tensors["3.weight"]), dropout))
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
