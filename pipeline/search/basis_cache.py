"""The rows of a set in several bases, for a sweep: as many of them in memory as fit."""

import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cache.index import ImageRecord
from pipeline.bases.basis import Basis
from pipeline.bases.data import TrainingData
from pipeline.bases.fit import Memo, start_basis
from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.basis_name import BasisName
from pipeline.config.heads import SweepConfig
from pipeline.console import size
from pipeline.cross_validation.prepare import folds_of, groups_of
from pipeline.cross_validation.rows import ImageRows
from pipeline.errors import RunError
from pipeline.statistics.groups import Groups, join


@dataclass(frozen=True)
class Split:
    """Images to train heads on, and images to score them on.

    Attributes:
        basis: fitted on the former.
        data: the rows of both in it.
        places: of the scored images among all that are (n,), in the order of `data.validation()`.
    """

    basis: Basis
    data: TrainingData
    places: Tensor


@dataclass
class BasisCache:
    """Rows of `trainset` in each basis that is asked for; `memory` bytes may be held. `seconds` is what they took."""

    trainset: TrainingSet
    memory: int
    seconds: float = 0.0
    _held: dict[str, tuple[Split, ...]] = field(default_factory=dict, repr=False)
    _memo: Memo = field(default_factory=Memo, repr=False)

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        """Those that heads are scored on, V."""
        return self.trainset.index.split("valid")

    @property
    def groups(self) -> Groups:
        """Which of them are no independent evidence."""
        return join(self.images)

    @property
    def trained_images(self) -> int:
        """How many a head is trained on."""
        return len(self.trainset.index.split("train"))

    @property
    def most_directions(self) -> int:
        """The most principal directions that rows a head is trained on can have in the regions of the default basis."""
        trainset = self.trainset
        width = start_basis(trainset.default_basis, trainset.layout).out_features(trainset.cache.in_features)
        return min(self.trained_images * len(trainset.views), width)

    def splits(self, name: str) -> tuple[Split, ...]:
        """Rows in basis `name`; each image of `images` is scored in one of the splits."""
        if name not in self._held:
            start = time.perf_counter()
            self._make_room()
            self._held[name] = self._load(name)
            self.seconds += time.perf_counter() - start
        self._held[name] = self._held.pop(name)  # the one used last goes last
        return self._held[name]

    def _load(self, name: str) -> tuple[Split, ...]:
        basis, data = load_data(self.trainset, name, self.memory, self._memo)
        return (Split(basis, data, data.valid_order),)

    def _make_room(self) -> None:
        """Let go of what can be made again, then of what was used longest ago, until one more of the largest fits."""
        while self._held and self._bytes() + max(map(_bytes_of, self._held.values())) > self.memory:
            if not self._forget():
                del self._held[next(iter(self._held))]

    def _forget(self) -> bool:
        """Whether there was something that all bases share, and no longer is."""
        there = self._memo.bytes > 0
        self._memo = Memo()
        return there

    def _bytes(self) -> int:
        return self._memo.bytes + sum(map(_bytes_of, self._held.values()))


@dataclass
class FoldedBasisCache(BasisCache):
    """The same for heads that are scored on training and validation images, each by a head of other folds.

    `places` (V,) are those of its images among training and validation images, `folds` (V,) the fold of each; heads and
    bases that score it are of the other folds. No group of `given_groups` is in two folds.
    """

    places: Tensor = field(kw_only=True)
    folds: Tensor = field(kw_only=True)
    given_groups: Groups = field(kw_only=True)
    _rows: dict[str, ImageRows] = field(default_factory=dict, repr=False)

    @property
    def images(self) -> tuple[ImageRecord, ...]:
        """Those that heads are scored on, V."""
        every = self.trainset.index.split("train", "valid")
        return tuple(every[place] for place in self.places.tolist())

    @property
    def groups(self) -> Groups:
        """Which of them are no independent evidence."""
        return self.given_groups

    def without(self, fold: int) -> "FoldedBasisCache":
        """Of the images of the other folds alone."""
        others = self.folds != fold
        folds = self.folds[others].unique(return_inverse=True)[1]
        return replace(self, places=self.places[others], folds=folds, seconds=0.0, _held={})

    @property
    def trained_images(self) -> int:
        """How many a head is trained on."""
        return round(len(self.folds) * (1 - 1 / (int(self.folds.max()) + 1)))

    def rows(self, name: str) -> ImageRows:
        """All of them in the regions of basis `name`."""
        start = start_basis(name, self.trainset.layout)
        regions = BasisName.parse(name).regions if start.stages else ""
        if regions not in self._rows:
            self._rows.clear()  # in place: caches of parts of the images have the same
            every = self.trainset.index.split("train", "valid")
            self._rows[regions] = ImageRows.load(self.trainset, every, name, self.memory)
        rows = self._rows[regions]
        return replace(rows, start=start, views=rows.views[self.places], labels=rows.labels[self.places])

    def _load(self, name: str) -> tuple[Split, ...]:
        rows, every, found = self.rows(name), torch.arange(len(self.folds)), list[Split]()
        sums = rows.sums(every)
        for fold in range(int(self.folds.max()) + 1):
            trained, scored = every[self.folds != fold], every[self.folds == fold]
            basis = rows.basis_without(sums, scored)
            found.append(Split(basis, rows.data(basis, trained, scored), scored))
            needed = found[0].data.bytes * (int(self.folds.max()) + 1)
            if needed > self.memory:
                raise RunError(
                    f"rows of the folds in basis {name} take {size(needed)}, {size(self.memory)} are allowed: choose "
                    "fewer --folds or --passes, or narrower bases in a --space file"
                )
        return tuple(found)

    def _forget(self) -> bool:
        there = bool(self._rows)
        self._rows.clear()
        return there

    def _bytes(self) -> int:
        return sum(rows.rows.nbytes for rows in self._rows.values()) + sum(map(_bytes_of, self._held.values()))


def bases_of(config: SweepConfig, trainset: TrainingSet, memory: int) -> BasisCache:
    """For heads that are scored on validation images or, with `--folds`, out of fold."""
    if not config.folds:
        return BasisCache(trainset, memory)
    index = trainset.index
    images = index.split("train", "valid")
    groups, _ = groups_of(trainset.cache, index, None, config.group_near_duplicates)
    folds = folds_of(index, images, groups, config.folds)
    return FoldedBasisCache(trainset, memory, places=torch.arange(len(images)), folds=folds, given_groups=groups)


def _bytes_of(splits: tuple[Split, ...]) -> int:
    return sum(split.data.bytes for split in splits)
