"""Heads of one shape trained at once on the same rows: each operation serves them all.

A head in a group is trained exactly as it would be alone: it has its own weights, learning rate, weight decay, dropout
and random numbers, and shares with the others only the rows of each batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.heads.dropout import DrawnDropout, DropoutMask, HashedDropout
from pipeline.heads.head import Head
from pipeline.heads.optimizer import PerHeadAdamW, VectorizedAdamW
from pipeline.heads.seeds import init_rng
from pipeline.machine.device import CPU, full_precision, sums_in


@dataclass(frozen=True)
class HeadHyperparameters:
    """How one head of a group is trained. `seed` is of its weights and dropout, not of the order of rows."""

    lr: float
    weight_decay: float = 0.0
    dropout: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class HeadShape:
    """What all heads of a group share: R inputs, H hidden units or none, C classes, the steps of their schedule."""

    in_features: int
    hidden: int
    num_classes: int
    steps: int


@dataclass(frozen=True)
class HeadState:
    """One head in the middle of its training: what it takes to resume exactly as if nothing had happened."""

    member: HeadHyperparameters
    tensors: dict[str, Tensor]
    moments: tuple[dict[str, Tensor], dict[str, Tensor]]  # AdamW's first and second
    step_count: int
    noise: Any = None  # state of the generator of its dropout, where it has one that has been drawn from

    def to(self, device: torch.device) -> "HeadState":
        """The same with its tensors on `device`."""
        tensors, *moments = ({n: t.to(device) for n, t in part.items()} for part in (self.tensors, *self.moments))
        return replace(self, tensors=tensors, moments=(moments[0], moments[1]))

    @classmethod
    def new(cls, member: HeadHyperparameters, shape: HeadShape, dtype: torch.dtype = torch.float32) -> "HeadState":
        """Before the first step."""
        head = Head.new(shape.in_features, shape.hidden, shape.num_classes, generator=init_rng(member.seed))
        tensors = {name: tensor.to(dtype) for name, tensor in head.state_dict().items()}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        return cls(member, tensors, (zeros, zeros), 0)


class HeadGroup:
    """G heads Linear(R, H), ReLU, Dropout, Linear(H, C), LogSoftmax, as arrays over all of them.

    With H = 0 they are Linear(R, C), LogSoftmax, and their dropout has nothing to leave out: it is not drawn.
    AdamW, each learning rate falling to 0 over the steps of `shape` as a cosine. `class_weights` (C,) weigh the loss of
    each row by its label, as `NLLLoss` does. `products` is what multiplications are computed in, the dtype of the
    weights unless said. `vectorized` is how dropout is drawn and weights are stepped: for all heads in the same few
    operations, as suits anything but a CPU, or head by head. Rows and labels may lie on any device.
    """

    def __init__(
        self,
        states: Sequence[HeadState],
        shape: HeadShape,
        class_weights: Tensor | None = None,
        products: torch.dtype | None = None,
        device: torch.device = CPU,
        vectorized: bool | None = None,
    ) -> None:
        self.members = tuple(state.member for state in states)
        self.device = device
        self.shape = shape
        self.step_count = states[0].step_count
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.products = products
        self.tensors = _stacked([state.tensors for state in states], device)
        first, second = (_stacked([state.moments[number] for state in states], device) for number in (0, 1))
        self._moments = first, second
        self._gradients = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        if vectorized is None:
            vectorized = device.type != "cpu"
        seeds, dropouts, decays = zip(*((m.seed, m.dropout, m.weight_decay) for m in self.members), strict=True)
        self._noise: DropoutMask
        if vectorized:
            self._noise = HashedDropout(seeds, dropouts, device)
        else:
            self._noise = DrawnDropout(seeds, dropouts, [state.noise for state in states])
        arrays = (self.tensors, self._gradients, first, second)
        self._optimizer = (VectorizedAdamW if vectorized else PerHeadAdamW)(arrays, self.step_count, decays)

    def __len__(self) -> int:
        """G, heads."""
        return len(self.members)

    def step(
        self, x: Tensor, labels: Tensor, weights: Tensor | None = None, rows: Sequence[int] | None = None
    ) -> Tensor:
        """One step of every head on rows (B, R) and labels (B,); the mean loss of each, (G,), before the step.

        Rows (G, B, R) and labels (G, B) are of each head its own. The mean is weighted by `class_weights`, or by
        `weights`, (B,) or (G, B), of the rows, which are 1 on average over all rows, not within the batch. `rows` says
        how many of each head's rows are its own; others, of weight 0, fill up the batch.
        """
        *_, w2, b2 = self.tensors.values()
        w2 = w2.to(x.dtype)
        hidden = seen = self._hidden(x)  # (G, B, H); without hidden units the rows, (G, B, R)
        if self.shape.hidden:
            kept = self._noise.sample(hidden, self.step_count, rows)
            seen = hidden * kept
        log_probs = torch.log_softmax(torch.bmm(seen, w2.mT).to(b2.dtype) + b2.unsqueeze(1), 2)  # (G, B, C)
        target = labels.expand(len(self), -1).unsqueeze(2)
        shares = self._shares(labels, log_probs.dtype, weights)
        losses = -(log_probs.gather(2, target).squeeze(2) * shares).sum(1)
        # The gradient of this chain in a few lines: automatic differentiation would keep and copy the stacked weights.
        ones = torch.full_like(target, -1, dtype=log_probs.dtype)
        d_logits = log_probs.exp_().scatter_add_(2, target, ones).mul_(shares.unsqueeze(-1))
        rounded = d_logits.to(x.dtype)
        *first, g2, c2 = self._gradients.values()
        _multiply(rounded.mT, seen, g2)
        torch.sum(d_logits, 1, out=c2)
        if self.shape.hidden:
            g1, c1 = first
            d_hidden = torch.bmm(rounded, w2).mul_(kept).mul_(hidden > 0)
            _multiply(d_hidden.mT, x.expand(len(self), -1, -1), g1)
            torch.sum(d_hidden, 1, dtype=c1.dtype, out=c1)
        self._update()
        return losses

    def _shares(self, labels: Tensor, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
        """Each row's share of the mean loss, (B,), or (G, B) of rows and weights of their own."""
        if weights is not None:
            return (weights / labels.shape[-1]).to(dtype)
        if self.class_weights is None:
            return torch.full(labels.shape, 1 / labels.shape[-1], dtype=dtype, device=self.device)
        weights = self.class_weights.to(dtype)[labels]
        return weights / weights.sum(-1, keepdim=True)

    def _hidden(self, x: Tensor) -> Tensor:
        """What the last layers see, in the dtype of x: hidden units (G, B, H), or without any the rows, (G, B, R)."""
        rows = x.expand(len(self), -1, -1)
        if not self.shape.hidden:
            return rows
        w1, b1, *_ = self.tensors.values()
        return torch.baddbmm(b1.unsqueeze(1).to(x.dtype), rows, w1.mT.to(x.dtype)).relu_()

    def _update(self) -> None:
        """Every head's step along its gradient; its rate falls to 0 over the schedule as a cosine."""
        share = (1 + math.cos(math.pi * self.step_count / self.shape.steps)) / 2
        self._optimizer.step([member.lr * share for member in self.members])
        self.step_count += 1

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """A step on every batch of (rows, labels); the mean loss of each head over all rows, (G,) `sums_in`."""
        total, count = torch.zeros(len(self), dtype=sums_in(self.device), device=self.device), 0
        with full_precision(self.device):
            for x, labels in self._here(batches):
                total += self.step(x if self.products is None else x.to(self.products), labels) * len(x)
                count += len(x)
        return total / count

    def _here(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same on this group's device."""
        return ((x.to(self.device), labels.to(self.device)) for x, labels in batches)

    def score(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Hits (G, V) bool, whether each head is right about each row of `batches`, and mean losses (G,).

        Both on the CPU. No row is right and the loss is inf where a weight or the loss is not finite.
        """
        hits, losses = [], torch.zeros(len(self), dtype=sums_in(self.device), device=self.device)
        with full_precision(self.device):
            for x, labels in self._here(batches):
                log_probs = self.log_probs(x)
                hits.append(log_probs.argmax(2) == labels)
                losses -= log_probs[:, torch.arange(len(labels), device=self.device), labels].sum(1)
        right = torch.cat(hits, 1)
        sound = self.finite() & losses.isfinite()
        losses = torch.where(sound, losses / right.shape[1], math.inf)
        return (right & sound.unsqueeze(1)).cpu(), losses.cpu()

    @torch.inference_mode()
    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probabilities of rows (B, R) by every head, (G, B, C); nothing is left out."""
        *_, w2, b2 = self.tensors.values()
        return torch.log_softmax(torch.baddbmm(b2.unsqueeze(1), self._hidden(x), w2.mT), 2)

    def finite(self) -> Tensor:
        """Whether all weights of each head are numbers, (G,)."""
        return torch.stack([tensor.flatten(1).isfinite().all(1) for tensor in self.tensors.values()]).all(0)

    def weights(self, number: int) -> dict[str, Tensor]:
        """A copy of the weights of one head, as `nn.Sequential` names them."""
        return {name: tensor[number].clone() for name, tensor in self.tensors.items()}

    def state(self, number: int) -> HeadState:
        """A copy of one head as it is now."""
        first, second = ({name: part[number].clone() for name, part in moments.items()} for moments in self._moments)
        state = self._noise.state(number)
        return HeadState(self.members[number], self.weights(number), (first, second), self.step_count, state)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Products of matrices, head by head, into `out` of another dtype or of the same."""
    if a.dtype == out.dtype:
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


def _stacked(parts: Sequence[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).to(device) for name in parts[0]}
