"""One head trained from a cache, and written as a run."""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import TrainConfig
from pipeline.cross_validation.held_out import settings_of
from pipeline.cross_validation.refit import refitted
from pipeline.errors import ConfigError
from pipeline.heads.fit import default_epochs, fit_head
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.run import Run, new_run
from pipeline.run_folder import claimed_run, refuse_to_overwrite

logger = logging.getLogger("headgraft.training")


def trained_run(config: TrainConfig) -> Run:
    """Train one head and write its run, as it is after the last epoch.

    Raises RunError where the run exists, the set lacks train or valid, or its folder no longer agrees with the index;
    CacheError where the run's folder cannot be written; MissingRows where rows of the passes asked for are not in the
    cache. Where another process writes the run, this waits, and replaces what it wrote.
    """
    with claimed_run(config.run, config.overwrite) as replace_it:
        refuse_to_overwrite(config.run, replace_it)
        return _trained(config)


def _trained(config: TrainConfig) -> Run:
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(config.cache, config.set, config.passes)
    epochs = config.epochs or default_epochs(len(trainset.index.split("train")), config.batch_size)
    config = replace(config, basis=config.basis or trainset.default_basis, epochs=epochs)
    basis, data = load_data(trainset, config.settings.basis, allowed_bytes(config.memory))
    run = new_run(config, trainset, fit_head(config, data, logging.INFO), basis)
    if config.refit:
        del data  # whose room the rows of all images may need
        run = refitted(run, trainset, config.settings, epochs, [config.seed], allowed_bytes(config.memory))
    run.record.seconds = time.perf_counter() - start
    run.save()
    return run


def retrained(run: Run, trainset: TrainingSet, seeds: int) -> Iterator[Run]:
    """The run as it would be of each of the next `seeds` seeds, not saved; ConfigError where it is not of one head."""
    record = run.record
    if record.refit or record.folds or record.merged > 1:
        kind = "of a merged head" if record.merged > 1 else "trained on validation images too"
        raise ConfigError(
            f"--seeds retrains the head of a run on its training images, {run.path} is {kind}: leave it out"
        )
    config = record.config
    basis, data = load_data(trainset, config.basis, allowed_bytes(config.memory))
    like = TrainConfig(trainset.cache.path, run.path, record.set, config.passes, epochs=config.epochs)
    like = replace(like, **asdict(settings_of(run)))
    for seed in range(config.seed + 1, config.seed + 1 + seeds):
        logger.info(f"training the head of seed {seed}")
        yield replace(run, basis=basis, head=fit_head(replace(like, seed=seed), data).head)
