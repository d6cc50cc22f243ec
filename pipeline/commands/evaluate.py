"""Scores of one split: of a run from the cache, of a model from image files."""

import logging
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch

from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.bases.trainset import TrainingSet
from pipeline.config.models import EvaluateConfig
from pipeline.duplicates.near_duplicates import MOST_COMPARED, NearDuplicates, find_duplicates
from pipeline.errors import ConfigError, PipelineError, RunError
from pipeline.inputs.images import ImageSet
from pipeline.inputs.names import resembling
from pipeline.machine.device import available_cpus
from pipeline.model.file import load_model
from pipeline.model.prediction import answers
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE, RUN_FILE
from pipeline.statistics.conformal import in_sets
from pipeline.statistics.groups import join
from pipeline.statistics.scoring import Scores, SeedScores, Unrelated, score
from pipeline.training import retrained

logger = logging.getLogger("headgraft.evaluate")


def evaluate(config: EvaluateConfig) -> Scores:
    """Score a run folder from its cache, or a model file on the images of `data`.

    Raises:
        RunError: `target` is neither, or the set has no images of the split.
        ConfigError: an option is for the other kind of target, or more `seeds` for a head that these cannot retrain.
        BundleError: the model file cannot be read.
    """
    torch.set_num_threads(available_cpus())
    if any((config.target / name).is_file() for name in (RUN_FILE, JOURNAL_FILE)):
        _refuse_unused(config, "a run is scored from its cache", ("data", "precision", "device", "tta"))
        return _evaluate_run(config)
    if not config.target.is_file():
        found = f"holds no {RUN_FILE}" if config.target.is_dir() else "is not a regular file"
        found = found if config.target.exists() else "does not exist"
        raise RunError(f"{config.target} {found}: expected a run folder or a model file")
    _refuse_unused(config, "a model is scored on image files", ("cache", "seeds"))
    return _evaluate_model(config)


def _refuse_unused(config: EvaluateConfig, why: str, unused: tuple[str, ...]) -> None:
    """ConfigError for an option that this kind of target makes no use of."""
    for field in fields(config):
        if field.name in unused and getattr(config, field.name) != field.default:
            option = "DATA" if field.name == "data" else f"--{field.name}"
            raise ConfigError(f"{option} is not for {config.target}: {why}; leave it out")


def _evaluate_run(config: EvaluateConfig) -> Scores:
    run = Run.load(config.target)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record.set).labelled
    images = index.split(config.split)
    if not images:
        there = [split for split, count in index.counts().items() if count]
        raise RunError(
            f"set {index.name!r} has no {config.split} images: score others with --split {' or '.join(there)}"
        )
    duplicates, record = find_duplicates(cache, index), run.record
    groups = duplicates.groups.numbers(images)
    result = score(*run.log_probs(cache, index, config.split), config.split, groups)
    out_of_fold = bool(record.folds) and config.split in record.held_out_splits
    if config.split != "train" and not out_of_fold and len(index.images) <= MOST_COMPARED:
        result.unrelated = _unrelated(run, cache, index, config.split, duplicates)
    if out_of_fold:
        result.out_of_fold = True
        logger.info("these are scores of out-of-fold predictions, by heads that did not see the images")
    elif record.refit and config.split == "valid":
        logger.info("these are scores of the head before it was retrained with the validation images")
    if config.seeds > 1:
        trainset = TrainingSet(cache, index, record.config.passes, record.leaks)
        result.seeds = SeedScores.of([result.top1, *_of_seeds(run, trainset, config)])
    run.add_scores([result.as_record()])
    return result


def _of_seeds(run: Run, trainset: TrainingSet, config: EvaluateConfig) -> Iterator[float]:
    """Accuracy of the head of each further seed."""
    for other in retrained(run, trainset, config.seeds - 1):
        log_probs, labels = other.log_probs(trainset.cache, trainset.index, config.split)
        yield float((log_probs.argmax(1) == labels).double().mean())


def _unrelated(run: Run, cache: FeatureCache, index: SetIndex, split: str, found: NearDuplicates) -> Unrelated:
    """Of a split's images those without a near-duplicate, or an image of their group, that the head was trained on."""
    images, seen = index.split(split), set(run.record.trained_splits) - {split}
    given = join(index.images)
    trained = [image for image in index.images if image.split in seen]
    related = {a for pair in found.pairs for a, other in ((pair.a, 0), (pair.b, 1)) if pair.splits[1 - other] in seen}
    mates = np.isin(given.numbers(images), given.numbers(trained))
    apart = ~mates & ~np.array([image.path in related for image in images])
    log_probs, labels = run.log_probs(cache, index, split)
    kept = torch.from_numpy(apart)
    return Unrelated.of(log_probs[kept], labels[kept], found.groups.numbers(images)[apart])


def _evaluate_model(config: EvaluateConfig) -> Scores:
    bundle = load_model(config.target)
    card, data = bundle.card, config.data
    if data is None:
        raise ConfigError(f"{config.target} is a model, which records no path of images: name DATA to score it on")
    images = ImageSet.scan(data, card.split_seed, bool(card.skipped), card.classes, group_by=card.group_by)
    # Data that has no splits of its own is split by its contents: after a change, a training image could be scored.
    if not images.has_splits and images.index("data", card.skipped).digest != card.set_digest:
        raise PipelineError(
            f"{data} has no splits of its own and is not as it was when the model was trained: "
            "put the images to score under test/, or name them in a CSV"
        )
    chosen = [image for image in images.images if image.split == config.split]
    unknown = sorted({image.label for image in chosen} - set(card.classes))
    if unknown or not chosen:
        found = "no images"
        if unknown:
            first = f"{unknown[0]!r}{resembling(unknown[0], card.classes)}"
            found = f"classes the model does not know, the first {first}"
        raise PipelineError(f"{config.split} of {data} has {found}; name the data the model was trained for")
    paths = [images.root / image.path for image in chosen]
    outputs = bundle.on(config.device, config.precision).outputs(paths, mirrored=config.tta == "flip")
    number = {name: number for number, name in enumerate(card.classes)}
    labels = torch.tensor([number[image.label] for image in chosen])
    answered = answers(card, outputs) if card.rejection or card.unknown else None
    inside = in_sets(outputs.log_probs.double().numpy(), np.array(card.sets.least)) if card.sets else None
    groups, promised = join(chosen).numbers(chosen), card.rejection.max_error if card.rejection else None
    return score(outputs.log_probs, labels, config.split, groups, answered, inside, promised)
