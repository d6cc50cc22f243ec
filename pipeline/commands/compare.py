"""Backbones compared by their caches of one image set: the same head, trained on the features of each."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cache.errors import CacheError
from cache.files import write_atomically
from cache.history import read_history
from cache.index import SetIndex
from cache.manifest import Base
from cache.store import FeatureCache
from pipeline.backbones.facts import facts_of, licence_of
from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import CompareConfig, TrainConfig
from pipeline.console import counted, named
from pipeline.errors import ConfigError
from pipeline.heads.fit import default_epochs, fit_head, predict_validation
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.reporting.backbones import ComparedBackbone, CompareResult
from pipeline.reporting.costs import StageOne
from pipeline.run_folder import check_target
from pipeline.statistics.groups import join
from pipeline.statistics.intervals import Bools, Interval, interval, paired_loss

logger = logging.getLogger("headgraft.compare")


def compare(config: CompareConfig) -> CompareResult:
    """Train heads of the same settings and seeds on each cache, and compare them on the same validation images.

    No run is written.

    Raises:
        CacheError: the training and validation images of the caches differ.
        RunError: the set cannot be trained on, as in `train_head`.
    """
    start = time.perf_counter()
    if config.svg:
        check_target(config.svg, config.overwrite, "name another file with --svg")
    torch.set_num_threads(available_cpus())
    trainsets = [TrainingSet.open(cache, config.set, config.passes) for cache in config.caches]
    _refuse_other_images(trainsets)
    passes = min(one.passes for one in trainsets)
    trainsets = [replace(one, passes=passes) for one in trainsets]
    speeds = [_images_per_second(one) for one in trainsets]
    if config.svg and not any(speeds):
        raise ConfigError("no cache has a record of its extraction, so --svg has no times to draw: leave it out")
    hits = [_hits(config, one) for one in trainsets]
    order = sorted(range(len(hits)), key=lambda place: -hits[place].sum())
    best = hits[order[0]]
    found = [_compared(trainsets[place], hits[place], speeds[place], best) for place in order]
    if config.svg:
        config.svg.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.svg, _chart(found))
    index, seeds = trainsets[0].index, config.seeds
    epochs = default_epochs(len(index.split("train")), TrainConfig.batch_size)
    seconds = time.perf_counter() - start
    return CompareResult(index.name, best.shape[1], passes, epochs, seeds, found, seconds)


def _refuse_other_images(trainsets: Sequence[TrainingSet]) -> None:
    """CacheError unless all sets have the training and validation images of the first, by content and label."""
    first, *others = trainsets
    expected = _contents(first.index)
    for one in others:
        found = _contents(one.index)
        if differing := max((found - expected).total(), (expected - found).total()):
            raise CacheError(
                f"set {one.index.name!r} of {one.cache.path} and set {first.index.name!r} of {first.cache.path} differ "
                f"in {counted(differing, 'training or validation image')}, expected the same files, labels and splits: "
                "extract the same data into both"
            )


def _contents(index: SetIndex) -> Counter[tuple[str, str, str]]:
    return Counter((image.split, image.digest, image.label) for image in index.images if image.split != "test")


def _images_per_second(trainset: TrainingSet) -> float | None:
    stage_one = StageOne(*read_history(trainset.cache.path))
    seconds = stage_one.phase("compute")
    return stage_one.computed / seconds if stage_one.computed and seconds else None


def _order(trainset: TrainingSet) -> list[int]:
    """Places of the validation images, in an order that is the same in each cache."""
    valid = trainset.index.split("valid")
    return sorted(range(len(valid)), key=lambda place: (valid[place].digest, valid[place].label))


def _hits(config: CompareConfig, trainset: TrainingSet) -> Bools:
    """Whether heads of S seeds are right about the N validation images, (S, N), images in `_order`."""
    basis, cache = trainset.default_basis, trainset.cache.path
    _, data = load_data(trainset, basis, allowed_bytes(config.memory))
    found = []
    for seed in range(config.seeds):
        asked = TrainConfig(cache, cache, basis=basis, seed=seed)  # its run is not written
        log_probs = predict_validation(fit_head(asked, data).head, data)
        found.append((log_probs.argmax(1) == data.valid_labels).numpy())
        logger.info(f"{named(cache)}, basis {basis}, seed {seed}: validation accuracy {found[-1].mean():.2%}")
    return np.array(found)[:, _order(trainset)]


def _compared(trainset: TrainingSet, hits: Bools, speed: float | None, best: Bools) -> ComparedBackbone:
    cache, base, valid = trainset.cache, trainset.cache.manifest.base, trainset.index.split("valid")
    numbers = join(valid).numbers([valid[place] for place in _order(trainset)])
    groups = np.unique(numbers, return_inverse=True)[1]  # an image is one group with its copies, over all seeds
    accuracy = interval(hits.ravel(), np.full(hits.size, 1 / hits.size), np.tile(groups, len(hits)))
    apart = paired_loss(hits, best)  # what the best would lose by being this one, with the sign of a gain
    reduced = f", reduced by {cache.reduction.basis}" if cache.reduction else ""
    gmacs, licence = _facts(cache, base)
    return ComparedBackbone(
        cache=str(cache.path),
        backbone=f"{base.backbone}{reduced}",
        basis=trainset.default_basis,
        valid_accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        difference=apart["lost"],
        difference_low=apart["low"],
        difference_high=apart["high"],
        images_per_second=speed,
        bytes_per_image=2 * cache.in_features,
        gmacs=gmacs,
        licence=licence,
    )


def _facts(cache: FeatureCache, base: Base) -> tuple[float | None, str | None]:
    """10^9 multiply-adds per image, and the licence of the weights; None where unknown."""
    sources = {shard.header.provenance.get("weights") for shard in cache.shards}
    try:
        licences = {licence_of(base.backbone, source) for source in sources}
        gmacs = facts_of(base.backbone, base.input_size, base.layer).gmacs
    except ConfigError:  # a backbone that a program had added
        return None, None
    return gmacs, licences.pop() if len(licences) == 1 else None


def _chart(found: Sequence[ComparedBackbone]) -> bytes:
    from pipeline.reporting.figures import accuracy_by_time  # matplotlib takes a second to import

    timed = [(one, one.images_per_second) for one in found if one.images_per_second]
    names = [f"{one.backbone}, {named(Path(one.cache).name)}" for one, _ in timed]
    accuracies = [Interval(one.valid_accuracy, one.low, one.high) for one, _ in timed]
    return accuracy_by_time(names, [1000 / speed for _, speed in timed], accuracies).encode()
