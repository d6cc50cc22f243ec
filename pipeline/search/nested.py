"""Cross-validation of a whole sweep: the images outside each fold choose the settings of the head that predicts it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.search.basis_cache import FoldedBasisCache
from pipeline.search.choice import choose, default_settings, final, tried
from pipeline.search.executor import Executor
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.journal import Journal
from pipeline.search.proposals import start_search
from pipeline.search.retraining import describe, predict_splits
from pipeline.search.selection import Metric
from pipeline.search.space import Space, default_space, first_trials

logger = logging.getLogger("headgraft.search")


@dataclass(frozen=True)
class Nested:
    """Log-probabilities (N, C) of each image, settings of each fold's head, and the space they were chosen from."""

    log_probs: Tensor
    settings: Sequence[HeadSettings]
    space: Space


def nested(config: SweepConfig, bases: FoldedBasisCache, epochs: int, device: torch.device) -> Nested:
    """Of the images of `bases`, in three folds or more.

    A sweep of `config.heads` heads over the images outside a fold has the other folds as its own. Source: Varma and
    Simon, Bias in error estimation when using cross-validation for model selection, BMC Bioinformatics 7, 2006.
    """
    folds, chosen = bases.folds, list[HeadSettings]()
    given = None if config.space is None else Space.load(config.space)
    for fold in range(int(folds.max()) + 1):
        logger.info(f"fold {fold + 1} of {int(folds.max()) + 1}: a sweep over the others chooses")
        others = bases.without(fold)
        chosen.append(_chosen(config, given or _default(others), others, epochs, device))
        logger.info(f"fold {fold + 1}: {describe(chosen[-1])}")
    found = torch.empty(len(folds), len(bases.trainset.index.classes))
    for fold, settings in enumerate(chosen):
        split = bases.splits(settings.basis)[fold]
        found[split.places] = predict_splits([split], settings, epochs, config.seed)[0]
    return Nested(found, chosen, given or _default(bases))


def _default(bases: FoldedBasisCache) -> Space:
    return default_space(bases.trainset.default_basis, len(bases.trainset.index.classes), bases.most_directions)


def _chosen(
    config: SweepConfig, space: Space, bases: FoldedBasisCache, epochs: int, device: torch.device
) -> HeadSettings:
    """What a sweep over these images ends in."""
    trainset = bases.trainset
    known = first_trials(space, default_settings(trainset))[: config.heads]
    metric = Metric.over(bases.images, config.choose_by, trainset.index, bases.groups)
    race = SuccessiveHalving(bases, Journal(), metric, epochs, config.seed, config.halving, executor=Executor(device))
    heads = tried(race, start_search(config, space, known), known)
    return final(config, choose(heads, race).settings, heads, race).kept.settings
