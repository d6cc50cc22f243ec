"""The head that a sweep ends in: chosen by validation, then retrained with other seeds beside the default head."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.bases.data import TrainingData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings, SweepConfig, TrainConfig
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.heads.fit import Fitted, fit_head, score_head
from pipeline.heads.head import merge_heads, num_weights
from pipeline.run import Run, new_run
from pipeline.search.basis_cache import BasisCache
from pipeline.search.halving import SuccessiveHalving, Trial
from pipeline.search.selection import Difference, Hits, Metric, difference

logger = logging.getLogger("headgraft.search")


def choose(heads: Sequence[Trial], race: SuccessiveHalving) -> Trial:
    """The most accurate head of those that trained longest; of equals the smaller, then the one of lower loss."""
    if not heads:
        raise RunError("no head was trained within --time-limit: allow more")
    last = finalists(heads)
    most = max(map(race.accuracy, last))
    equals = [head for head in last if race.accuracy(head) == most]
    return min(equals, key=lambda head: (_size(head.settings, race.bases), head.score.valid_loss, head.number))


def finalists(heads: Sequence[Trial]) -> list[Trial]:
    """Those that trained longest."""
    longest = max(head.score.epochs for head in heads)
    return [head for head in heads if head.score.epochs == longest]


def _size(settings: HeadSettings, bases: BasisCache) -> int:
    """Weights of the head in its basis."""
    data = bases.data(settings.basis)
    return num_weights(data.in_features, settings.hidden, data.num_classes)


def describe(settings: HeadSettings) -> str:
    """In one line, as options."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(settings).items())


@dataclass(frozen=True)
class Trained:
    """A head, what it was trained with, and where it is right on validation, (V,)."""

    config: TrainConfig
    fitted: Fitted
    hits: Hits


def retrain(config: SweepConfig, settings: HeadSettings, race: SuccessiveHalving) -> list[Trained]:
    """Heads of the same settings, with the seeds after the sweep's own."""
    bases = race.bases
    first = TrainConfig(
        config.cache,
        config.run,
        bases.trainset.index.name,
        bases.trainset.passes,
        epochs=config.epochs,
        memory=config.memory,
        **asdict(settings),
    )
    data, trained = bases.data(settings.basis), []
    for seed in range(config.seed + 1, config.seed + 1 + config.seeds):
        again = replace(first, seed=seed)
        fitted = fit_head(again, data)
        trained.append(Trained(again, fitted, score_head(fitted.head, data)[0]))
    logger.info(f"{counted(config.seeds, 'seed')} of {describe(settings)}: {trained_in_words(trained, race.metric)}")
    return trained


def trained_in_words(trained: Sequence[Trained], metric: Metric) -> str:
    """Mean validation accuracy by the metric."""
    return f"mean validation accuracy ({metric.name}) {np.mean([metric.of(one.hits) for one in trained]):.2%}"


def merged(trained: Sequence[Trained], data: TrainingData) -> Trained:
    """All of them as one head, as if it had been trained so."""
    head = merge_heads([one.fitted.head for one in trained])
    hits, loss = score_head(head, data)
    seconds = sum(one.fitted.seconds for one in trained)
    return Trained(trained[0].config, Fitted(head, [], float(hits.mean()), loss, seconds), hits)


@dataclass(frozen=True)
class Final:
    """The best head of the search against the default of `train-head`, each retrained with the same seeds.

    `apart` is by how much the search's is better; of equals the default wins.
    """

    searched: list[Trained]
    default: list[Trained]
    apart: Difference
    metric: Metric

    @property
    def default_won(self) -> bool:
        """Whether the search found nothing better."""
        return self.apart.value <= 0

    @property
    def winners(self) -> list[Trained]:
        """Heads of the settings that won, one for each seed."""
        return self.default if self.default_won else self.searched

    def accuracy(self, of: Sequence[Trained]) -> tuple[HeadSettings, dict[str, Any]]:
        """Their settings, the same with mean and standard deviation of validation accuracy over seeds."""
        values = [float(self.metric.of(one.hits)) for one in of]
        settings = of[0].config.settings
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return settings, {"config": asdict(settings), "mean": float(np.mean(values)), "std": std, "seeds": len(values)}


def final(config: SweepConfig, chosen: HeadSettings, race: SuccessiveHalving) -> Final:
    """Retrain the choice and, unless they are the same, the default settings; which is better, paired by image."""
    default = default_settings(race.bases.trainset)
    known = retrain(config, default, race)
    if chosen == default:
        return Final(known, known, Difference(0.0, 0.0, 0.0), race.metric)
    searched = retrain(config, chosen, race)
    apart = difference([one.hits for one in searched], [one.hits for one in known], race.metric)
    return Final(searched, known, apart, race.metric)


def default_settings(trainset: TrainingSet) -> HeadSettings:
    """Those of `train-head` on this set."""
    return HeadSettings(basis=trainset.default_basis)


def run_of(one: Trained, bases: BasisCache) -> Run:
    """The run of a head, not yet saved."""
    return new_run(one.config, bases.trainset, one.fitted, bases.basis(one.config.settings.basis))
