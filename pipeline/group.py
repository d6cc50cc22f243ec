"""Heads of one shape trained at once on the same rows: one multiplication serves the first layers of all.

A head in a group is trained exactly as it would be alone: it has its own weights, learning rate, weight decay, dropout
and random numbers, and shares with the others only the rows of each batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.head import HeadConfig, build_head

HEAD_SEEDS = 1 << 32  # added to a head's seed: its numbers are not those that order the rows under the same seed


@dataclass(frozen=True)
class Member:
    """How one head of a group is trained. `seed` is of its weights and dropout, not of the order of rows."""

    lr: float
    weight_decay: float = 0.0
    dropout: float = 0.5
    seed: int = 0


class HeadGroup:
    """G heads Linear(R, H), ReLU, Dropout, Linear(H, C), LogSoftmax, as arrays over all of them.

    AdamW (Loshchilov and Hutter, ICLR 2019), each learning rate falling to 0 over `steps` as a cosine.
    """

    def __init__(
        self,
        members: Sequence[Member],
        in_features: int,
        hidden: int,
        num_classes: int,
        steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.members = tuple(members)
        self.steps = steps
        self.taken = 0
        self._noise = [torch.Generator().manual_seed(member.seed + HEAD_SEEDS) for member in members]
        configs = [HeadConfig(in_features, hidden, num_classes, member.dropout) for member in members]
        heads = [build_head(config, noise).to(dtype) for config, noise in zip(configs, self._noise, strict=True)]
        states = [head.state_dict() for head in heads]
        self.tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        self._gradients = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self._optimizer = torch.optim.AdamW([self._parameters(number) for number in range(len(members))], fused=True)

    def __len__(self) -> int:
        """G, heads."""
        return len(self.members)

    def _parameters(self, number: int) -> dict[str, Any]:
        """One head's part of the arrays, as the optimizer takes them: it writes through these views."""
        parameters = [tensor[number] for tensor in self.tensors.values()]
        for parameter, gradients in zip(parameters, self._gradients.values(), strict=True):
            parameter.grad = gradients[number]
        return {"params": parameters, "weight_decay": self.members[number].weight_decay}

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One step of every head on rows (B, R) and labels (B,); the mean loss of each, (G,), before the step."""
        _, _, w2, b2 = self.tensors.values()
        hidden = self._first(x).relu_()  # (G, B, H)
        kept = self._dropout(hidden)
        seen = hidden * kept
        log_probs = torch.log_softmax(torch.baddbmm(b2.unsqueeze(1), seen, w2.mT), 2)  # (G, B, C)
        target = labels.expand(len(self), -1).unsqueeze(2)
        losses = -log_probs.gather(2, target).mean((1, 2))
        # The gradient of this chain in four lines: automatic differentiation would keep and copy the stacked weights.
        d_logits = log_probs.exp().scatter_add_(2, target, torch.full_like(target, -1, dtype=x.dtype)).div_(len(x))
        d_hidden = torch.bmm(d_logits, w2).mul_(kept).mul_(hidden > 0)
        g1, c1, g2, c2 = self._gradients.values()
        torch.mm(d_hidden.transpose(0, 1).reshape(len(x), -1).T, x, out=g1.view(-1, x.shape[1]))
        torch.sum(d_hidden, 1, out=c1)
        torch.bmm(d_logits.mT, seen, out=g2)
        torch.sum(d_logits, 1, out=c2)
        self._update()
        return losses

    def _first(self, x: Tensor) -> Tensor:
        """The first layers of all heads: (B, R) → (G, B, H)."""
        w1, b1, *_ = self.tensors.values()
        flat = torch.addmm(b1.flatten(), x, w1.flatten(0, 1).T)
        return flat.view(len(x), len(self), -1).transpose(0, 1).contiguous()

    def _dropout(self, hidden: Tensor) -> Tensor:
        """What each hidden unit is multiplied by: 0, or what keeps the mean; drawn head by head."""
        kept = torch.empty_like(hidden)
        for number, (member, noise) in enumerate(zip(self.members, self._noise, strict=True)):
            drawn = torch.rand(hidden.shape[1:], generator=noise) >= member.dropout
            kept[number] = drawn.to(hidden.dtype).div_(1 - member.dropout)
        return kept

    def _update(self) -> None:
        rate = (1 + math.cos(math.pi * self.taken / self.steps)) / 2
        for group, member in zip(self._optimizer.param_groups, self.members, strict=True):
            group["lr"] = member.lr * rate
        self._optimizer.step()
        self.taken += 1

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """A step on every batch of (rows, labels); the mean loss of each head over all rows, (G,) float64."""
        total, count = torch.zeros(len(self), dtype=torch.float64), 0
        for x, labels in batches:
            total += self.step(x, labels) * len(x)
            count += len(x)
        return total / count

    def accuracy(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Share of the rows in `batches` whose most probable class is their label, (G,) float64."""
        hits, count = torch.zeros(len(self), dtype=torch.float64), 0
        for x, labels in batches:
            hits += (self.log_probs(x).argmax(2) == labels).sum(1)
            count += len(labels)
        return hits / count

    @torch.inference_mode()
    def log_probs(self, x: Tensor) -> Tensor:
        """Log-probabilities of rows (B, R) by every head, (G, B, C); nothing is left out."""
        _, _, w2, b2 = self.tensors.values()
        return torch.log_softmax(torch.baddbmm(b2.unsqueeze(1), self._first(x).relu_(), w2.mT), 2)

    def state(self, number: int) -> dict[str, Tensor]:
        """A copy of the weights of one head, as `nn.Sequential` names them."""
        return {name: tensor[number].clone() for name, tensor in self.tensors.items()}
