"""What heads are trained on: a set of a cache, looked over before any training."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cache import layout
from cache.errors import MissingRows
from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.bases.reduced import fitted_among, sees_labels
from pipeline.config import REDUCED_BASIS, HeadSettings
from pipeline.console import counted
from pipeline.errors import DataChanged, RunError
from pipeline.inputs.images import count_leaks, stale_files
from pipeline.inputs.listing import shown

logger = logging.getLogger("headgraft.bases")


@dataclass(frozen=True)
class TrainingSet:
    """A set of `cache`, the views of its training images, and how many identical images cross splits or labels.

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
    def default_basis(self) -> str:
        """What a head is trained in where nothing else is asked for."""
        return REDUCED_BASIS if self.cache.reduction else HeadSettings.basis

    @property
    def recipe(self) -> str:
        """Digest of the recipe of the augmented passes; "" without any."""
        augmentation = self.cache.manifest.augmentation
        return augmentation.digest if augmentation and self.passes else ""

    @classmethod
    def open(cls, cache: Path, name: str | None, passes: int | None) -> "TrainingSet":
        """Set `name` (None: the only one) with `passes` (None: all there are).

        Raises RunError where it has one class, no validation images, its folder no longer agrees with the index, or the
        labels of its validation or test images took part in reducing the cache; MissingRows where it has fewer passes.
        """
        opened = FeatureCache.open(cache)
        index = opened.index(name)
        if len(index.classes) < 2:
            raise RunError(
                f"set {index.name!r} has one class, {index.classes[0]!r}, expected two or more: "
                "add images of another class, and run extract again"
            )
        if not index.split("train"):
            raise RunError(
                f"set {index.name!r} has no training images: fix those that could not be decoded, and extract again"
            )
        if len({image.key for image in index.split("train")}) < 2:
            raise RunError(
                f"the training images of set {index.name!r} are one image, expected at least one of each class: "
                "add other images, and run extract again"
            )
        if not index.split("valid"):
            raise RunError(
                f"set {index.name!r} has no validation images: add a valid/ folder next to train/, or, where there are "
                "no split folders, more images of a class, and run extract again"
            )
        _refuse_stale(index)
        chosen = _passes(passes, opened, index)
        leaks = count_leaks(index)
        if any(leaks.values()):
            counts = f"{leaks['across_splits']} across splits, {leaks['two_labels']} with two labels"
            logger.warning(f"identical images: {counts}; headgraft cache info --duplicates lists them")
        if opened.reduction:
            leaks["in_reduction"] = _refuse_seen_labels(opened, index)
        found = cls(opened, index, chosen, leaks)
        if absent := found.classes_without_validation:
            count = f"{len(absent)} of {counted(len(index.classes), 'class')} without validation images"
            logger.warning(f"{count}, for which no head is chosen: {shown([repr(name) for name in absent])}")
        return found


def _passes(asked: int | None, cache: FeatureCache, index: SetIndex) -> int:
    """As many augmented passes as were asked for; else all there are, or were: one that is lost is an error."""
    if asked is not None and asked <= index.passes:
        return asked
    known = max(index.passes, cache.complete_passes(index))
    if asked is not None and asked > known:
        raise MissingRows(
            f"set {index.name!r} of {cache.path} has {counted(known, 'augmented pass')}, {asked} asked for: "
            f"run extract with --passes {asked}, or train with --passes {known}"
        )
    return known if asked is None else asked


def _refuse_seen_labels(cache: FeatureCache, index: SetIndex) -> int:
    """How many validation and test images the reduction was fitted on: said; refused where their labels took part.

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
    changes = stale_files(index)
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:5]) + ("\n  …" if len(changes) > 5 else "")
        raise DataChanged(
            f"{index.data} is not as it was extracted, {len(changes)} files differ:\n{shown}\n"
            f"Run extract again (--set {index.name}): only new contents are computed."
        )
