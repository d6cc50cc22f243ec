"""What heads like a run's say of images that they were not trained on, and of classes that they never saw."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from cache.index import ImageRecord
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings
from pipeline.console import counted
from pipeline.cross_validation.prepare import folds_of
from pipeline.cross_validation.rows import ImageRows
from pipeline.cross_validation.training import Part, predicted
from pipeline.errors import RunError
from pipeline.run import Run
from pipeline.statistics.groups import Groups, join

logger = logging.getLogger("headgraft.cross_validation")

FOLDS = 5
_CLASS_PARTS, _CLASS_DRAWS = 5, 3  # a fifth of the classes is left out, of the first three fifths of a shuffled list
_FEWEST_CLASSES = 3  # one is left out, and two are there to tell apart


@dataclass(frozen=True)
class HeldOut:
    """Log-probabilities of images by one head, or by several, of different seeds, that are merged.

    Attributes:
        part: places of the images that the heads were trained on, and of those that they predict.
        classes: whether they were trained on each class, (C,) bool.
        log_probs: of the images that they predict, (n, C).
    """

    part: Part
    classes: Tensor
    log_probs: Tensor


@dataclass(frozen=True)
class HeldOutPredictions:
    """Of N images.

    Attributes:
        images: in this order.
        groups: of images that are no independent evidence.
        labels: places of the classes, (N,).
        folds: each image is predicted in one of them.
        without_classes: by heads that a part of the classes was kept from; of too few classes, none.
    """

    images: Sequence[ImageRecord]
    groups: Groups
    labels: Tensor
    folds: list[HeldOut]
    without_classes: list[HeldOut]

    @property
    def log_probs(self) -> Tensor:
        """Of each image by heads that were not trained on its fold, (N, C)."""
        found = torch.empty(len(self.images), self.folds[0].log_probs.shape[1])
        for one in self.folds:
            found[one.part.held_out] = one.log_probs
        return found

    @property
    def one_of_each_group(self) -> Tensor:
        """Places of the images with the lowest digest of their group, which are independent evidence, (G,)."""
        order = np.argsort([image.digest for image in self.images])
        first = np.unique(self.groups.numbers(self.images)[order], return_index=True)[1]
        return torch.from_numpy(order[first])


def settings_of(run: Run) -> HeadSettings:
    """Settings of the run's head, or of each of those that were merged into it."""
    config, merged = run.record.config, run.record.merged
    found = HeadSettings(**{one.name: getattr(config, one.name) for one in fields(HeadSettings)})
    return replace(found, hidden=found.hidden // merged)


def held_out_predictions(run: Run, trainset: TrainingSet, memory: int, unseen_classes: bool) -> HeldOutPredictions:
    """Train heads like the run's on parts of its images; RunError where they are too few, or rows too many.

    These are the training images, which chose nothing, unless a choice over folds took all. Where heads were merged,
    as many are trained for each fold. With `unseen_classes`, heads that lack a fifth of the classes are trained, too.
    """
    splits = run.record.held_out_splits if run.record.folds else ("train",)
    images, settings, config = trainset.index.split(*splits), settings_of(run), run.record.config
    groups = join(images)
    rows = ImageRows.load(trainset, images, settings.basis, memory)
    if (there := len(np.unique(groups.numbers(images)))) < FOLDS:
        raise RunError(f"{counted(there, 'image')} or groups of them to train on, {FOLDS} are needed to hold parts out")
    folds = folds_of(trainset.index, images, groups, FOLDS)

    def part(trained: Tensor, held_out: Tensor, seed: int) -> Part:
        trained, held_out = (mask.nonzero().flatten() for mask in (trained, held_out))
        return Part(trained, held_out, config.epochs * math.ceil(len(trained) / settings.batch_size), seed)

    seeds = range(config.seed, config.seed + run.record.merged)
    parts = [part(folds != fold, folds == fold, seed) for fold in range(FOLDS) for seed in seeds]
    kept = _kept_classes(rows.num_classes) if unseen_classes else []
    for fold, classes in enumerate(kept):
        known = classes[rows.labels]
        parts.append(part(known & (folds != fold), ~known | (folds == fold), config.seed))
    logger.info(f"training {counted(len(parts), 'head')} on parts of the images, to learn what they say of the others")
    log_probs = list(predicted(rows, parts, settings, memory))
    every, merged = torch.ones(rows.num_classes, dtype=torch.bool), len(seeds)
    in_folds = [
        HeldOut(parts[first], every, log_softmax(torch.stack(log_probs[first : first + merged]).mean(0), 1))
        for first in range(0, FOLDS * merged, merged)
    ]
    others = zip(parts[FOLDS * merged :], kept, log_probs[FOLDS * merged :], strict=True)
    return HeldOutPredictions(images, groups, rows.labels, in_folds, [HeldOut(*one) for one in others])


def _kept_classes(classes: int) -> list[Tensor]:
    """Whether each class is kept, (C,), in each draw."""
    if classes < _FEWEST_CLASSES:
        return []
    order = np.random.default_rng(0).permutation(classes)
    kept = []
    for left_out in np.array_split(order, min(_CLASS_PARTS, classes))[:_CLASS_DRAWS]:
        kept.append(torch.ones(classes, dtype=torch.bool))
        kept[-1][torch.from_numpy(left_out)] = False
    return kept
