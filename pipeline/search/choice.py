"""The head that a sweep ends in: chosen by validation, then retrained with other seeds beside the default head."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.errors import RunError
from pipeline.heads.head import hidden_in_words, num_weights
from pipeline.search.executor import Trial
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.proposals import Search
from pipeline.search.results import Best, Merged, Retrained
from pipeline.search.retraining import Seeds, retrain
from pipeline.search.selection import Corrected, Difference, Metric, corrected, difference

logger = logging.getLogger("headgraft.search")


def choose(heads: Sequence[Trial], race: SuccessiveHalving) -> Trial:
    """The most accurate head of those that trained longest; of equals the smaller, then the one of lower loss."""
    if not heads:
        raise RunError("no head was trained within --time-limit: allow more")

    longest = max(head.score.epochs for head in heads)
    last = [head for head in heads if head.score.epochs == longest]
    most = max(map(race.accuracy, last))

    def size(head: Trial) -> int:
        data = race.bases.splits(head.settings.basis)[0].data
        return num_weights(data.in_features, head.settings.hidden, data.num_classes)

    equals = [head for head in last if race.accuracy(head) == most]
    return min(equals, key=lambda head: (size(head), head.score.loss, head.number))


def default_settings(trainset: TrainingSet) -> HeadSettings:
    """Those of `train-head` on this set."""
    return HeadSettings(basis=trainset.default_basis)


@dataclass(frozen=True)
class Final:
    """What a sweep ends in: the search's best head and the default one, and the better of them, which is kept."""

    searched: Retrained
    default: Retrained
    best: Best
    kept: Seeds


def tried(race: SuccessiveHalving, search: Search, known: Sequence[HeadSettings]) -> list[Trial]:
    """The `known` heads, which no halving stops, and every one that the search proposes besides, with its score.

    Without those that a time limit left untried.
    """
    heads = [Trial(number, settings, kept=True) for number, settings in enumerate(known)]
    waiting = list(heads)
    while not race.over and ((batch := search.ask()) or waiting):
        new = [Trial(len(heads) + place, settings) for place, settings in enumerate(batch)]
        heads += new
        race.run([*waiting, *new])
        waiting = []
        search.tell([(head.settings, race.accuracy(head), head.score.epochs) for head in new])
    return [head for head in heads if head.score.epochs]


def final(config: SweepConfig, chosen: HeadSettings, heads: Sequence[Trial], race: SuccessiveHalving) -> Final:
    """Retrain the choice and, unless they are the same, the default settings; the better one is kept.

    They are compared on the same images and seeds; of equals the default one is kept.
    """
    default = default_settings(race.bases.trainset)
    known = retrain(config, default, race)
    tried = known if chosen == default else retrain(config, chosen, race)
    apart = Difference(0.0, 0.0, 0.0)
    if tried is not known:
        apart = difference(tried.hits, known.hits, race.metric)
    found = _corrected(heads, race, config.seed)
    in_search = {head.settings: race.accuracy(head) for head in heads}
    searched = _summary(tried, race.metric, in_search.get(chosen), found.accuracy if found else None)
    default_head = _summary(known, race.metric, in_search.get(default))
    won = apart.value > 0
    winner = tried if won else known
    hidden, accuracy = config.seeds * winner.settings.hidden, float(race.metric.of(winner.right(winner.merged)))
    if config.seeds > 1:
        hint = "kept" if config.merge else "--merge would keep that"
        logger.info(f"merged, {hidden_in_words(hidden)}: {config.scored_by} accuracy {accuracy:.2%}; {hint}")
    best = Best(
        **vars(searched if won else default_head),
        won="search" if won else "default",
        difference=replace(apart, corrected=found.above if found else None),
        merged=Merged(hidden, accuracy),
    )
    return Final(searched, default_head, best, winner)


def _summary(of: Seeds, metric: Metric, in_search: float | None, corrected: float | None = None) -> Retrained:
    """Heads of the same settings over their seeds."""
    values = [float(metric.of(hits)) for hits in of.hits]
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Retrained(of.settings, float(np.mean(values)), std, len(values), in_search, corrected)


def _corrected(heads: Sequence[Trial], race: SuccessiveHalving, seed: int) -> Corrected | None:
    """Of the choice among all heads, each as it was when it ended or was stopped; None without the default or images.

    Not of those that trained longest alone: the same images chose these.
    """
    images = len(race.metric.labels)
    hits = {head.settings: head.score.unpacked(images) for head in heads}
    default = hits.get(default_settings(race.bases.trainset))
    return None if default is None else corrected(np.stack(list(hits.values())), race.metric, default, seed)
