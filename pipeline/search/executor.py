"""Who trains groups of heads: this process, or the workers of a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from cache.store import FeatureCache
from pipeline.bases.data import ROWS_TO_SCORE, TrainingData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings, SweepConfig
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
from pipeline.heads.group import CPU, HeadGroup, HeadState
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.cluster import Workers
from pipeline.machine.device import available_cpus, free_bytes, resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.search.basis_cache import BasisCache
from pipeline.search.journal import Score

_LEAST_FREE = 1 << 30  # bytes that states of waiting heads leave alone
_LARGEST_GROUP = 16  # heads on a CPU; more share a multiplication no better (docs/performance.md)
_BYTES_A_UNIT = 24  # that a step holds of each hidden unit, or logit, of each row: in two precisions, noise, gradient

Outcome = tuple[Score, HeadState | None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Group:
    """Heads of one shape and progress, by their `numbers`, to be brought to `epochs` of a schedule of `of` epochs.

    `states` are None where they start, else all after `done` epochs.
    """

    numbers: tuple[int, ...]
    settings: tuple[HeadSettings, ...]
    states: tuple[HeadState | None, ...] = field(repr=False)
    done: int
    epochs: int
    of: int
    seed: int

    def part(self, start: int, end: int) -> "Group":
        """The heads at these places of it."""
        some = slice(start, end)
        own = {name: getattr(self, name)[some] for name in ("numbers", "settings", "states")}
        return replace(self, **own)


class Executor(Protocol):
    """Trains groups. A head is the same in any company, so who trains it, and beside which others, changes nothing."""

    def share(self, heads: int, settings: HeadSettings, bases: BasisCache) -> int:
        """Into groups of how many to divide `heads` of one shape; RunError where there is no room for one."""

    def train(
        self, groups: Iterable[Group], bases: BasisCache, stop: Stop
    ) -> Iterator[tuple[Group, Sequence[Outcome]]]:
        """Groups with what became of each of their heads, as they are done; after `stop`, no more are begun."""


@dataclass(frozen=True)
class LocalExecutor:
    """This process, one group after the other."""

    device: torch.device = CPU

    def share(self, heads: int, settings: HeadSettings, bases: BasisCache) -> int:
        return min(heads, largest_group(settings, bases.data(settings.basis), self.device))

    def train(
        self, groups: Iterable[Group], bases: BasisCache, stop: Stop
    ) -> Iterator[tuple[Group, Sequence[Outcome]]]:
        for group in groups:
            if stop():
                return
            yield group, train_group(group, bases.data(group.settings[0].basis), self.device)


def largest_group(settings: HeadSettings, data: TrainingData, device: torch.device) -> int:
    """How many heads of these settings may be trained at once; RunError where there is no room for one."""
    refuse_beyond_memory(settings, data)
    each = 2 * bytes_of_training(settings, data)
    if device.type == "cpu":
        return max(1, min(_LARGEST_GROUP, free_bytes(device) // each))
    # There, all heads at once; a step and a validation take more than the weights.
    each += _BYTES_A_UNIT * (settings.hidden or data.num_classes) * max(settings.batch_size, ROWS_TO_SCORE)
    return max(1, free_bytes(device) // each)


def train_group(group: Group, data: TrainingData, device: torch.device) -> list[Outcome]:
    """From where the states are or, where there are none, from the start.

    States are kept of heads that may go on, while there is room: without, a head would train again from the start.
    """
    settings = group.settings[0]
    shape = shape_of(settings, data, group.of)
    pairs = zip(group.settings, group.states, strict=True)
    states = [state or HeadState.new(hyperparameters_of(its, group.seed), shape) for its, state in pairs]
    heads = HeadGroup(states, shape, class_weights(settings, data), matmul_dtype_on(device), device)
    for epoch in range(group.done + 1, group.epochs + 1):
        heads.epoch(data.batches(settings.batch_size, shuffle_rng(group.seed, epoch)))
    scored, losses = heads.score(data.validation())
    hits = torch.empty_like(scored)
    hits[:, data.valid_order] = scored  # in the order of the index, whatever data they were scored on
    outcomes = []
    for place, (right, loss) in enumerate(zip(hits.numpy(), losses.tolist(), strict=True)):
        going_on = group.epochs < group.of and free_bytes(device) > _LEAST_FREE
        outcomes.append((Score.of(group.epochs, loss, right), heads.state(place) if going_on else None))
    return outcomes


class RayExecutor:
    """Workers of a Ray cluster that sees the cache at the same place as this machine; a context manager."""

    def __init__(self, ray: Any, config: SweepConfig, trainset: TrainingSet) -> None:
        given = (config, config.cache.absolute(), trainset.index.name, trainset.index.digest, trainset.passes)
        self._workers = Workers[Group, list[Outcome]](ray, HeadWorker, given, config, _name_of)

    def __enter__(self) -> "RayExecutor":
        self._workers.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._workers.__exit__(*raised)

    def share(self, heads: int, settings: HeadSettings, bases: BasisCache) -> int:
        bases.data(settings.basis)  # fitted once, here: workers find the rows in it beside the shards
        return max(1, -(-heads // self._workers.count))

    def train(
        self, groups: Iterable[Group], bases: BasisCache, stop: Stop
    ) -> Iterator[tuple[Group, Sequence[Outcome]]]:
        for group, outcomes in self._workers.run(list(groups), stop):
            room = free_bytes(CPU) > _LEAST_FREE
            yield group, [(score, state if room else None) for score, state in outcomes]


class HeadWorker:
    """Trains groups of heads on the rows of a cache, of which it holds what they need: what runs as an actor."""

    def __init__(self, config: SweepConfig, cache: Path, name: str, set_digest: str, passes: int) -> None:
        """All else is made when it is needed first: what fails in here, Ray tells without its reason."""
        self._given = config, cache, name, set_digest, passes

    @cached_property
    def _device(self) -> torch.device:
        config = self._given[0]
        return resolve_device(config.device if config.gpus_per_worker else "cpu")

    @cached_property
    def _bases(self) -> BasisCache:
        config, cache, name, set_digest, passes = self._given
        cpus = config.cpus
        torch.set_num_threads(cpus)
        opened = FeatureCache.open(cache)
        index = opened.index(name)
        if index.digest != set_digest:
            raise RunError(f"set {name!r} of {cache} changed while heads were trained on it: run the sweep again")
        share = min(1.0, cpus / available_cpus())  # of this machine, among the workers on it
        return BasisCache(TrainingSet(opened, index, passes, {}), int(share * allowed_bytes(config.memory)))

    def ready(self) -> None:
        """Returns when it can train; CacheError where the cache is not to be seen from here."""
        _ = self._bases

    def run(self, group: Group) -> list[Outcome]:
        """What became of each head of the group; states on the CPU, as other machines may have nothing else."""
        settings = group.settings[0]
        data = self._bases.data(settings.basis)
        size = largest_group(settings, data, self._device)
        parts = (group.part(start, start + size) for start in range(0, len(group.numbers), size))
        outcomes = [outcome for part in parts for outcome in train_group(part, data, self._device)]
        return [(score, state and state.to(CPU)) for score, state in outcomes]


def _name_of(group: Group) -> str:
    return f"the group of {counted(len(group.numbers), 'head')} from head {group.numbers[0]} on"
