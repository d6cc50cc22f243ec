"""Who trains groups of heads: this process, or the workers of a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from cache.store import FeatureCache
from pipeline.bases.data import ROWS_TO_SCORE, TrainingData
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.heads.fit import (
    bytes_of_training,
    class_weights,
    hyperparameters_of,
    matmul_dtype_on,
    refuse_beyond_memory,
    shape_of,
)
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.cluster import Workers, connected
from pipeline.machine.device import CPU, available_cpus, free_bytes, release_memory, resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.search.basis_cache import BasisCache, Split, bases_of
from pipeline.search.journal import UNTRIED, Score

_LEAST_FREE = 1 << 30  # bytes that states of waiting heads leave alone
_LARGEST_GROUP = 16  # heads on a CPU; more share a multiplication no better (docs/performance.md)
_BYTES_A_UNIT = 24  # that a step holds of each hidden unit, or logit, of each row: in two precisions, noise, gradient

States = tuple[HeadState, ...]  # in each split
Outcome = tuple[Score, States | None]
Stop = Callable[[], bool]
Trained = Iterator[tuple["Group", list[Outcome]]]


@dataclass
class Trial:
    """A head of the sweep.

    Attributes:
        number: its place in the sweep.
        settings: how it is trained.
        score: after the epochs that it was trained for.
        states: its weights then; None where they are not kept, and training starts again.
        kept: whether it trains to the end whatever its scores.
    """

    number: int
    settings: HeadSettings
    score: Score = UNTRIED
    states: States | None = field(default=None, repr=False)
    kept: bool = False

    @property
    def done(self) -> int:
        """Epochs that need not be trained again."""
        return self.score.epochs if self.states else 0


@dataclass(frozen=True)
class Group:
    """Heads of one basis, shape and progress, to be trained to `epochs` of a schedule of `of` epochs with `seed`."""

    trials: tuple[Trial, ...]
    epochs: int
    of: int
    seed: int

    @property
    def settings(self) -> HeadSettings:
        """Those of the first: of basis, shape, batches and class weights all have the same."""
        return self.trials[0].settings

    def __str__(self) -> str:
        return f"the group of {counted(len(self.trials), 'head')} from head {self.trials[0].number} on"

    def parts(self, size: int) -> "Iterator[Group]":
        """The same in groups of at most `size` heads."""
        for start in range(0, len(self.trials), size):
            yield replace(self, trials=self.trials[start : start + size])


@dataclass(frozen=True)
class Executor:
    """Trains groups, here in this process, one after the other.

    A head is the same in any company, on a device to rounding, so who trains it, and beside which others, changes
    nothing that matters.
    """

    device: torch.device = CPU

    def train(self, groups: Iterable[Group], bases: BasisCache, stop: Stop) -> Trained:
        """Parts of the groups with what became of each of their heads, as they are done; after `stop`, no more start.

        Raises RunError where there is no room for one head.
        """
        for group in groups:
            splits = bases.splits(group.settings.basis)
            for part in group.parts(largest_group(group.settings, splits[0].data, self.device)):
                if stop():
                    return
                yield part, self.train_part(part, splits)
            del splits  # before the next basis is loaded, which may need its room

    def train_part(self, part: Group, splits: Sequence[Split]) -> list[Outcome]:
        """What became of each head; where all at once do not fit a device, half of them and then the others."""
        try:
            return train_group(part, splits, self.device)
        except torch.OutOfMemoryError:
            if len(part.trials) == 1:
                raise RunError(
                    f"the memory of this {self.device.type} does not hold the training of one head of "
                    f"{part.settings.hidden} hidden units: use --device cpu, or fewer hidden units"
                ) from None
        release_memory(self.device)
        halves = part.parts(-(-len(part.trials) // 2))
        done = [outcome for half in halves for outcome in self.train_part(half, splits)]
        return _on_cpu(done)


def largest_group(settings: HeadSettings, data: TrainingData, device: torch.device) -> int:
    """How many heads of these settings may be trained at once; RunError where there is no room for one."""
    refuse_beyond_memory(settings, data)
    each = 2 * bytes_of_training(settings, data)
    if device.type == "cpu":
        return max(1, min(_LARGEST_GROUP, free_bytes(device) // each))
    # There, all heads at once; a step and a validation take more than the weights.
    each += _BYTES_A_UNIT * (settings.hidden or data.num_classes) * max(settings.batch_size, ROWS_TO_SCORE)
    return max(1, free_bytes(device) // each)


def train_group(group: Group, splits: Sequence[Split], device: torch.device) -> list[Outcome]:
    """From where the states are or, where there are none, from the start; in each split heads of their own.

    States are kept of heads that may go on, while there is room: without, a head would train again from the start.
    """
    images = sum(len(split.places) for split in splits)
    hits = torch.empty(len(group.trials), images, dtype=torch.bool)
    losses = torch.zeros(len(group.trials), dtype=torch.float64)
    states: list[list[HeadState]] = [[] for _ in group.trials]
    for number, split in enumerate(splits):
        heads = _trained(group, split.data, number, device)
        scored, of_heads = heads.score(split.data.validation())
        hits[:, split.places] = scored  # in the order of the images, whatever data they were scored on
        losses += of_heads * (len(split.places) / images)
        if group.epochs < group.of:
            _keep(states, heads)
    return [
        (Score.of(group.epochs, loss, right), tuple(own) if len(own) == len(splits) else None)
        for right, loss, own in zip(hits.numpy(), losses.tolist(), states, strict=True)
    ]


def _trained(group: Group, data: TrainingData, number: int, device: torch.device) -> HeadGroup:
    """The heads of the split of that number."""
    settings, trials = group.settings, group.trials
    shape = shape_of(settings, data, group.of)
    states = [
        one.states[number] if one.states else HeadState.new(hyperparameters_of(one.settings, group.seed), shape)
        for one in trials
    ]
    heads = HeadGroup(states, shape, class_weights(settings, data), matmul_dtype_on(device), device)
    for epoch in range(trials[0].done + 1, group.epochs + 1):
        heads.epoch(data.batches(settings.batch_size, shuffle_rng(group.seed, epoch)))
    return heads


def _keep(states: Sequence[list[HeadState]], heads: HeadGroup) -> None:
    """Add a copy of each head, as far as there is room."""
    for place, own in enumerate(states):
        if free_bytes(heads.device) <= _LEAST_FREE:
            return
        try:
            own.append(heads.state(place))
        except torch.OutOfMemoryError:
            return


def _on_cpu(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """With states that leave room on a device, and that other machines can read."""
    return [(score, states and tuple(state.to(CPU) for state in states)) for score, states in outcomes]


@contextmanager
def ray_executor(config: SweepConfig, trainset: TrainingSet) -> Iterator[Executor]:
    """Workers of a Ray cluster, which sees the cache at the same path as this machine."""
    asked = replace(config, cache=config.cache.absolute(), set=trainset.index.name, passes=trainset.passes)
    given = asked, trainset.index.digest
    with connected(config) as ray, Workers[Group, list[Outcome]](ray, HeadWorker, given, config) as workers:
        yield RayExecutor(workers=workers)


@dataclass(frozen=True)
class RayExecutor(Executor):
    """The workers of a Ray cluster, each of which trains a part of a group at a time."""

    workers: Workers[Group, list[Outcome]] = field(kw_only=True)

    def train(self, groups: Iterable[Group], bases: BasisCache, stop: Stop) -> Trained:
        units: list[Group] = []
        for group in groups:
            bases.splits(group.settings.basis)  # fitted once, here: workers find the rows in it beside the shards
            units += group.parts(-(-len(group.trials) // self.workers.count))
        for group, outcomes in self.workers.run(units, stop):
            room = free_bytes(CPU) > _LEAST_FREE
            yield group, [(score, states if room else None) for score, states in outcomes]


class HeadWorker:
    """Trains groups of heads on the rows of a cache, of which it holds what they need: what runs as an actor."""

    def __init__(self, config: SweepConfig, set_digest: str) -> None:
        """All else is made when it is needed first: what fails in here, Ray tells without its reason."""
        self._config, self._set_digest = config, set_digest

    @cached_property
    def _bases(self) -> BasisCache:
        config = self._config
        torch.set_num_threads(config.cpus)
        cache = FeatureCache.open(config.cache)
        index = cache.index(config.set).labelled
        if index.digest != self._set_digest:
            raise RunError(
                f"set {config.set!r} of {config.cache} changed while heads were trained on it: run the sweep again"
            )
        share = min(1.0, config.cpus / available_cpus())  # of this machine, among the workers on it
        trainset = TrainingSet(cache, index, config.passes or 0, {})
        return bases_of(config, trainset, int(share * allowed_bytes(config.memory)))

    def ready(self) -> None:
        """Returns when it can train; CacheError where the cache is not to be seen from here."""
        _ = self._bases

    def run(self, group: Group) -> list[Outcome]:
        """What became of each head of the group; states on the CPU, as other machines may have nothing else."""
        device = resolve_device(self._config.device if self._config.gpus_per_worker else "cpu")
        done = Executor(device).train([group], self._bases, stop=lambda: False)
        return _on_cpu([outcome for _, outcomes in done for outcome in outcomes])
