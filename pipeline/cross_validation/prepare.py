"""What folds are made of: images of a set with their groups, and their rows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.bases.reduced import unchecked
from pipeline.bases.trainset import TrainingSet
from pipeline.config.folds import FoldsConfig
from pipeline.config.heads import HeadSettings
from pipeline.console import counted
from pipeline.cross_validation.rows import ImageRows
from pipeline.duplicates.near_duplicates import MOST_COMPARED, NearDuplicates, near_duplicates
from pipeline.errors import RunError
from pipeline.inputs.splitting import grouped_by
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.statistics.folds import stratified_folds
from pipeline.statistics.groups import Groups, join

logger = logging.getLogger("headgraft.cross_validation")

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """The training and validation images of a set.

    Attributes:
        trainset: the set.
        images: in the order of the rows.
        groups: of images that are no independent evidence.
        near: near-duplicates, where they are groups.
        rows: of the images, in the regions of the basis.
        settings: of the head, its basis named.
    """

    trainset: TrainingSet
    images: Sequence[ImageRecord]
    groups: Groups
    near: NearDuplicates | None
    rows: ImageRows
    settings: HeadSettings

    @classmethod
    def of(cls, config: FoldsConfig) -> "Material":
        """Read what a command asks for.

        RunError where the set is too small, where its labels made the rows of a reduced cache, or where rows take more
        than the memory allowed.
        """
        torch.set_num_threads(available_cpus())
        trainset = TrainingSet.open(config.cache, config.set, config.passes, validated=False)
        if reason := unchecked(trainset.cache, trainset.index):
            raise RunError(reason)
        settings = replace(config.settings, basis=config.basis or trainset.default_basis)
        images = trainset.index.split("train", "valid")
        groups, near = groups_of(trainset.cache, trainset.index, config.group_by, config.group_near_duplicates)
        rows = ImageRows.load(trainset, images, settings.basis, allowed_bytes(config.memory))
        return cls(trainset, images, groups, near, rows, settings)

    def folds(self, count: int, repeat: int = 0) -> Tensor:
        """The fold of each image (N,), every one of which has images; RunError where there are too few groups."""
        return folds_of(self.trainset.index, self.images, self.groups, count, repeat)


def folds_of(index: SetIndex, images: Sequence[ImageRecord], groups: Groups, count: int, repeat: int = 0) -> Tensor:
    """As `stratified_folds`; RunError where there are too few groups for every fold to have one."""
    there = len(set(groups.numbers(images).tolist()))
    if there < count:
        what = counted(there, "group") + " of images" if there < len(images) else counted(there, "image")
        raise RunError(f"{what} cannot make {count} folds: choose fewer --folds")
    return stratified_folds(images, torch.from_numpy(index.labels(images)), groups, count, repeat)


def unseen_images(labels: Numbers, groups: Numbers) -> int:
    """How many images (N,) are of a class that has one group only: said, since they lower the accuracy.

    RunError where each class is one group.
    """
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    alone = np.bincount(pairs[0], minlength=int(labels.max()) + 1) == 1
    unseen = int(alone[labels].sum())
    if unseen == len(labels):
        raise RunError(
            "each class is one group, so that a head that predicts an image knows nothing of its class: correct "
            "--group-by, or the groups of the set"
        )
    if unseen:
        logger.warning(
            f"{counted(int(alone.sum()), 'class')} of one group each: their {counted(unseen, 'image')} cannot be "
            "predicted by a head that did not see that group, and count as wrong"
        )
    return unseen


def near_duplicates_across(
    cache: FeatureCache,
    index: SetIndex,
    images: Sequence[ImageRecord],
    folds: Tensor,
    near: NearDuplicates | None = None,
) -> int | None:
    """How many images have a near-duplicate in another fold: said, since their heads may have seen the same scene.

    `near` are those of the set, if known. None of too many images to compare.
    """
    if near is None and len(index.images) <= MOST_COMPARED:
        near = near_duplicates(cache, index)
    if near is None:
        return None
    fold_of = dict(zip((image.path for image in images), folds.tolist(), strict=True))
    apart = [
        (pair.a, pair.b)
        for pair in near.pairs
        if pair.a in fold_of and pair.b in fold_of and fold_of[pair.a] != fold_of[pair.b]
    ]
    if count := len({path for pair in apart for path in pair}):
        logger.warning(
            f"{counted(count, 'image')} of {len(images)} with a near-duplicate in another fold: if these show the same "
            "scene, the accuracy may be too high; --group-near-duplicates or groups (--group-by) keep them in one fold"
        )
    return count


def groups_of(
    cache: FeatureCache, index: SetIndex, by: str | None, with_near_duplicates: bool
) -> tuple[Groups, NearDuplicates | None]:
    """Of the set's images: as given or by path, and if asked for with near-duplicates, which are the second."""
    if by:
        index = replace(index, images=tuple(grouped_by(index.images, by)))
    if not with_near_duplicates:
        return join(index.images), None
    near = near_duplicates(cache, index)
    logger.info(f"near-duplicates: {counted(len(near.pairs), 'pair')}; {near.threshold}")
    return near.groups, near
