"""Cross-validation of a head from a cache: each image is predicted by a head that saw neither it nor its group."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.layout import PREDICTION_FOLDER
from cache.result import Result
from cache.store import FeatureCache
from pipeline.config.folds import MOST_FOLDS, CvConfig
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.console import counted
from pipeline.cross_validation.predictions import (
    ClassRecall,
    OutOfFold,
    PairedComparison,
    compared,
    refuse_other_images,
)
from pipeline.cross_validation.prepare import Material, groups_of, near_duplicates_across, unseen_images
from pipeline.cross_validation.training import out_of_fold
from pipeline.errors import RunError
from pipeline.heads.fit import default_epochs
from pipeline.machine.device import resolve_device
from pipeline.machine.memory import allowed_bytes
from pipeline.run_folder import check_target
from pipeline.search.basis_cache import FoldedBasisCache
from pipeline.search.nested import nested
from pipeline.search.space import Space
from pipeline.statistics.calibration import error_of, floor_of
from pipeline.statistics.folds import folds_of_groups
from pipeline.statistics.groups import Groups

logger = logging.getLogger("headgraft.cross_validation")

_MISSED = 5  # classes that are named


@dataclass(frozen=True)
class Fold:
    """One fold: its images, predicted by the head of the others.

    Attributes:
        repeat: from 1.
        fold: from 1.
        images: of the fold.
        accuracy: a fraction.
    """

    repeat: int
    fold: int
    images: int
    accuracy: float


@dataclass(frozen=True)
class CvResult(Result):
    """What cross-validation found.

    Attributes:
        set: name of the image set.
        images: of train and valid, each predicted once in a repeat.
        groups: of images that are no independent evidence, each in one fold.
        folds: one after the other.
        accuracy: of all images, a fraction; with several repeats their mean.
        interval: `[low, high]` of it, 95 % over groups of images.
        mean_per_class: mean of the accuracies of each class, a fraction.
        classes: those that have images, with their recall, `{label, images, recall, low, high}`, the least first.
        ece: calibration error over 15 equal-width bins, of the first repeat.
        ece_floor: mean `ece` over 200 sets of labels drawn from the probabilities.
        basis: name of the basis, fitted in each fold; "" where each fold chose its own.
        passes: augmented passes that heads were trained on.
        epochs: of each head.
        chosen: settings of the head of each fold, with `--heads`; empty without.
        unseen: images whose class has no other group: no head that predicts them knows it.
        across_folds: images with a near-duplicate in another fold of the first repeat; null of more than 30,000 images.
        seconds: of the command.
        predictions: path of the out-of-fold predictions.
        against: how much more accurate than the predictions of `--against`; null without.
    """

    set: str
    images: int
    groups: int
    folds: list[Fold]
    accuracy: float
    interval: tuple[float, float]
    mean_per_class: float
    classes: list[ClassRecall]
    ece: float
    ece_floor: float
    basis: str
    passes: int
    epochs: int
    chosen: list[HeadSettings] = field(default_factory=list)
    unseen: int = 0
    across_folds: int | None = None
    seconds: float = 0.0
    predictions: str = ""
    against: PairedComparison | None = None

    def in_words(self) -> str:
        """Accuracy with its interval, the folds' range, calibration, and where the predictions are."""
        low, high = self.interval
        each = sorted(fold.accuracy for fold in self.folds)
        of, over = counted(self.images, "training and validation image"), "images"
        if self.groups < self.images:
            of, over = f"{of} in {counted(self.groups, 'group')}", "groups"
        how = f"basis {self.basis}"
        if self.chosen:
            bases = Counter(settings.basis for settings in self.chosen).most_common()
            how = "settings chosen in each, basis " + ", ".join(f"{basis} ({count})" for basis, count in bases)
        lines = [
            f"accuracy {self.accuracy:.2%} ({low:.2%} to {high:.2%}, 95 % over {over}), mean per class "
            f"{self.mean_per_class:.2%}: {of}, each predicted by heads that did not see its group",
            f"{counted(len(self.folds), 'fold')}, {each[0]:.2%} to {each[-1]:.2%}; {how}, "
            f"{counted(self.passes, 'augmented pass')}, {counted(self.epochs, 'epoch')}",
        ]
        if missed := [str(one) for one in self.classes if one.recall < 1][:_MISSED]:
            lines.append(f"lowest recall: {', '.join(missed)}")
        lines.append(f"calibration error {self.ece:.3f} (floor {self.ece_floor:.3f})")
        if self.against:
            lines.append(self.against.in_words())
        return "\n".join([*lines, f"{self.predictions}: predictions of every image; {self.seconds:.1f} s"])


