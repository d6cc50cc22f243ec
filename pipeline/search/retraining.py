"""The settings that a sweep compares at its end, trained with several seeds, and the run of those that are kept."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from pipeline.bases.data import HeadData
from pipeline.config.heads import HeadSettings, SweepConfig, TrainConfig
from pipeline.console import counted
from pipeline.cross_validation.refit import fit_on_all
from pipeline.cross_validation.training import MOST_AT_ONCE
from pipeline.heads.fit import Fitted, fit_head, predict_validation, refuse_beyond_memory
from pipeline.heads.head import Head, merge_heads
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.run import Run, new_run
from pipeline.search.basis_cache import BasisCache, Split
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.selection import Hits

logger = logging.getLogger("headgraft.search")


@dataclass(frozen=True)
class Seeds:
    """Heads of the same settings with several seeds, and what they predict of V images.

    Attributes:
        config: of the first of them; the other seeds follow.
        labels: of the images, (V,).
        hits: whether each seed is right, (V,) each.
        first: log-probabilities by the first, (V, C).
        merged: by all of them, their logits averaged, (V, C).
        fitted: the heads; none where each fold had its own.
        seconds: of all.
    """

    config: TrainConfig
    labels: Tensor
    hits: Sequence[Hits]
    first: Tensor
    merged: Tensor
    fitted: Sequence[Fitted]
    seconds: float

    @property
    def settings(self) -> HeadSettings:
        """Of all of them."""
        return self.config.settings

    def right(self, log_probs: Tensor) -> Hits:
        """Whether the most probable class is the true one, (V,)."""
        return _hits(log_probs, self.labels)


def retrain(config: SweepConfig, settings: HeadSettings, race: SuccessiveHalving) -> Seeds:
    """Heads of the same settings, with the seeds after the sweep's own."""
    start, trainset, splits = time.perf_counter(), race.bases.trainset, race.bases.splits(settings.basis)
    first = TrainConfig(
        config.cache,
        config.run,
        trainset.index.name,
        trainset.passes,
        epochs=config.epochs,
        seed=config.seed + 1,
        memory=config.memory,
        **asdict(settings),
    )
    labels, fitted, hits = torch.from_numpy(race.metric.labels), list[Fitted](), list[Hits]()
    of_first = total = torch.zeros(len(labels), len(trainset.index.classes))
    for seed in range(first.seed, first.seed + config.seeds):
        if config.folds:
            log_probs = torch.empty(len(labels), len(trainset.index.classes))
            for split, predicted in zip(splits, predict_splits(splits, settings, race.epochs, seed), strict=True):
                log_probs[split.places] = predicted
        else:
            fitted.append(fit_head(replace(first, seed=seed), splits[0].data))
            log_probs = predict_validation(fitted[-1].head, splits[0].data)
        of_first = of_first if hits else log_probs
        hits.append(_hits(log_probs, labels))
        total = total + log_probs
    mean = np.mean([race.metric.of(one) for one in hits])
    accuracy = f"mean {config.scored_by} accuracy ({race.metric.name}) {mean:.2%}"
    logger.info(f"{counted(config.seeds, 'seed')} of {describe(settings)}: {accuracy}")
    merged = log_softmax(total / config.seeds, 1)
    return Seeds(first, labels, hits, of_first, merged, fitted, time.perf_counter() - start)


def predict_splits(splits: Sequence[Split], settings: HeadSettings, epochs: int, seed: int) -> list[Tensor]:
    """Log-probabilities (n, C) of the scored images of each split, by heads that are trained side by side."""
    datas = [split.data for split in splits if isinstance(split.data, HeadData)]  # as rows of folds are
    refuse_beyond_memory(settings, datas[0])
    steps = [steps_of(data, settings, epochs) for data in datas]
    heads = list[Head]()
    for first in range(0, len(datas), MOST_AT_ONCE):
        some = slice(first, first + MOST_AT_ONCE)
        heads += fit_side_by_side(datas[some], settings, steps[some], [seed] * len(datas[some]))
    return [predict_validation(head, data) for head, data in zip(heads, datas, strict=True)]


def run_of(config: SweepConfig, kept: Seeds, bases: BasisCache) -> Run:
    """The head of the first seed, or all of them as one; of folds, trained on the images of all, not yet saved.

    The first seed, not the most accurate one: choosing among seeds gains nothing but a flattering figure.
    """
    log_probs = kept.merged if config.merge else kept.first
    accuracy, loss = float(kept.right(log_probs).mean()), float(nll_loss(log_probs, kept.labels))
    if config.folds:
        seeds = [kept.config.seed + number for number in range(config.seeds if config.merge else 1)]
        basis, head = fit_on_all(bases.trainset, kept.settings, kept.config.epochs or 0, seeds, bases.memory)
        run = new_run(kept.config, bases.trainset, Fitted(head, [], accuracy, loss, kept.seconds), basis)
        record = replace(run.record, refit=True, folds=config.folds, merged=len(seeds), classes_without_validation=0)
        return replace(run, record=record, held_out=log_probs)
    fitted = kept.fitted[0]
    if config.merge:
        fitted = Fitted(merge_heads([one.head for one in kept.fitted]), [], accuracy, loss, kept.seconds)
    run = new_run(kept.config, bases.trainset, fitted, bases.splits(kept.settings.basis)[0].basis)
    return replace(run, record=replace(run.record, merged=len(kept.fitted) if config.merge else 1))


def describe(settings: HeadSettings) -> str:
    """In one line, as options."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(settings).items())


def _hits(log_probs: Tensor, labels: Tensor) -> Hits:
    found: Hits = (log_probs.argmax(1) == labels).numpy()
    return found
