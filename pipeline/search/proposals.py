"""Which heads a sweep tries: all of a grid, random ones, or those that Optuna proposes batch by batch."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cache.errors import install_hint
from pipeline.config import HeadSettings, SweepConfig
from pipeline.errors import ConfigError
from pipeline.search.space import SETTINGS, Range, Space, as_kind

_TRIES = 100  # a head: a small space has fewer heads than were asked for
_BATCHES = 4  # in which Optuna proposes: each learns from those before


class Search(Protocol):
    """Proposes heads and is told how they did."""

    def ask(self) -> list[HeadSettings]:
        """The next batch, heads that are not known yet; none where the search is over."""

    def tell(self, heads: Sequence[tuple[HeadSettings, float]]) -> None:
        """The best validation accuracy of each head of a batch."""


def start_search(config: SweepConfig, space: Space) -> Search:
    """The search that `config` asks for."""
    if config.search == "optuna":
        return _OptunaSearch(config, space)
    return _AllAtOnce(_grid(config, space) if config.search == "grid" else _random(config, space))


def _grid(config: SweepConfig, space: Space) -> list[HeadSettings]:
    heads = space.grid()
    if len(heads) > config.heads:
        raise ConfigError(f"the grid has {len(heads)} heads, --heads is {config.heads}: raise it, or search at random")
    return heads


def _random(config: SweepConfig, space: Space) -> list[HeadSettings]:
    """Distinct heads; fewer where the space has no more."""
    numbers = np.random.default_rng(config.seed)
    found: dict[HeadSettings, None] = {}
    for _ in range(_TRIES * config.heads):
        if len(found) == config.heads:
            break
        found[space.sample(numbers)] = None
    return list(found)


class _AllAtOnce:
    """Heads that are known from the start."""

    def __init__(self, heads: list[HeadSettings]) -> None:
        self._left = heads

    def ask(self) -> list[HeadSettings]:
        heads, self._left = self._left, []
        return heads

    def tell(self, heads: Sequence[tuple[HeadSettings, float]]) -> None:
        """Nothing changes."""


class _OptunaSearch:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), asked for a batch at a time."""

    def __init__(self, config: SweepConfig, space: Space) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(f"--search optuna needs Optuna: {install_hint('optuna')}") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, space
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=config.seed))
        self._left = config.heads
        self._batch = -(-config.heads // _BATCHES)
        self._asked: dict[HeadSettings, Any] = {}

    def ask(self) -> list[HeadSettings]:
        self._asked = {}
        for _ in range(min(self._batch, self._left)):
            trial = self._study.ask()
            values = {name: self._suggest(trial, name) for name in self._space.domains}
            self._asked[self._space.settings(values)] = trial
        self._left -= min(self._batch, self._left)
        return list(self._asked)

    def tell(self, heads: Sequence[tuple[HeadSettings, float]]) -> None:
        for head, accuracy in heads:
            self._study.tell(self._asked[head], accuracy)

    def _suggest(self, trial: Any, name: str) -> Any:
        domain = self._space.domains[name]
        if not isinstance(domain, Range):
            return trial.suggest_categorical(name, domain)
        if SETTINGS[name] is int:
            return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
        return as_kind(name, trial.suggest_float(name, domain.low, domain.high, log=domain.log))
