"""What heads are trained on: a set of a cache, checked before any training."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cache import layout
from cache.errors import MissingRows
from cache.index import UNLABELLED, SetIndex
from cache.keys import Digests, pack_digests
from cache.store import FeatureCache
from pipeline.bases.reduced import fitted_among, sees_labels
from pipeline.config.heads import REDUCED_BASIS
from pipeline.console import counted
from pipeline.errors import DataChanged, RunError
from pipeline.inputs.folders import shown
from pipeline.inputs.images import stale_files
from pipeline.inputs.splitting import count_leaks
from pipeline.row_layout import RowLayout

logger = logging.getLogger("headgraft.bases")

FEWEST = 3  # training images of a class, under which training says so


@dataclass(frozen=True)
class TrainingSet:
    """A set of `cache`, the views of its training images, and how many identical images cross splits or labels.

    `index` has no unlabelled images.
    Of a reduced cache, `leaks` also says how many validation and test images its basis was fitted on (`in_reduction`).
    """

    cache: FeatureCache
    index: SetIndex
    passes: int
    leaks: dict[str, int]

    @property
    def views(self) -> tuple[str, ...]:
        """Of each training image, the clean one first."""
        return tuple(layout.pass_view(number) for number in range(self.passes + 1))

    @property
    def classes_without_validation(self) -> list[str]:
        """Classes that have no validation image: no head is chosen for them."""
        validated = {image.label for image in self.index.split("valid")}
        return [name for name in self.index.classes if name not in validated]

    @property
    def small_classes(self) -> dict[str, int]:
        """Classes with fewer than `FEWEST` different training images, but one at least, and how many these have."""
        contents = {(image.label, image.digest) for image in self.index.split("train")}
        counts = Counter(label for label, _ in contents)
        return {name: counts[name] for name in self.index.classes if 0 < counts[name] < FEWEST}

    @property
    def layout(self) -> RowLayout:
        """How its rows lie."""
        return RowLayout.of(self.cache.row_shape, self.cache.manifest.base.layer)

    @property
    def default_basis(self) -> str:
        """What a head is trained in where nothing else is asked for."""
        return REDUCED_BASIS if self.cache.reduction else self.layout.default_basis

    def labels(self, split: str) -> Tensor:
        """Places of the labels of a split's images in the classes, (N,)."""
        return torch.from_numpy(self.index.labels(self.index.split(split)))

    def digests(self, split: str) -> Digests:
        """Digests of a split's images, (N, 32)."""
        return pack_digests(image.digest for image in self.index.split(split))

    @property
    def recipe(self) -> str:
        """Digest of the recipe of the augmented passes; "" without any."""
        augmentation = self.cache.manifest.augmentation
        return augmentation.digest if augmentation and self.passes else ""

    @classmethod
    def open(cls, cache: Path, name: str | None, passes: int | None, validated: bool = True) -> "TrainingSet":
        """Set `name` (None: the only one) with `passes` (None: all there are), `validated` by its validation images.

        Raises RunError where it has no labels or one class, no validation images, its folder no longer agrees with the
        index, or the labels of its validation or test images took part in reducing the cache; MissingRows where it has
        fewer passes.
        """
        opened = FeatureCache.open(cache)
        index = opened.index(name).labelled
        if not index.classes:
            raise RunError(
                f"set {index.name!r} has no labels, expected images of two classes or more: label some with "
                f"headgraft label --cache {cache}"
            )
        _refuse_unusable(index, validated)
        used, extracted = {image.path for image in index.images}, opened.extracted(index.name)
        labelled = (image for image in extracted.images if image.split != UNLABELLED or image.path in used)
        _refuse_stale(replace(extracted, images=tuple(labelled)))
        chosen = opened.passes(index, passes)
        _refuse_without_passes(opened, index, extracted, chosen)
        leaks = count_leaks(index)
        if leaks["across_splits"] or leaks["two_labels"]:
            counts = f"{leaks['across_splits']} across splits, {leaks['two_labels']} with two labels"
            logger.warning(f"identical images: {counts}; headgraft cache info --duplicates lists them")
        if validated and (cut := leaks.get("groups")):
            logger.warning(f"groups in more than one split: {cut}; accuracies will be too high")
        if opened.reduction:
            leaks["in_reduction"] = refuse_seen_labels(opened, index)
        found = cls(opened, index, chosen, leaks)
        trained = {image.label for image in index.split("train")}
        if untrained := [name for name in index.classes if name not in trained]:
            logger.warning(f"no training image has the class {shown(untrained)}: no head can predict it")
        if few := found.small_classes:
            counts = ", ".join(f"{name!r} ({count})" for name, count in list(few.items())[:5])
            more = ", …" if len(few) > 5 else ""
            logger.warning(
                f"{counted(len(few), 'class')} with fewer than {FEWEST} training images, expected more for a "
                f"head to learn them: {counts}{more}"
            )
        if validated and (absent := found.classes_without_validation):
            count = f"{len(absent)} of {counted(len(index.classes), 'class')} without validation images"
            logger.warning(f"{count}, for which no head is chosen: {shown([repr(name) for name in absent])}")
        return found


