"""The head: Linear(D, H), ReLU, Dropout, Linear(H, C), LogSoftmax."""

import math
from collections.abc import Sequence
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


def hidden_units(head: nn.Sequential) -> int:
    """H."""
    return len(head.state_dict()["0.bias"])


def merge_heads(heads: Sequence[nn.Sequential]) -> nn.Sequential:
    """One head that averages the logits of `heads`: all their hidden units side by side, in eval mode.

    For heads of one basis and the same classes. Averaging the outputs of nets that differ in their seeds alone is known
    as a deep ensemble (Lakshminarayanan et al., NeurIPS 2017); with one hidden layer, it is a net of one hidden layer.
    """
    parts = [head.state_dict() for head in heads]
    first = {name: torch.cat([part[name] for part in parts]) for name in ("0.weight", "0.bias")}
    weight = torch.cat([part["3.weight"] for part in parts], 1) / len(parts)
    bias = torch.stack([part["3.bias"] for part in parts]).mean(0)
    return head_from_tensors({**first, "3.weight": weight, "3.bias": bias})


def with_class_prior(head: nn.Sequential, trained: Tensor, wanted: Tensor, temperature: float = 1.0) -> nn.Sequential:
    """The head whose probabilities are for classes as frequent as `wanted` (C,), where it was trained for `trained`.

    Bayes' rule multiplies them by the ratio of both and normalises: the log of it is added to the last bias, times the
    `temperature` that logits are divided by later. Saerens,
    Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural Computation
    2002; Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021.
    """
    tensors = dict(head.state_dict())
    tensors["3.bias"] = (tensors["3.bias"].double() + temperature * (wanted.double() / trained.double()).log()).float()
    return head_from_tensors(tensors)


def head_from_tensors(tensors: dict[str, Tensor], dropout: float = 0.0) -> nn.Sequential:
    """The head of `0.weight (H, D), 0.bias, 3.weight (C, H), 3.bias`, in eval mode."""
    hidden, in_features = tensors["0.weight"].shape
    head = _layers(HeadConfig(in_features, hidden, len(tensors["3.weight"]), dropout))
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
