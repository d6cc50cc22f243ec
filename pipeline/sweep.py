"""Stage two, many heads: search, halving, and the best head beside the default one, retrained with several seeds."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pipeline.bases.fit import start_basis, started_width
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings, SweepConfig
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.heads.fit import default_epochs
from pipeline.heads.head import hidden_units
from pipeline.machine.cluster import connected
from pipeline.machine.device import available_cpus, resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE, claimed_run, prepare_sweep
from pipeline.search.baselines import baselines
from pipeline.search.basis_cache import BasisCache
from pipeline.search.choice import choose, default_settings, describe, final, merged, run_of
from pipeline.search.executor import Executor, LocalExecutor, RayExecutor
from pipeline.search.halving import SuccessiveHalving, Trial
from pipeline.search.journal import Journal
from pipeline.search.leaderboard import result_files, table
from pipeline.search.proposals import Search, start_search
from pipeline.search.selection import Corrected, Metric, corrected
from pipeline.search.space import Space, default_space, first_trials

logger = logging.getLogger("headgraft.sweep")


@dataclass
class SweepResult:
    """What `sweep` did; accuracies are those of `choose_by`.

    Attributes:
        run: folder of the run.
        set: name of the image set.
        passes: augmented passes trained on.
        choose_by: validation metric that decided.
        leaks: as of train-head.
        heads: `[{config, epochs, finished, valid_accuracy, valid_loss}]`; `finished` where it trained all epochs.
        best: the one of `searched` and `default` that is kept, with `won` (`search` or `default`), `merged: {hidden,
            valid_accuracy}` and `difference: {value, low, high, corrected}` of `searched` less `default` on the same
            images: `low` to `high` is a 95 % interval over images, `corrected` the difference on images that did not
            choose; null where too few images are left, or the default head was not trained to the end.
        searched: the best head of the search, `{config, mean, std, seeds, valid_accuracy}`: mean and standard deviation
            over seeds, accuracy in the search; and `corrected`, its accuracy on images that did not choose it, by
            bootstrap, null where too few are left.
        default: the same of the default head, without `corrected`; `valid_accuracy` is null where a time limit left it
            untried.
        baselines: `{basis, majority, discriminant, shrinkage, logistic, inverse_penalty, seconds}`: validation
            accuracies (top-1) of the majority class, shrunken discriminants and logistic regression; the latter two are
            None with more than 8,192 features, logistic regression also where its rows are too many to hold.
        classes_without_validation: as of train-head.
        seconds: to the end of the search, those of `basis_seconds` among them.
        basis_seconds: spent on bases.
        retrain_seconds: spent on retraining with several seeds.
    """

    run: str
    set: str
    passes: int
    choose_by: str
    leaks: dict[str, int]
    heads: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    default: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, Any] = field(default_factory=dict)
    classes_without_validation: int = 0
    seconds: float = 0.0
    basis_seconds: float = 0.0
    retrain_seconds: float = 0.0

    def in_words(self) -> str:
        """A table of the best heads, and the choice beside the baselines."""
        return table(asdict(self))


def sweep(config: SweepConfig) -> SweepResult:
    """Try many heads, choose by validation, train the choice anew and keep it as a run.

    A sweep that was interrupted goes on from its journal. Raises RunError where the run is finished or was asked
    otherwise, or no head could be trained in time; CacheError where the run's folder cannot be written; ConfigError for
    a space that is none. Where another process writes the run, this waits, and replaces what it wrote.
    """
    given = None if config.space is None else Space.load(config.space)
    device = _device(config)
    with claimed_run(config.run, config.overwrite) as replace_it:
        return _sweep(config, given, device, replace_it)


def _sweep(config: SweepConfig, given: Space | None, device: torch.device, replace_it: bool) -> SweepResult:
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(config.cache, config.set, config.passes)
    space = given or default_space(trainset.default_basis, len(trainset.index.classes), most_directions(trainset))
    epochs = config.epochs or default_epochs(len(trainset.index.split("train")), HeadSettings.batch_size)
    config = replace(config, epochs=epochs)
    known = first_trials(space, default_settings(trainset))[: config.heads]
    search = start_search(config, space, known)
    bases = BasisCache(trainset, allowed_bytes(config.memory))
    if not replace_it:
        prepare_sweep(config.run, overwrite=False)  # which removes nothing: refused before a cluster starts
    with _executor(config, trainset, device) as executor:
        # Only now: what cannot be must not cost a run, nor begin one.
        journal = _journal(config, _asked(config, space, trainset, device), replace_it)
        if journal.scores:
            logger.info(f"resuming from {journal.path}, which has results of {counted(len(journal.scores), 'head')}")
        images = trainset.index.split("valid")
        labels, digests = trainset.index.labels(images), [image.digest for image in images]
        metric = Metric.of_images(config.choose_by, labels, digests)
        race = SuccessiveHalving(
            bases, journal, metric, epochs, config.seed, config.halving, _deadline(config), executor
        )
        heads = _all_tried(race, search, known)
    chosen = choose(heads, race)
    result = SweepResult(str(config.run), trainset.index.name, trainset.passes, config.choose_by, trainset.leaks)
    result.classes_without_validation = len(trainset.classes_without_validation)
    result.heads = _entries(heads, race)
    result.seconds, result.basis_seconds = time.perf_counter() - start, bases.seconds
    logger.info(f"best of {counted(len(heads), 'head')} after {result.seconds:.1f} s: {describe(chosen.settings)}")
    run = _finish(config, chosen, heads, race, result)
    basis = result.best["config"]["basis"]
    result.baselines = asdict(baselines(bases.data(basis), basis))
    run.record.sweep = {**result.best, "heads": len(heads), "baselines": result.baselines}
    run.save(result_files(asdict(result)))  # last: with run.json, the sweep is finished
    return result


def most_directions(trainset: TrainingSet) -> int:
    """The most principal directions that training rows can have in the regions of the default basis."""
    shape = trainset.cache.row_shape
    width = started_width(start_basis(trainset.default_basis, shape), shape)
    return min(len(trainset.index.split("train")) * len(trainset.views), width)


def _journal(config: SweepConfig, asked: dict[str, Any], replace_it: bool) -> Journal:
    """Where results are kept: of a sweep that another process has just ended, if it was asked the same."""
    if replace_it and not config.overwrite and (config.run / JOURNAL_FILE).is_file():
        with suppress(RunError):  # asked otherwise: it is replaced
            return Journal.open(config.run, asked)
    prepare_sweep(config.run, replace_it)
    return Journal.open(config.run, asked)


def _device(config: SweepConfig) -> torch.device:
    """Where heads are searched; workers of Ray have a GPU where they were given one."""
    if config.engine == "ray":
        return torch.device("cuda" if config.gpus_per_worker else "cpu")
    return resolve_device(config.device)


@contextmanager
def _executor(config: SweepConfig, trainset: TrainingSet, device: torch.device) -> Iterator[Executor]:
    """Who trains the heads."""
    if config.engine != "ray":
        yield LocalExecutor(device)
        return
    with connected(config) as ray, RayExecutor(ray, config, trainset) as executor:
        yield executor


def _all_tried(race: SuccessiveHalving, search: Search, known: Sequence[HeadSettings]) -> list[Trial]:
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


def _finish(
    config: SweepConfig, chosen: Trial, heads: Sequence[Trial], race: SuccessiveHalving, result: SweepResult
) -> Run:
    """Retrain the choice and the default; the run to keep."""
    start = time.perf_counter()
    ended = final(config, chosen.settings, race)
    together = merged(ended.winners, race.bases.data(ended.winners[0].config.settings.basis))
    in_search = {head.settings: race.accuracy(head) for head in heads}
    result.searched, result.default = (
        {**found, "valid_accuracy": in_search.get(settings)}
        for settings, found in (ended.accuracy(ended.searched), ended.accuracy(ended.default))
    )
    found = _corrected(heads, race, config.seed)
    result.searched["corrected"] = found.accuracy if found else None
    merged_accuracy = float(race.metric.of(together.hits))
    result.best = {
        **(result.default if ended.default_won else result.searched),
        "won": "default" if ended.default_won else "search",
        "difference": {**asdict(ended.apart), "corrected": found.above if found else None},
        "merged": {"hidden": hidden_units(together.fitted.head), "valid_accuracy": merged_accuracy},
    }
    result.retrain_seconds = time.perf_counter() - start
    kept = "kept" if config.merge else "--merge would keep that"
    logger.info(
        f"merged, {hidden_units(together.fitted.head)} hidden units: validation accuracy {merged_accuracy:.2%}; {kept}"
    )
    # The first seed, not the one that validates best: choosing among seeds gains nothing but a flattering figure.
    return run_of(together if config.merge else ended.winners[0], race.bases)


def _corrected(heads: Sequence[Trial], race: SuccessiveHalving, seed: int) -> Corrected | None:
    """Of the choice among all heads, each as it was when it ended or was stopped; None without the default or images.

    Not of those that trained longest alone: the same images chose these.
    """
    images = len(race.metric.labels)
    hits = {head.settings: head.score.unpacked(images) for head in heads}
    default = hits.get(default_settings(race.bases.trainset))
    return None if default is None else corrected(np.stack(list(hits.values())), race.metric, default, seed)


def _deadline(config: SweepConfig) -> float:
    return float("inf") if config.time_limit is None else time.monotonic() + config.time_limit


def _asked(config: SweepConfig, space: Space, trainset: TrainingSet, device: torch.device) -> dict[str, Any]:
    """All that decides the results: a sweep goes on only where none of it changed."""
    names = ("heads", "epochs", "search", "halving", "choose_by", "seed")
    return {
        "set": trainset.index.name,
        "passes": trainset.passes,
        **{name: getattr(config, name) for name in names},
        "device": device.type,
        "space": space.describe(),
        "base_digest": trainset.cache.manifest.base.digest,
        **({"reduction": trainset.cache.basis_digest} if trainset.cache.reduction else {}),
        "set_digest": trainset.index.digest,
    }


def _entries(heads: Sequence[Trial], race: SuccessiveHalving) -> list[dict[str, Any]]:
    return [
        {
            "config": asdict(head.settings),
            "epochs": head.score.epochs,
            "finished": head.score.epochs == race.epochs,
            "valid_accuracy": race.accuracy(head),
            "valid_loss": head.score.valid_loss if math.isfinite(head.score.valid_loss) else None,
        }
        for head in heads
    ]
