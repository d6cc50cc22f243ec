"""Stage two, many heads: search, halving, and the best head beside the default one, retrained with several seeds."""

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from typing import Any

import torch

from pipeline.bases.reduced import unchecked
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.console import counted
from pipeline.cross_validation.prepare import near_duplicates_across, unseen_images
from pipeline.cross_validation.refit import refitted
from pipeline.errors import RunError
from pipeline.heads.fit import default_epochs
from pipeline.machine.device import available_cpus, resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.run_folder import JOURNAL_FILE, claimed_run, prepare_sweep
from pipeline.search.baselines import baselines
from pipeline.search.basis_cache import FoldedBasisCache, bases_of
from pipeline.search.choice import choose, default_settings, final, tried
from pipeline.search.executor import Executor, Trial, ray_executor
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.journal import Journal
from pipeline.search.proposals import start_search
from pipeline.search.results import HeadResult, SweepResult, result_files
from pipeline.search.retraining import describe, run_of
from pipeline.search.selection import Metric
from pipeline.search.space import Space, default_space, first_trials

logger = logging.getLogger("headgraft.sweep")


def sweep(config: SweepConfig) -> SweepResult:
    """Try many heads, choose by validation or out of fold, retrain the choice and keep it as a run.

    A sweep that was interrupted resumes from its journal. Where another process writes the run, this waits, and
    replaces what it wrote.

    Raises:
        RunError: the run is finished, was started with other options, or no head could be trained in time.
        CacheError: the folder of the run cannot be written.
        ConfigError: the search space is not valid.
    """
    given = None if config.space is None else Space.load(config.space)
    device = _device(config)
    with claimed_run(config.run, config.overwrite) as replace_it:
        return _sweep(config, given, device, replace_it)


def _sweep(config: SweepConfig, given: Space | None, device: torch.device, replace_it: bool) -> SweepResult:
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(config.cache, config.set, config.passes, validated=not config.folds)
    if config.folds and (why := unchecked(trainset.cache, trainset.index)):
        raise RunError(why)
    bases = bases_of(config, trainset, allowed_bytes(config.memory))
    if isinstance(bases, FoldedBasisCache):
        unseen_images(trainset.index.labels(bases.images), bases.groups.numbers(bases.images))
        if not config.group_near_duplicates:
            near_duplicates_across(trainset.cache, trainset.index, bases.images, bases.folds)
    space = given or default_space(trainset.default_basis, len(trainset.index.classes), bases.most_directions)
    epochs = config.epochs or default_epochs(bases.trained_images, HeadSettings.batch_size)
    config = replace(config, epochs=epochs)
    known = first_trials(space, default_settings(trainset))[: config.heads]
    search = start_search(config, space, known)
    if not replace_it:
        prepare_sweep(config.run, overwrite=False)  # which removes nothing: refused before a cluster starts
    workers = ray_executor(config, trainset) if config.engine == "ray" else nullcontext(Executor(device))
    with workers as executor:
        # Only now: what cannot be must not cost a run, nor begin one.
        journal = _journal(config, _asked(config, space, trainset, device), replace_it)
        if journal.scores:
            logger.info(f"resuming from {journal.path}, which has results of {counted(len(journal.scores), 'head')}")
        metric = Metric.over(bases.images, config.choose_by, trainset.index, bases.groups)
        deadline = math.inf if config.time_limit is None else time.monotonic() + config.time_limit
        race = SuccessiveHalving(bases, journal, metric, epochs, config.seed, config.halving, deadline, executor)
        heads = tried(race, search, known)
    return _finish(config, heads, race, start)


def _finish(config: SweepConfig, heads: Sequence[Trial], race: SuccessiveHalving, start: float) -> SweepResult:
    """Choose, retrain, and write the run with its results."""
    bases, trainset = race.bases, race.bases.trainset
    chosen = choose(heads, race).settings
    searched, basis_seconds = time.perf_counter(), bases.seconds
    logger.info(f"best of {counted(len(heads), 'head')} after {searched - start:.1f} s: {describe(chosen)}")
    ended = final(config, chosen, heads, race)
    run = run_of(config, ended.kept, bases)
    if config.refit:
        kept = ended.best
        seeds = [config.seed + 1 + number for number in range(config.seeds if config.merge else 1)]
        run = refitted(run, trainset, kept.config, race.epochs, seeds, allowed_bytes(config.memory))
    retrained, basis = time.perf_counter(), ended.best.config.basis
    result = SweepResult(
        run=str(config.run),
        set=trainset.index.name,
        passes=trainset.passes,
        choose_by=config.choose_by,
        leaks=trainset.leaks,
        heads=[_result(head, race) for head in heads],
        best=ended.best,
        searched=ended.searched,
        default=ended.default,
        baselines=baselines([split.data for split in bases.splits(basis)], basis),
        classes_without_validation=run.record.classes_without_validation,
        folds=config.folds,
        seconds=searched - start,
        basis_seconds=basis_seconds,
        retrain_seconds=retrained - searched,
    )
    run.record.sweep = {
        **asdict(result.best),
        "heads": len(heads),
        "baselines": asdict(result.baselines),
    }
    run.save(result_files(result))  # last: with run.json, the sweep is finished
    return result


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


def _asked(config: SweepConfig, space: Space, trainset: TrainingSet, device: torch.device) -> dict[str, Any]:
    """All that decides the results: a sweep goes on only where none of it changed."""
    names = (
        "heads",
        "epochs",
        "search",
        "halving",
        "choose_by",
        "seed",
        *(["folds", "group_near_duplicates"] if config.folds else []),
    )
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


def _result(head: Trial, race: SuccessiveHalving) -> HeadResult:
    loss = head.score.loss if math.isfinite(head.score.loss) else None
    return HeadResult(head.settings, head.score.epochs, head.score.epochs == race.epochs, race.accuracy(head), loss)
