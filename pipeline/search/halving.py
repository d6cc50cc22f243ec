"""Training many heads in groups, and stopping the worst of them early.

Successive halving (Jamieson and Talwalkar, AISTATS 2016): all heads train for a few epochs, the best quarter goes on
for more, until the last few train to the end. All follow the schedule of the full length. Trials that are `kept`
are never stopped.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pipeline.console import counted
from pipeline.search.basis_cache import BasisCache
from pipeline.search.executor import Executor, Group, Trial
from pipeline.search.journal import Journal
from pipeline.search.selection import Metric

logger = logging.getLogger("headgraft.search")

FINISHING = 4  # heads that train to the end, at least
_KEEP = 4  # one in so many goes on
_FIRST = 0.15  # of the epochs: earlier, scores say little of the end (docs/performance.md)


@dataclass
class SuccessiveHalving:
    """What all heads of a sweep have in common; `deadline` is a time of `time.monotonic`."""

    bases: BasisCache
    journal: Journal
    metric: Metric
    epochs: int
    seed: int
    halving: bool = True
    deadline: float = float("inf")
    executor: Executor = field(default_factory=Executor)

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.deadline

    def run(self, heads: Sequence[Trial]) -> None:
        """Train `heads`, fewer and fewer of them; fills in their scores."""
        left = list(heads)
        free = sum(not head.kept for head in heads)
        steps = rungs(free, self.epochs) if self.halving and free else [(free, self.epochs)]
        for count, epochs in steps:
            left = self._survivors(left, count)
            self._advance(left, epochs)
            if self.over:
                there = sum(head.score.epochs >= epochs for head in left)
                logger.warning(
                    f"--time-limit is reached: {there} of {counted(len(left), 'head')} reached epoch {epochs}"
                )
                return
            best = max(self.accuracy(head) for head in left)
            logger.info(f"{counted(len(left), 'head')}, {counted(epochs, 'epoch')}: best {best:.2%}")

    def accuracy(self, head: Trial) -> float:
        """Of the images that heads are scored on, by the metric of the sweep; 0 before the first epoch."""
        if not head.score.epochs:
            return 0.0
        return float(self.metric.of(head.score.unpacked(len(self.metric.labels))))

    def rank(self, head: Trial) -> tuple[float, float]:
        """The higher the better: accuracy, and of equally accurate ones the lower loss."""
        return self.accuracy(head), -head.score.loss

    def _survivors(self, heads: Sequence[Trial], count: int) -> list[Trial]:
        """Those that are kept, and the best `count` of the others."""
        others = sorted((head for head in heads if not head.kept), key=self.rank, reverse=True)
        return [*(head for head in heads if head.kept), *others[:count]]

    def _advance(self, heads: Sequence[Trial], epochs: int) -> None:
        """Bring heads to `epochs`, from the journal or by training."""
        for head in heads:
            known = self.journal.scores.get(head.number, {}).get(epochs)
            if known:
                head.score, head.states = known, None
        waiting = sorted((head for head in heads if head.score.epochs < epochs), key=_shared)
        # All groups before the first is trained: training changes the progress that they are formed by.
        groups = [Group(tuple(alike), epochs, self.epochs, self.seed) for _, alike in groupby(waiting, key=_shared)]
        for group, outcomes in self.executor.train(groups, self.bases, lambda: self.over):
            for head, (score, states) in zip(group.trials, outcomes, strict=True):
                head.score, head.states = score, states
                self.journal.record(head.number, score)


def rungs(heads: int, epochs: int) -> list[tuple[int, int]]:
    """How many heads train to which epoch: (64, 3), (16, 8), (4, 20) for 64 heads and 20 epochs.

    The first cut comes after `_FIRST` of the epochs, the others after shares in geometric progression.
    """
    counts = [heads]
    while counts[-1] > FINISHING:
        counts.append(max(FINISHING, -(-counts[-1] // _KEEP)))
    last = len(counts) - 1
    ends = [max(1, round(epochs * _FIRST ** ((last - place) / max(1, last)))) for place in range(len(counts))]
    cuts = zip(counts, ends, strict=True)
    return [(count, end) for place, (count, end) in enumerate(cuts) if end not in ends[:place]]


def _shared(head: Trial) -> tuple[str, int, int, str, int]:
    """What heads of a group share: rows, shape and progress."""
    settings = head.settings
    return settings.basis, settings.batch_size, settings.hidden, settings.class_weights, head.done