def _refuse_unusable(index: SetIndex, validated: bool) -> None:
    train = index.split("train")
    wrong = ""
    if len(index.classes) < 2:
        wrong = f"has one class, {index.classes[0]!r}, expected two or more: add images of another class"
    elif not train:
        wrong = "has no training images: fix those that could not be decoded"
    elif len({image.key for image in train}) < 2:
        wrong = "has training images that are one image, expected at least one of each class: add other images"
    elif validated and not index.split("valid"):
        csv = index.data != index.root
        add = "name some valid in the column split" if csv else "add a valid/ folder next to train/"
        more = "" if csv else ", or, where there are no split folders, more images of a class"
        wrong = f"has no validation images: use sweep --folds 5 or cv, which need none, or {add}{more}"
    if wrong:
        raise RunError(f"set {index.name!r} {wrong}, and run extract again")


def _refuse_without_passes(cache: FeatureCache, index: SetIndex, extracted: SetIndex, passes: int) -> None:
    """MissingRows where images that were labelled by hand have no rows of the passes."""
    without = {image.path for image in extracted.images if image.split != "train"}
    given = [image for image in index.split("train") if image.path in without]
    if given and (complete := cache.complete_passes(index)) < passes:
        raise MissingRows(
            f"{counted(len(given), 'image')} of set {index.name!r} got a label by hand and have no augmented passes: "
            f"run extract with --passes {passes} again, or ask for --passes {complete}"
        )


def refuse_seen_labels(cache: FeatureCache, index: SetIndex) -> int:
    """How many validation and test images the reduction was fitted on: logged; refused where their labels took part.

    Images that are also in train are leaks of the set itself, counted as such, and not here.
    """
    trained = {image.digest for image in index.split("train")}
    if not (seen := fitted_among(cache, (image for image in index.images if image.digest not in trained))):
        return 0
    assert cache.reduction is not None
    found = (
        f"{cache.path} was reduced by {cache.reduction.basis}, which was fitted on {counted(seen, 'image')} that set "
        f"{index.name!r} has in valid or test"
    )
    if sees_labels(cache):
        raise RunError(
            f"{found}, and on their labels, so that accuracies would be too high: reduce the complete cache again "
            f"with --set {index.name}, or by a basis without +white and +lda"
        )
    logger.warning(f"{found}, without their labels; the run records it")
    return seen


def _refuse_stale(index: SetIndex) -> None:
    changes = stale_files(index, labelled=True)
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:5]) + ("\n  …" if len(changes) > 5 else "")
        raise DataChanged(
            f"{index.data} is not as it was extracted, {counted(len(changes), 'difference')}:\n{shown}\n"
            f"Run extract again (--set {index.name}): only new contents are computed."
        )
