"""Which heads a sweep tries: all of a grid, random ones, or those that Optuna proposes batch by batch."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.errors import counted, install_hint
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.errors import ConfigError
from pipeline.search.space import SETTINGS, Range, Space, as_kind

logger = logging.getLogger("headgraft.search")

_TRIES = 100  # a head: a small space has fewer heads than were asked for
_BATCHES = 4  # in which Optuna proposes: each learns from those before


Told = tuple[HeadSettings, float, int]  # a head, its validation accuracy, after how many epochs


class Search:
    """Proposes heads, here all of them at once, and is told how they did."""

    def __init__(self, heads: list[HeadSettings]) -> None:
        self._waiting = heads

    def ask(self) -> list[HeadSettings]:
        """The next batch, heads that are not known yet; none where the search is over."""
        heads, self._waiting = self._waiting, []
        return heads

    def tell(self, heads: Sequence[Told]) -> None:
        """Validation accuracies of the heads of a batch."""


def start_search(config: SweepConfig, space: Space, known: Sequence[HeadSettings]) -> Search:
    """The search that `config` asks for, of heads that are not among the `known`: `config.heads` with these.

    A grid is tried with the `known` heads beside it. Raises ConfigError for one of more heads than asked for.
    """
    if config.search == "optuna":
        return _OptunaSearch(config, space, known)
    if config.search == "random":
        return Search(_random(config, space, known))
    heads = space.grid()
    if len(heads) > config.heads:
        raise ConfigError(
            f"the grid has {counted(len(heads), 'head')}, --heads is {config.heads}: raise it, or search at random"
        )
    return Search([head for head in heads if head not in known])


def _random(config: SweepConfig, space: Space, known: Sequence[HeadSettings]) -> list[HeadSettings]:
    """Distinct heads; fewer where the space has no more."""
    numbers = np.random.default_rng(config.seed)
    found = dict.fromkeys(known)
    for _ in range(_TRIES * config.heads):
        if len(found) >= config.heads:
            break
        found[space.sample(numbers)] = None
    if len(found) < config.heads:
        logger.info(
            f"{space.source} has {counted(len(found), 'head')}, the default ones among them: not {config.heads}"
        )
    return list(found)[len(known) :]


class _OptunaSearch(Search):
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), asked for a batch at a time."""

    def __init__(self, config: SweepConfig, space: Space, known: Sequence[HeadSettings]) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(f"--search optuna needs Optuna: {install_hint('optuna')}") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._states, self._space = optuna.trial.TrialState, space
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=config.seed))
        self._left = max(0, config.heads - len(known))
        self._batch = -(-self._left // _BATCHES)
        self._tried = set(known)
        self._epochs = config.epochs
        self._asked: dict[HeadSettings, Any] = {}

    def ask(self) -> list[HeadSettings]:
        self._asked = {}
        wanted = min(self._batch, self._left)
        for _ in range(_TRIES * wanted):
            if len(self._asked) == wanted:
                break
            trial = self._study.ask()
            head = self._space.settings({name: self._suggest(trial, name) for name in self._space.domains})
            if head in self._tried:
                self._study.tell(trial, state=self._states.FAIL)  # nothing new to learn
                continue
            self._tried.add(head)
            self._asked[head] = trial
        self._left -= len(self._asked)
        return list(self._asked)

    def tell(self, heads: Sequence[Told]) -> None:
        """Accuracies at their epoch: a head that was stopped is a pruned trial, no bad one."""
        for head, accuracy, epochs in heads:
            trial = self._asked[head]
            trial.report(accuracy, epochs)
            finished = epochs == self._epochs
            self._study.tell(trial, accuracy if finished else None, None if finished else self._states.PRUNED)

    def _suggest(self, trial: Any, name: str) -> Any:
        domain = self._space.domains[name]
        if not isinstance(domain, Range):
            return trial.suggest_categorical(name, domain)
        if SETTINGS[name] is int:
            return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        return as_kind(name, trial.suggest_float(name, domain.low, domain.high, log=domain.log))