def cv(config: CvConfig) -> CvResult:
    """Train a head for each fold on the others, in a basis fitted on them, and predict the fold.

    Training and validation images take part, test images do not.

    Raises:
        RunError: there are too few images, their labels made the rows of a reduced cache, or the rows exceed `memory`.
    """
    start = time.perf_counter()
    device, against = resolve_device(config.device), OutOfFold.load(config.against) if config.against else None
    name = FeatureCache.open(config.cache).set_name(config.set)
    path = config.predictions or config.cache / PREDICTION_FOLDER / f"{name}.npz"
    check_target(path, overwrite=True, advice="name another file with --predictions")
    if path.exists():  # what is another file is not to be overwritten
        OutOfFold.load(path, "move it away, or name another file with --predictions")
    material = Material.of(config)
    if against and config.group_near_duplicates:
        material = replace(material, groups=_groups_of(against, config, material))
    folds = [_folds(config, material, repeat) for repeat in range(config.repeats)]
    trained = round(len(material.images) * (1 - 1 / (int(folds[0].max()) + 1)))
    epochs = config.epochs or default_epochs(trained, material.settings.batch_size)
    paths, digests, labels = (
        np.array([getattr(image, name) for image in material.images]) for name in ("path", "digest", "label")
    )
    if against:
        refuse_other_images(against, digests, labels, [these.numpy() for these in folds])
    unseen = unseen_images(material.rows.labels.numpy(), material.groups.numbers(material.images))
    across_folds = near_duplicates_across(
        material.trainset.cache, material.trainset.index, material.images, folds[0], material.near
    )
    each = [_predicted(config, material, these, number, epochs, device) for number, these in enumerate(folds)]
    space = each[0][2]
    found = OutOfFold(
        paths=paths,
        digests=digests,
        labels=material.rows.labels.numpy(),
        classes=np.array(material.trainset.index.classes),
        log_probs=np.stack([log_probs for log_probs, _, _ in each]),
        folds=np.stack([these.numpy() for these in folds]),
        groups=material.groups.numbers(material.images),
        backbone=material.trainset.cache.manifest.base.backbone,
        settings=None if config.heads else material.settings,
        search=None if space is None else _search(config, material, space),
    )
    comparison = compared(found, against) if against else None
    found.save(path)
    return replace(
        _result(found, material, epochs),
        chosen=[settings for _, chosen, _ in each for settings in chosen],
        unseen=unseen,
        across_folds=across_folds,
        seconds=time.perf_counter() - start,
        predictions=str(path),
        against=comparison,
    )


def _predicted(
    config: CvConfig, material: Material, folds: Tensor, repeat: int, epochs: int, device: torch.device
) -> tuple[NDArray[np.float32], Sequence[HeadSettings], Space | None]:
    """Log-probabilities (N, C) of all images, the settings that each fold chose, if it was to choose, and from what."""
    memory, seed = allowed_bytes(config.memory), config.seed + repeat
    if not config.heads:
        return out_of_fold(material.rows, folds, material.settings, epochs, seed, memory, device), (), None
    bases = FoldedBasisCache(
        material.trainset, memory, places=torch.arange(len(folds)), folds=folds, given_groups=material.groups
    )
    others = config.folds - 1
    asked = SweepConfig(
        config.cache,
        Path(),
        heads=config.heads,
        epochs=epochs,
        folds=others,
        seeds=1,
        seed=seed,
        choose_by=config.choose_by,
        space=config.space,
    )
    found = nested(asked, bases, epochs, device)
    return found.log_probs.numpy(), found.settings, found.space


def _groups_of(against: OutOfFold, config: CvConfig, material: Material) -> Groups:
    """Those of `against` where that joined near-duplicates, too: features of another backbone find others."""
    theirs = Groups(dict(zip(against.digests.tolist(), against.groups.tolist(), strict=True)))
    if theirs.of.keys() != {image.digest for image in material.images}:
        return material.groups
    alone, _ = groups_of(material.trainset.cache, material.trainset.index, config.group_by, False)
    joined = len(np.unique(against.groups)) < len(np.unique(alone.numbers(material.images)))
    return theirs if joined else material.groups


def _search(config: CvConfig, material: Material, space: Space) -> dict[str, Any]:
    """What makes the sweep in each fold the procedure that it is, as the journal of a sweep has them."""
    return {
        "choose_by": config.choose_by,
        "space": space.describe(),
        "passes": material.trainset.passes,
        "group_near_duplicates": config.group_near_duplicates,
    }


def _folds(config: CvConfig, material: Material, repeat: int) -> Tensor:
    if not config.leave_one_group_out:
        return material.folds(config.folds, repeat)
    folds = folds_of_groups(material.images, material.groups)
    if int(folds.max()) + 1 == len({image.digest for image in material.images}):
        raise RunError("no two images are of one group: name the groups with --group-by, or use --folds")
    if not 2 <= (count := int(folds.max()) + 1) <= MOST_FOLDS:
        raise RunError(f"{counted(count, 'group')}, expected 2 to {MOST_FOLDS}: use --folds")
    return folds


def _result(found: OutOfFold, material: Material, epochs: int) -> CvResult:
    """What the predictions come to."""
    accuracy, first = found.accuracies(), torch.from_numpy(found.log_probs[0])
    folds = [Fold(repeat + 1, fold + 1, images, right) for repeat, fold, images, right in found.of_each_fold()]
    top1 = accuracy["top1"]
    return CvResult(
        set=material.trainset.index.name,
        images=len(found.labels),
        groups=len(np.unique(found.groups)),
        folds=folds,
        accuracy=top1.value,
        interval=(top1.low, top1.high),
        mean_per_class=accuracy["mean_per_class"].value,
        classes=found.of_each_class(),
        ece=error_of(first, torch.from_numpy(found.labels)),
        ece_floor=floor_of(first),
        basis=material.settings.basis if found.settings else "",
        passes=material.trainset.passes,
        epochs=epochs,
    )
