"""A labelling session: the labels of a set at this moment, and what is fitted on them."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.labels import EXCLUDING, LabelJournal, Verdict
from pipeline.errors import LabelError
from pipeline.labelling.contents import Contents
from pipeline.labelling.pool import Pool
from pipeline.labelling.retraining import Labels, Retrainer
from pipeline.labelling.ridge import NO_LABEL, OutOfFoldRidge

RANDOM_SHARE = 0.2  # of the unlabelled images, where the set has no validation images: they are for validation


class Session:
    """The state of N contents of a set and what follows from it. Every method may be called from any thread.

    Attributes:
        index: the set as it was extracted.
        contents: its images and rows.
        journal: the verdicts.
        classes: names, in the order of the head's outputs; new ones come last.
        retrainer: trains the head.
        lock: held while the state is read or changed.
    """

    def __init__(self, index: SetIndex, contents: Contents, journal: LabelJournal) -> None:
        self.index, self.contents, self.journal = index, contents, journal
        self.lock = threading.RLock()
        self._place = {image.digest: place for place, image in enumerate(contents.images)}
        count = len(contents.images)
        self.classes = sorted({*index.classes, *(v.new for v in journal.verdicts.values())} - {""})
        self._labels = torch.full((count,), NO_LABEL)
        self.splits = [image.split for image in contents.images]
        self._excluded = torch.zeros(count, dtype=torch.bool)
        self.decided = torch.zeros(count, dtype=torch.bool)
        for place in range(count):
            self._take_over(place)
        self._groups = contents.duplicates.groups.names(contents.images)
        self.order = torch.tensor(sorted(range(count), key=self._groups.__getitem__))  # a random one, groups together
        self.ridge = None if contents.refusal else self._new_ridge(contents)
        self.contents = replace(contents, rows=torch.empty(0, 0))  # the ridge has them
        trained = [place for place in self.order.tolist() if self.splits[place] != "valid" and place not in self.random]
        self.pool = Pool(self.contents.units, torch.tensor(trained, dtype=torch.int64))
        self.pool.cover(self.labels().train)
        self.retrainer = Retrainer(contents.reduced, contents.groups(), self.labels)

    def _new_ridge(self, contents: Contents) -> OutOfFoldRidge:
        return OutOfFoldRidge(contents.rows, self.fitted(), contents.folds, len(self.classes))

    def fitted(self) -> Tensor:
        """Labels (N,) that say something of a class."""
        return torch.where(self._excluded, NO_LABEL, self._labels)

    def labelled(self) -> Tensor:
        """Places of the images with a label."""
        return (self.fitted() != NO_LABEL).nonzero().flatten()

    def waiting(self) -> Tensor:
        """Places of the images without a label or verdict."""
        without = torch.tensor([split == UNLABELLED for split in self.splits])
        return (without & ~self.decided).nonzero().flatten()

    @cached_property
    def random(self) -> frozenset[int]:
        """Places of the unlabelled images that are for validation, drawn by their contents, with their near-duplicates.

        The same ones when images are added. None where the set has validation images of its own. The others are
        labelled in an order that a head chose, and would say little about its accuracy on images that nobody chose.
        """
        images = self.contents.images
        if any(image.split == "valid" for image in images):
            return frozenset()
        every = (place for place, image in enumerate(images) if image.split == UNLABELLED)
        return frozenset(place for place in every if _is_drawn(self._groups[place]))

    def _take_over(self, place: int) -> None:
        """Have an image's state follow from its verdict in force, or, without one, from the data."""
        image = self.contents.images[place]
        verdict = self.journal.holding(image)
        label, split = image.label, image.split
        if verdict:
            label, split = verdict.new, verdict.split if split == UNLABELLED else split
        if label and label not in self.classes:
            self.classes.append(label)
        self._labels[place] = self.classes.index(label) if label else NO_LABEL
        self.splits[place] = split
        self._excluded[place] = verdict is not None and verdict.verdict in EXCLUDING
        self.decided[place] = verdict is not None

    def record(self, place: int) -> ImageRecord:
        """The image as it is labelled now."""
        label = int(self._labels[place])
        name = "" if label == NO_LABEL else self.classes[label]
        return replace(self.contents.images[place], label=name, split=self.splits[place])

    def verdict(self, digests: Sequence[str], verdict: str, label: str, queue: str, rank: int) -> int:
        """Record a decision on some images and rank all queues again; the number of its last line in the journal.

        LabelError for an image that is not in the set, CacheError where the journal cannot be written.
        """
        with self.lock:
            places = [self.known(digest) for digest in dict.fromkeys(digests)]
            random = queue == "label" and self.random.issuperset(places)
            joins = "valid" if random else "train"
            shown = "random" if random else queue
            number = self.journal.record([self.record(p) for p in places], verdict, label, shown, rank, joins)
            self._changed(places)
            return number

    def undo(self) -> list[Verdict]:
        """Take the last decision back; LabelError where there is none."""
        with self.lock:
            if not (undone := self.journal.undo()):
                raise LabelError("there is no verdict to take back")
            self._changed([self._place[one.digest] for one in undone if one.digest in self._place])
            return undone

    def has(self, digest: str) -> bool:
        """Whether there is an image of this digest."""
        return digest in self._place

    def known(self, digest: str) -> int:
        """The place of an image; LabelError where there is none."""
        if digest not in self._place:
            raise LabelError(f"no image of set {self.index.name!r} has the digest {digest[:16]!r}: load the page again")
        return self._place[digest]

    def _changed(self, places: Sequence[int]) -> None:
        """Follow the journal for the images at these places."""
        before = self.fitted()
        for place in places:
            self._take_over(place)
        after = self.fitted()
        moved = torch.tensor([place for place in places if before[place] != after[place]], dtype=torch.int64)
        if not len(moved):
            return
        if self.ridge is not None:
            for label in after[moved].unique().tolist():
                self.ridge.relabel(moved[after[moved] == label], label)
        trained = moved[[self.splits[place] == "train" for place in moved.tolist()]]
        if (after[moved] == NO_LABEL).any():
            self.pool.cover(self.labels().train)
        else:
            self.pool.add(trained)
        self.retrainer.changed()

    def labels(self) -> Labels:
        """What a head is trained on now."""
        with self.lock:
            labels, places = self.fitted(), self.labelled()
            train = torch.tensor([self.splits[place] == "train" for place in places.tolist()], dtype=torch.bool)
            given = self.decided[places] & ~torch.isin(labels[places], labels[places[train]])
            train |= given  # as the journal has it: of a class that no training image has
            train, valid = places[train], places[~train]
            before = labels[valid].clone()
            for row, place in enumerate(valid.tolist()):
                if (image := self.contents.images[place]).label in self.classes:
                    before[row] = self.classes.index(image.label)
            return Labels(labels, train, valid, len(self.classes), before, len(self.journal.chains))


def _is_drawn(group: str) -> bool:
    """Whether the images of a group are among the random share."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) < RANDOM_SHARE * (1 << 32)
