"""The learning curve: heads of an eighth to all of the images, the law of their errors, and what more would bring."""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.files import write_atomically
from pipeline.config.folds import CurveConfig
from pipeline.cross_validation.learning_curve import MOST_CLASSES, CurveResult, WantedClass, curve_path
from pipeline.cross_validation.prepare import Material, near_duplicates_across
from pipeline.cross_validation.training import Part, predicted
from pipeline.heads.fit import default_epochs
from pipeline.machine.device import resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.run_folder import check_target
from pipeline.statistics.folds import nested_parts
from pipeline.statistics.power_law import Floats, PowerLaw, curve_of

logger = logging.getLogger("headgraft.cross_validation")

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # of the images that are trained on
FORECAST = (1, 2, 4)  # times the images there are
_PRIOR = 4.0  # images of the mean error that a class is taken to have besides its own


def curve(config: CurveConfig) -> CurveResult:
    """Train heads on nested parts of the images outside each fold, score them on the fold, and fit the law.

    All heads take the same number of steps. Training and validation images take part, test images do not.

    Raises:
        RunError: as in `cv`.
    """
    start = time.perf_counter()
    device = resolve_device(config.device)
    if config.svg:
        check_target(config.svg, config.overwrite, "name another file with --svg")
    material = Material.of(config)
    path = curve_path(config.cache, material.trainset.index.name)
    check_target(path, overwrite=True)
    CurveResult.refuse_other(path)
    folds = material.folds(config.folds)
    near_duplicates_across(material.trainset.cache, material.trainset.index, material.images, folds, material.near)
    parts, sizes = _parts(config, material, folds)
    wrong = np.zeros((len(SHARES), len(folds)))
    memory, labels = allowed_bytes(config.memory), material.rows.labels
    for number, log_probs in enumerate(predicted(material.rows, parts, material.settings, memory, device)):
        held_out = parts[number].held_out
        wrong[number % len(SHARES), held_out.numpy()] = (log_probs.argmax(1) != labels[held_out]).numpy()
    groups = np.unique(material.groups.numbers(material.images), return_inverse=True)[1]
    wanted = np.array([times * len(folds) for times in FORECAST], dtype=np.float64)
    points, law, forecast = curve_of(sizes, wrong, folds.numpy(), groups, wanted)
    result = CurveResult(
        set=material.trainset.index.name,
        images=len(folds),
        groups=int(groups.max()) + 1,
        points=points,
        fit=law,
        forecast=forecast,
        classes=_wanted_classes(material.trainset.index.classes, labels.numpy(), wrong[-1], law),
        basis=material.settings.basis,
        passes=material.trainset.passes,
        steps=parts[0].steps,
        seconds=time.perf_counter() - start,
    )
    result.save(path, material.trainset.index.digest)
    if config.svg:
        config.svg.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.svg, _chart(result))
    return result


def _parts(config: CurveConfig, material: Material, folds: Tensor) -> tuple[list[Part], Floats]:
    """Of each fold one part for each share, in that order; and how many images a part of each share has, on average."""
    every, batch_size = torch.arange(len(folds)), material.settings.batch_size
    most = len(folds) - len(folds) // config.folds
    epochs = config.epochs or default_epochs(most, batch_size)
    steps, parts = epochs * math.ceil(most / batch_size), list[Part]()
    for fold in range(config.folds):
        others = every[folds != fold]
        images = [material.images[place] for place in others.tolist()]
        labels = material.rows.labels[others]
        chosen = nested_parts(images, labels, material.groups, SHARES, fold)
        parts += [Part(others[some], every[folds == fold], steps, config.seed + fold) for some in chosen]
    lengths = np.array([len(part.trained) for part in parts], dtype=np.float64)
    return parts, lengths.reshape(config.folds, len(SHARES)).mean(0)


def _wanted_classes(classes: Sequence[str], labels: np.ndarray, wrong: Floats, law: PowerLaw) -> list[WantedClass]:
    """Those with the largest gain; a class of few images has the mean error for the most part."""
    counts, errors = np.bincount(labels, minlength=len(classes)), np.bincount(labels, wrong, len(classes))
    shrunken = (errors + _PRIOR * wrong.mean()) / (counts + _PRIOR)
    gains = np.maximum(shrunken - law.a, 0) * (1 - 2**-law.c)
    order = np.argsort(-gains, kind="stable")[:MOST_CLASSES]
    return [WantedClass(classes[n], int(counts[n]), float(shrunken[n]), float(gains[n])) for n in order if counts[n]]


def _chart(result: CurveResult) -> bytes:
    from pipeline.reporting.figures import error_by_images  # matplotlib takes a second to import

    return error_by_images(result.points, result.fit, result.forecast).encode()
