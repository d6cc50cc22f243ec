"""A labelling session: the labels of a set at this moment, and what is fitted on them."""

import hashlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.labels import EXCLUDING, LabelJournal, Verdict, VerdictKind, labels_of
from pipeline.errors import LabelError
from pipeline.labelling.contents import Contents
from pipeline.labelling.pool import Pool
from pipeline.labelling.retraining import Labels, Retrainer
from pipeline.labelling.ridge import NO_LABEL, OutOfFoldRidge

RANDOM_SHARE = 0.2  # of the unlabelled images, where the set has no validation images: drawn for validation


class Session:
    """The state of N contents of a set and what follows from it. Every method may be called from any thread.

    Attributes:
        index: the set as it was extracted.
        contents: its images and rows.
        journal: the verdicts.
        classes: names, in the order of the head's outputs; new ones come last.
        retrainer: trains the head.
        drawn: places of the unlabelled images that are for validation.
        lock: held while the state is read or changed.
    """

    def __init__(self, index: SetIndex, contents: Contents, journal: LabelJournal) -> None:
        self.index, self.journal = index, journal
        self.lock = threading.RLock()
        self._place = {image.digest: place for place, image in enumerate(contents.images)}
        self._in_data = labels_of(index.images)
        count = len(contents.images)
        self.classes = list(index.classes)
        self._labels = torch.full((count,), NO_LABEL)
        self.splits = [image.split for image in contents.images]
        self._excluded = torch.zeros(count, dtype=torch.bool)
        self.decided = torch.zeros(count, dtype=torch.bool)
        self.contents = contents
        for place in range(count):
            self._take_over(place)
        self._groups = contents.duplicates.groups.names(contents.images)
        self.order = torch.tensor(sorted(range(count), key=self._groups.__getitem__))  # a random one, groups together
        self.drawn = self._draw()
        self.ridge, refusal = self._new_ridge(contents)
        self.contents = replace(contents, rows=torch.empty(0, 0), refusal=refusal)  # the ridge has the rows
        trained = [place for place in self.order.tolist() if self.splits[place] != "valid" and place not in self.drawn]
        self.pool = Pool(self.contents.units, torch.tensor(trained, dtype=torch.int64))
        self.pool.cover(self.labels().train)
        self.retrainer = Retrainer(contents.reduced, contents.groups(), self.labels)

    def _new_ridge(self, contents: Contents) -> tuple[OutOfFoldRidge | None, str]:
        """What ranks possible label errors, or why there is nothing."""
        if contents.refusal:
            return None, contents.refusal
        try:
            return OutOfFoldRidge(contents.rows, self.fitted(), contents.folds, len(self.classes)), ""
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None, "Labels cannot be checked: there are too few images that differ, or all are of one group."

    def _draw(self) -> frozenset[int]:
        """Places of the unlabelled images that are for validation, drawn by their contents, with their near-duplicates.

        None where the set has validation images of its own. The others are labelled in an order that a head chose, and
        would say little about its accuracy on images that nobody chose. Those of a group that has a labelled image are
        where that one is.
        """
        images, sides = self.contents.images, dict[str, str]()
        if self.index.split("valid"):
            return frozenset()
        for place, group in enumerate(self._groups):
            if (side := self.splits[place]) != UNLABELLED and sides.get(group) != "train":
                sides[group] = side
        every = (place for place, image in enumerate(images) if image.split == UNLABELLED)
        return frozenset(p for p in every if sides.get(group := self._groups[p], _side(group)) == "valid")

    def fitted(self) -> Tensor:
        """Labels (N,) that say something of a class."""
        return torch.where(self._excluded, NO_LABEL, self._labels)

    def labelled(self) -> Tensor:
        """Places of the images with a label."""
        return (self.fitted() != NO_LABEL).nonzero().flatten()

    def unlabelled(self) -> Tensor:
        """Whether each image (N,) has no label, and is not excluded."""
        return (self._labels == NO_LABEL) & ~self._excluded

    def waiting(self) -> Tensor:
        """Places of the images without a label or verdict."""
        return (self.unlabelled() & ~self.decided).nonzero().flatten()

    def holding(self, place: int) -> Verdict | None:
        """The verdict in force on an image that the data does not contradict."""
        digest = self.contents.images[place].digest
        return self.journal.holding(digest, self._in_data[digest])

    def verdicts(self) -> list[Verdict]:
        """Those that hold, in their order."""
        found = (self.holding(place) for place in self.decided.nonzero().flatten().tolist())
        return sorted((one for one in found if one), key=lambda one: one.number)

    def _take_over(self, place: int) -> None:
        """Have an image's state follow from its verdict in force, or, without one, from the data."""
        image, verdict = self.contents.images[place], self.holding(place)
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

    def verdict(self, digests: Sequence[str], verdict: VerdictKind, label: str, queue: str, rank: int) -> int:
        """Record a decision on some images and rank all queues again; the number of its last line in the journal.

        LabelError for an image that is not in the set, CacheError where the journal cannot be written.
        """
        with self.lock:
            places = [self.known(digest) for digest in dict.fromkeys(digests)]
            drawn = [place for place in places if place in self.drawn]
            images, shown = [self.record(place) for place in places], "random" if len(drawn) == len(places) else queue
            of_drawn = [self.contents.images[place].digest for place in drawn]
            number = self.journal.record(images, verdict, label, shown, rank, of_drawn)
            self._changed(places)
            return number

    def undo(self, number: int | None) -> list[Verdict]:
        """Take the last decision back; LabelError where there is none, or `number` is not of a line of it."""
        with self.lock:
            last = self.journal.last(self._place)
            if not last:
                raise LabelError("there is no verdict to take back")
            if number is not None and number not in [one.number for one in last]:
                raise LabelError(f"the last decision is no longer number {number}: somebody else decided since")
            undone = self.journal.undo(self._place)
            self._changed([self._place[one.digest] for one in undone])
            return undone

    @property
    def digests(self) -> Collection[str]:
        """Of all images."""
        return self._place.keys()

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
        if self.ridge is not None and len(moved):
            for label in after[moved].unique().tolist():
                self.ridge.relabel(moved[after[moved] == label], label)
        if (after[moved] == NO_LABEL).any():
            self.pool.cover(self.labels().train)
        else:
            self.pool.add(moved[[self.splits[place] == "train" for place in moved.tolist()]])
        self.retrainer.changed()

    def labels(self) -> Labels:
        """What a head is trained on now."""
        with self.lock:
            labels, places, images = self.fitted(), self.labelled(), self.contents.images
            train = torch.tensor([self.splits[place] == "train" for place in places.tolist()], dtype=torch.bool)
            given = self.decided[places] & ~torch.isin(labels[places], labels[places[train]])
            train |= given  # as the journal has it: of a class that no training image has
            numbers = {name: number for number, name in enumerate(self.classes)}
            before = {place: numbers[image.label] for place, image in enumerate(images) if image.split == "valid"}
            return Labels(labels, places[train], places[~train], len(self.classes), before, len(self.verdicts()))


def _side(group: str) -> str:
    """Where the images of a group go that has no labelled image."""
    drawn = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) < RANDOM_SHARE * (1 << 32)
    return "valid" if drawn else "train"
