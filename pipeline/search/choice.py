"""The head that a sweep ends in: chosen by validation, then retrained with other seeds beside the default head."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from pipeline.bases.data import TrainingData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings, SweepConfig, TrainConfig
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.heads.fit import Fitted, fit_head, score_head
from pipeline.heads.head import hidden_in_words, merge_heads, num_weights
from pipeline.run import Run, new_run
from pipeline.search.executor import Trial
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.results import Best, Merged, Retrained
from pipeline.search.selection import Corrected, Difference, Hits, Metric, corrected, difference

logger = logging.getLogger("headgraft.search")


def choose(heads: Sequence[Trial], race: SuccessiveHalving) -> Trial:
    """The most accurate head of those that trained longest; of equals the smaller, then the one of lower loss."""
    if not heads:
        raise RunError("no head was trained within --time-limit: allow more")

    longest = max(head.score.epochs for head in heads)
    last = [head for head in heads if head.score.epochs == longest]
    most = max(map(race.accuracy, last))

    def size(head: Trial) -> int:
        data = race.bases.data(head.settings.basis)
        return num_weights(data.in_features, head.settings.hidden, data.num_classes)

    equals = [head for head in last if race.accuracy(head) == most]
    return min(equals, key=lambda head: (size(head), head.score.loss, head.number))


def describe(settings: HeadSettings) -> str:
    """In one line, as options."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(settings).items())


def default_settings(trainset: TrainingSet) -> HeadSettings:
    """Those of `train-head` on this set."""
    return HeadSettings(basis=trainset.default_basis)


@dataclass(frozen=True)
class Final:
    """What a sweep ends in: the search's best head and the default one, the better of them, and the run of that."""

    searched: Retrained
    default: Retrained
    best: Best
    run: Run


def final(config: SweepConfig, chosen: HeadSettings, heads: Sequence[Trial], race: SuccessiveHalving) -> Final:
    """Retrain the choice and, unless they are the same, the default settings; the better one is kept.

    They are compared on the same images and seeds; of equals the default one is kept.
    """
    bases, default = race.bases, default_settings(race.bases.trainset)
    known = _retrain(config, default, race)
    tried = known if chosen == default else _retrain(config, chosen, race)
    apart = Difference(0.0, 0.0, 0.0)
    if tried is not known:
        apart = difference([one.hits for one in tried], [one.hits for one in known], race.metric)
    found = _corrected(heads, race, config.seed)
    in_search = {head.settings: race.accuracy(head) for head in heads}
    searched = _summary(tried, race.metric, in_search.get(chosen), found.accuracy if found else None)
    default_head = _summary(known, race.metric, in_search.get(default))
    won = apart.value > 0
    winners = tried if won else known
    together = _merged(winners, bases.data(winners[0].config.settings.basis))
    hidden, accuracy = together.fitted.head.hidden_units, float(race.metric.of(together.hits))
    hint = "kept" if config.merge else "--merge would keep that"
    logger.info(f"merged, {hidden_in_words(hidden)}: validation accuracy {accuracy:.2%}; {hint}")
    best = Best(
        **vars(searched if won else default_head),
        won="search" if won else "default",
        difference=replace(apart, corrected=found.above if found else None),
        merged=Merged(hidden, accuracy),
    )
    # The first seed, not the most accurate one: choosing among seeds gains nothing but a flattering figure.
    kept = together if config.merge else winners[0]
    run = new_run(kept.config, bases.trainset, kept.fitted, bases.basis(kept.config.settings.basis))
    return Final(searched, default_head, best, run)


@dataclass(frozen=True)
class _Trained:
    """A head, what it was trained with, and where it is right on validation, (V,)."""

    config: TrainConfig
    fitted: Fitted
    hits: Hits


def _retrain(config: SweepConfig, settings: HeadSettings, race: SuccessiveHalving) -> list[_Trained]:
    """Heads of the same settings, with the seeds after the sweep's own."""
    trainset, data, trained = race.bases.trainset, race.bases.data(settings.basis), []
    for seed in range(config.seed + 1, config.seed + 1 + config.seeds):
        again = TrainConfig(
            config.cache,
            config.run,
            trainset.index.name,
            trainset.passes,
            epochs=config.epochs,
            seed=seed,
            memory=config.memory,
            **asdict(settings),
        )
        fitted = fit_head(again, data)
        trained.append(_Trained(again, fitted, score_head(fitted.head, data)[0]))
    mean = np.mean([race.metric.of(one.hits) for one in trained])
    accuracy = f"mean validation accuracy ({race.metric.name}) {mean:.2%}"
    logger.info(f"{counted(config.seeds, 'seed')} of {describe(settings)}: {accuracy}")
    return trained


def _summary(
    of: Sequence[_Trained], metric: Metric, in_search: float | None, corrected: float | None = None
) -> Retrained:
    """Heads of the same settings over their seeds."""
    values = [float(metric.of(one.hits)) for one in of]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Retrained(of[0].config.settings, float(np.mean(values)), std, len(values), in_search, corrected)


def _merged(trained: Sequence[_Trained], data: TrainingData) -> _Trained:
    """All of them as one head, as if it had been trained so."""
    head = merge_heads([one.fitted.head for one in trained])
    hits, loss = score_head(head, data)
    seconds = sum(one.fitted.seconds for one in trained)
    return _Trained(trained[0].config, Fitted(head, [], float(hits.mean()), loss, seconds), hits)


def _corrected(heads: Sequence[Trial], race: SuccessiveHalving, seed: int) -> Corrected | None:
    """Of the choice among all heads, each as it was when it ended or was stopped; None without the default or images.

    Not of those that trained longest alone: the same images chose these.
    """
    images = len(race.metric.labels)
    hits = {head.settings: head.score.unpacked(images) for head in heads}
    default = hits.get(default_settings(race.bases.trainset))
    return None if default is None else corrected(np.stack(list(hits.values())), race.metric, default, seed)
