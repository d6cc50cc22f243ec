"""The head: Linear(D, H), ReLU, Dropout, Linear(H, C), LogSoftmax; with H = 0, Linear(D, C), LogSoftmax."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.bases.basis import Basis


class Head(nn.Sequential):
    """(B, D) → log-probabilities (B, C), by H hidden units; with none, it is logistic regression.

    Its tensors are `0.weight` (H, D), `0.bias`, `3.weight` (C, H) and `3.bias`, or without a hidden layer `0.weight`
    (C, D) and `0.bias` alone. What changes a layer returns another head, in eval mode; this one stays as it is.
    """

    @classmethod
    def new(
        cls,
        in_features: int,
        hidden: int,
        num_classes: int,
        dropout: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> "Head":
        """A head with weights as `nn.Linear` draws them, from `generator`; `dropout` is of its hidden units, if any."""
        head = cls(*_layers(in_features, hidden, num_classes, dropout))
        for layer in head:
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        return head

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], dropout: float = 0.0) -> "Head":
        """The head of its tensors, in eval mode; KeyError, ValueError or RuntimeError where they are not a head's."""
        num_classes, in_features = tensors["0.weight"].shape
        hidden = 0
        if "3.weight" in tensors:
            num_classes, hidden = tensors["3.weight"].shape
        head = cls(*_layers(in_features, hidden, num_classes, dropout))
        head.load_state_dict(tensors)
        return head.eval().requires_grad_(False)

    @property
    def first(self) -> nn.Linear:
        """The layer over the features."""
        return self._linear(0)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the logits; without a hidden layer, the first one."""
        return self._linear(len(self) - 2)

    @property
    def in_features(self) -> int:
        """D."""
        return self.first.in_features

    @property
    def hidden_units(self) -> int:
        """H, 0 without a hidden layer."""
        return 0 if self.first is self.last else self.first.out_features

    @property
    def num_classes(self) -> int:
        """C."""
        return self.last.out_features

    @property
    def architecture(self) -> str:
        """The layers in words, as torch names them."""
        first = [f"Linear({self.in_features}, {self.hidden_units})", "ReLU", "Dropout"] if self.hidden_units else []
        return ", ".join([*first, f"Linear({self.last.in_features}, {self.num_classes})", "LogSoftmax"])

    def folded(self, basis: Basis) -> "Head":
        """The head over full features, of this one over rows in `basis`."""
        return self._with(0, *basis.fold(self.first.weight, self.first.bias))

    def temperature_scaled(self, temperature: float) -> "Head":
        """The head with its logits over `temperature`, in its last layer."""
        weight, bias = ((tensor.double() / temperature).float() for tensor in (self.last.weight, self.last.bias))
        return self._with(len(self) - 2, weight, bias)

    def with_class_prior(self, trained: Tensor, wanted: Tensor, temperature: float = 1.0) -> "Head":
        """The head for classes as frequent as `wanted` (C,), of this one that was trained for `trained` (C,).

        Bayes' rule multiplies probabilities by the ratio of both and normalises: the log of it is added to the last
        bias, times the `temperature` that logits are divided by later. Saerens, Latinne and Decaestecker, Adjusting the
        Outputs of a Classifier to New a Priori Probabilities, Neural Computation 2002; Menon et al., Long-Tail Learning
        via Logit Adjustment, ICLR 2021.
        """
        added = temperature * (wanted.double() / trained.double()).log()
        return self._with(len(self) - 2, self.last.weight, (self.last.bias.double() + added).float())

    def _linear(self, number: int) -> nn.Linear:
        layer = self[number]
        assert isinstance(layer, nn.Linear)
        return layer

    def _with(self, number: int, weight: Tensor, bias: Tensor) -> "Head":
        return Head.from_tensors({**self.state_dict(), f"{number}.weight": weight, f"{number}.bias": bias})


def _layers(in_features: int, hidden: int, num_classes: int, dropout: float) -> list[nn.Module]:
    last = [nn.utils.skip_init(nn.Linear, hidden or in_features, num_classes), nn.LogSoftmax(dim=1)]
    if not hidden:
        return last
    return [nn.utils.skip_init(nn.Linear, in_features, hidden), nn.ReLU(), nn.Dropout(dropout), *last]


def merge_heads(heads: Sequence[Head]) -> Head:
    """One head that averages the logits of `heads`: all their hidden units side by side, or the mean of their weights.

    For heads of one basis, the same classes and all with a hidden layer or all without. Averaging the outputs of nets
    that differ in their seeds alone is known as a deep ensemble (Lakshminarayanan et al., NeurIPS 2017); with at most
    one hidden layer, it is a net of the same kind.
    """
    parts = [head.state_dict() for head in heads]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    if not heads[0].hidden_units:
        return Head.from_tensors({name: tensors.mean(0) for name, tensors in stacked.items()})
    weight = torch.cat([part["3.weight"] for part in parts], 1) / len(parts)
    first = {name: stacked[name].flatten(0, 1) for name in ("0.weight", "0.bias")}
    return Head.from_tensors({**first, "3.weight": weight, "3.bias": stacked["3.bias"].mean(0)})


def num_weights(in_features: int, hidden: int, num_classes: int) -> int:
    """Weights of a head, without biases."""
    return hidden * (in_features + num_classes) if hidden else in_features * num_classes


def hidden_in_words(hidden: int) -> str:
    """The number of hidden units, for a person."""
    return f"{hidden} hidden units" if hidden else "no hidden layer"
