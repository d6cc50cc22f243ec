"""Training many heads in groups, and stopping those that fall behind.

Successive halving (Jamieson and Talwalkar, AISTATS 2016): all heads train for a few epochs, the best quarter goes on
for more, until the last few train to the end. All follow the schedule of the full length.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.bases.rows import ROWS_TO_SCORE
from pipeline.config import HeadSettings
from pipeline.console import Say, counted, silent
from pipeline.heads.group import CPU, HeadGroup, HeadState
from pipeline.heads.seeds import order_of
from pipeline.machine.device import computes_bfloat16, free_bytes
from pipeline.search.held import Bases
from pipeline.search.journal import UNTRIED, Journal, Score
from pipeline.train import bytes_of_training, class_weights, member_of, refuse_beyond_memory, shape_of

FINISHING = 4  # heads that train to the end, at least
_KEEP = 4  # one in so many goes on
_LEAST_FREE = 1 << 30  # bytes that states of waiting heads leave alone
_LARGEST_GROUP = 16  # heads on a CPU; more share a multiplication no better (docs/performance.md)
_BYTES_A_UNIT = 24  # of what a step holds of each hidden unit of each row: in two precisions, noise and gradient


@dataclass
class Contender:
    """A head of the sweep; `number` is its place in it."""

    number: int
    settings: HeadSettings
    score: Score = UNTRIED
    state: HeadState | None = field(default=None, repr=False)


@dataclass
class Race:
    """What all heads of a sweep have in common. `deadline` is a time of `time.monotonic`."""

    bases: Bases
    journal: Journal
    epochs: int
    seed: int
    device: torch.device = CPU
    halving: bool = True
    deadline: float = float("inf")
    say: Say = silent

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.deadline

    def run(self, heads: Sequence[Contender]) -> None:
        """Train `heads`, fewer and fewer of them; fills in their scores."""
        left = list(heads)
        for count, epochs in rungs(len(left), self.epochs) if self.halving else [(len(left), self.epochs)]:
            left = sorted(left, key=lambda head: head.score.rank, reverse=True)[:count]
            self._advance(left, epochs)
            if self.over:
                self.say(f"--time-limit is reached: {_progress(left, epochs)}")
                return
            best = max(left, key=lambda head: head.score.rank)
            self.say(f"{counted(count, 'head')}, {counted(epochs, 'epoch')}: best {best.score.valid_accuracy:.2%}")

    def _advance(self, heads: Sequence[Contender], epochs: int) -> None:
        """Bring heads to `epochs`, from the journal or by training."""
        for head in heads:
            known = self.journal.scores.get(head.number, {}).get(epochs)
            if known:
                head.score, head.state = known, None
        waiting = [head for head in heads if head.score.epochs < epochs]
        for alike in _alike(waiting):
            largest = self._largest(alike[0].settings)
            for start in range(0, len(alike), largest):
                if self.over:
                    return
                self._train(alike[start : start + largest], epochs)

    def _largest(self, settings: HeadSettings) -> int:
        """How many heads of these settings may be trained at once; RunError where there is no room for one."""
        data = self.bases.data(settings.basis)
        refuse_beyond_memory(settings, data)
        each = 2 * bytes_of_training(settings, data)
        if self.device.type == "cpu":
            return max(1, min(_LARGEST_GROUP, free_bytes(self.device) // each))
        # There, all heads at once; a step and a validation take more than the weights.
        each += _BYTES_A_UNIT * settings.hidden * max(settings.batch_size, ROWS_TO_SCORE)
        return max(1, free_bytes(self.device) // each)

    def _products(self) -> torch.dtype | None:
        """What heads are multiplied in: bfloat16 where the device computes in it, at up to twice the speed."""
        return torch.bfloat16 if computes_bfloat16(self.device) else None

    def _train(self, heads: Sequence[Contender], epochs: int) -> None:
        """Heads of one shape, from where their states are or, where those are gone, from the start."""
        settings = heads[0].settings
        data = self.bases.data(settings.basis)
        shape = shape_of(settings, data, self.epochs)
        states = [head.state or HeadState.new(member_of(head.settings, self.seed), shape) for head in heads]
        done = heads[0].score.epochs if heads[0].state else 0
        scores = [head.score if head.state else UNTRIED for head in heads]
        group = HeadGroup(states, shape, class_weights(settings, data), self._products(), self.device)
        for epoch in range(done + 1, epochs + 1):
            group.epoch(data.batches(settings.batch_size, order_of(self.seed, epoch)))
            found = [Score(epoch, *values, epoch) for values in group.score(data.validation())]
            scores = [_after(before, new) for before, new in zip(scores, found, strict=True)]
        for place, head in enumerate(heads):
            head.score = scores[place]
            going_on = epochs < self.epochs and free_bytes(self.device) > _LEAST_FREE
            head.state = group.state(place) if going_on else None  # without, it would train again from the start
            self.journal.record(head.number, head.score)


def _after(before: Score, new: Score) -> Score:
    """The score one epoch later: of the better epoch, of equals the earlier one."""
    best = new if new.rank > before.rank or not before.epochs else before
    return replace(best, epochs=new.epochs)


def _progress(heads: Sequence[Contender], epochs: int) -> str:
    """How many of `heads` came to `epochs`."""
    there = sum(head.score.epochs >= epochs for head in heads)
    return f"{there} of {counted(len(heads), 'head')} reached epoch {epochs}"


def rungs(heads: int, epochs: int) -> list[tuple[int, int]]:
    """How many heads train to which epoch: (64, 1), (16, 5), (4, 20) for 64 heads and 20 epochs."""
    counts = [heads]
    while counts[-1] > FINISHING:
        counts.append(max(FINISHING, -(-counts[-1] // _KEEP)))
    ends = [epochs // _KEEP**back for back in reversed(range(len(counts)))]
    first = next(place for place, end in enumerate(ends) if end >= 1)  # with few epochs, there are fewer rungs
    return [(heads, ends[first]), *zip(counts[first + 1 :], ends[first + 1 :], strict=True)]


def _alike(heads: Sequence[Contender]) -> list[list[Contender]]:
    """Heads by what a group shares: rows, shape and progress; one basis after the other."""
    alike: dict[tuple[object, ...], list[Contender]] = {}
    for head in sorted(heads, key=lambda head: (head.settings.basis, head.settings.batch_size, head.settings.hidden)):
        known = head.settings
        progress = head.score.epochs if head.state else 0
        key = (known.basis, known.batch_size, known.hidden, known.class_weights, progress)
        alike.setdefault(key, []).append(head)
    return list(alike.values())
