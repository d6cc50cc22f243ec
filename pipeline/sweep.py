"""Stage two, many heads: search, halving, an honest choice, and the chosen head trained anew over several seeds."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.baselines import baselines
from pipeline.bases import Bases
from pipeline.config import HeadSettings, SweepConfig, TrainConfig
from pipeline.console import Say, silent
from pipeline.device import available_cpus
from pipeline.errors import RunError
from pipeline.journal import Journal
from pipeline.leaderboard import write_results
from pipeline.memory import allowed_bytes
from pipeline.race import Contender, Race
from pipeline.run import Run, prepare_sweep
from pipeline.search import start_search
from pipeline.space import DEFAULT_SPACE, Space
from pipeline.train import fit_head, run_of
from pipeline.trainset import TrainingSet


@dataclass
class SweepResult:
    """What `sweep` did; the fields of its JSON. `seconds` ends with the choice, those of `basis_seconds` among them."""

    run: str
    set: str
    passes: int
    leaks: dict[str, int]
    heads: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    basis_seconds: float = 0.0
    retrain_seconds: float = 0.0


def sweep(config: SweepConfig, say: Say = silent) -> SweepResult:
    """Try many heads, choose by validation, train the choice anew and keep it as a run.

    A sweep that was interrupted goes on from its journal. Raises RunError where the run is finished or was asked
    otherwise, or no head could be trained in time; ConfigError for a space that is none.
    """
    start = time.perf_counter()
    space = DEFAULT_SPACE if config.space is None else Space.load(config.space)
    search = start_search(config, space)
    torch.set_num_threads(available_cpus())
    rows = TrainingSet.open(config.cache, config.set, config.passes, say)
    prepare_sweep(config.run, config.overwrite)  # only now: what is wrong with the rows must not cost a run
    bases = Bases(rows, allowed_bytes(config.memory), say)
    journal = Journal.open(config.run, _asked(config, space, rows))
    race = Race(bases, journal, config.epochs, config.seed, config.halving, _deadline(config), say)
    heads: list[Contender] = []
    while not race.over and (batch := search.ask()):
        new = [Contender(len(heads) + place, settings) for place, settings in enumerate(batch)]
        heads += new
        race.run(new)
        search.tell([(head.settings, head.score.valid_accuracy) for head in new])
    chosen = choose(heads, bases)
    result = SweepResult(str(config.run), rows.index.name, rows.passes, rows.leaks, _entries(heads, config.epochs))
    result.seconds, result.basis_seconds = time.perf_counter() - start, bases.seconds
    say(f"chosen of {len(heads)} heads after {result.seconds:.1f} s: {describe(chosen.settings)}")
    basis = chosen.settings.basis
    result.baselines = asdict(baselines(bases.data(basis), basis))
    run = _retrain(config, chosen, bases, result, say)
    run.record["sweep"] = {**result.best, "heads": len(heads), "baselines": result.baselines}
    write_results(config.run, asdict(result))
    run.save()  # last: with run.json, the sweep is finished
    return result


def _deadline(config: SweepConfig) -> float:
    return float("inf") if config.time_limit is None else time.monotonic() + config.time_limit


def _asked(config: SweepConfig, space: Space, rows: TrainingSet) -> dict[str, Any]:
    """All that decides the results: a sweep goes on only where none of it changed."""
    names = ("heads", "epochs", "search", "halving", "seed")
    return {
        "set": rows.index.name,
        "passes": rows.passes,
        **{name: getattr(config, name) for name in names},
        "space": space.describe(),
        "base_digest": rows.cache.manifest.base.digest,
        "set_digest": rows.index.digest,
    }


def choose(heads: Sequence[Contender], bases: Bases) -> Contender:
    """The head that validated best among those that trained longest; the smaller one of equals, then the earlier."""
    tried = [head for head in heads if head.score.epochs]
    if not tried:
        raise RunError("no head was trained within --time-limit: allow more")
    longest = max(head.score.epochs for head in tried)
    last = [head for head in tried if head.score.epochs == longest]
    most = max(head.score.valid_accuracy for head in last)
    equals = [head for head in last if head.score.valid_accuracy == most]
    return min(equals, key=lambda head: (_size(head.settings, bases), head.number))


def _size(settings: HeadSettings, bases: Bases) -> int:
    """Weights of the head in its basis."""
    data = bases.data(settings.basis)
    return settings.hidden * (data.in_features + data.num_classes)


def describe(settings: HeadSettings) -> str:
    """In one line, as options."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(settings).items())


def _entries(heads: Sequence[Contender], epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "config": asdict(head.settings),
            "epochs": head.score.epochs,
            "finished": head.score.epochs == epochs,
            "valid_accuracy": head.score.valid_accuracy,
        }
        for head in heads
    ]


def _retrain(config: SweepConfig, chosen: Contender, bases: Bases, result: SweepResult, say: Say) -> Run:
    """The chosen settings with seeds that the choice did not see; the run of the one that validates best."""
    start = time.perf_counter()
    data, basis = bases.data(chosen.settings.basis), bases.basis(chosen.settings.basis)
    first = TrainConfig(
        config.cache,
        config.run,
        result.set,
        result.passes,
        epochs=config.epochs,
        memory=config.memory,
        **asdict(chosen.settings),
    )
    runs, accuracies = [], []
    for seed in range(config.seed + 1, config.seed + 1 + config.seeds):
        again = replace(first, seed=seed)
        trained, head = fit_head(again, bases.rows, data)
        say(f"seed {seed}: {trained.valid_accuracy:.2%} validation at epoch {trained.kept_epoch}")
        runs.append(run_of(again, bases.rows, trained, basis, head))
        accuracies.append(trained.valid_accuracy)
    result.best = {
        "config": asdict(chosen.settings),
        "valid_accuracy": chosen.score.valid_accuracy,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0,
        "seeds": len(accuracies),
    }
    result.retrain_seconds = time.perf_counter() - start
    return runs[int(np.argmax(accuracies))]
