"""The head that a sweep ends in: chosen by validation, then trained anew with seeds that it was not chosen by."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from pipeline.config import HeadSettings, SweepConfig, TrainConfig
from pipeline.console import Say
from pipeline.errors import RunError
from pipeline.heads.head import hidden_units, merge_heads
from pipeline.run import Run
from pipeline.search.held import Bases, Data
from pipeline.search.race import Contender
from pipeline.train import TrainResult, fit_head, run_of, score_head


def choose(heads: Sequence[Contender], bases: Bases) -> Contender:
    """The head that validated best among those that trained longest; of equals the smaller, then that of lower loss."""
    if not heads:
        raise RunError("no head was trained within --time-limit: allow more")
    longest = max(head.score.epochs for head in heads)
    last = [head for head in heads if head.score.epochs == longest]
    most = max(head.score.valid_accuracy for head in last)
    equals = [head for head in last if head.score.valid_accuracy == most]
    return min(equals, key=lambda head: (_size(head.settings, bases), head.score.valid_loss, head.number))


def _size(settings: HeadSettings, bases: Bases) -> int:
    """Weights of the head in its basis."""
    data = bases.data(settings.basis)
    return settings.hidden * (data.in_features + data.num_classes)


def describe(settings: HeadSettings) -> str:
    """In one line, as options."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(settings).items())


@dataclass(frozen=True)
class Trained:
    """A head, what it was trained with, and how that went."""

    config: TrainConfig
    result: TrainResult
    head: nn.Sequential


def train_anew(config: SweepConfig, settings: HeadSettings, bases: Bases, say: Say) -> list[Trained]:
    """Heads of the chosen settings, with the seeds after the sweep's own."""
    first = TrainConfig(
        config.cache,
        config.run,
        bases.rows.index.name,
        bases.rows.passes,
        bases.rows.dense,
        epochs=config.epochs,
        memory=config.memory,
        **asdict(settings),
    )
    trained = []
    for seed in range(config.seed + 1, config.seed + 1 + config.seeds):
        again = replace(first, seed=seed)
        result, head = fit_head(again, bases.rows, bases.data(settings.basis))
        say(f"seed {seed}: {result.valid_accuracy:.2%} validation at epoch {result.kept_epoch}")
        trained.append(Trained(again, result, head))
    return trained


def merged(trained: Sequence[Trained], data: Data) -> Trained:
    """All of them as one head, as if it had been trained so."""
    head = merge_heads([one.head for one in trained])
    accuracy, loss = score_head(head, data)
    seconds = sum(one.result.seconds for one in trained)
    result = replace(
        trained[0].result, epochs=[], kept_epoch=0, valid_accuracy=accuracy, valid_loss=loss, seconds=seconds
    )
    return Trained(trained[0].config, result, head)


def summary(chosen: Contender, trained: Sequence[Trained], together: Trained) -> dict[str, Any]:
    """`best` of the sweep's JSON."""
    accuracies = [one.result.valid_accuracy for one in trained]
    return {
        "config": asdict(chosen.settings),
        "valid_accuracy": chosen.score.valid_accuracy,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        "seeds": len(accuracies),
        "merged": {"hidden": hidden_units(together.head), "valid_accuracy": together.result.valid_accuracy},
    }


def run_of_best(trained: Sequence[Trained], bases: Bases) -> Run:
    """The run of the one that validates best, not yet saved."""
    best = max(trained, key=lambda one: (one.result.valid_accuracy, -one.result.valid_loss))
    return run_of(best.config, bases.rows, best.result, bases.basis(best.config.settings.basis), best.head)
