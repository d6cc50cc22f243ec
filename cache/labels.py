"""Labels given by hand: an append-only journal of verdicts beside the index of a set, which they change when read.

No file of the user is touched, and no line of the journal is ever changed: what is taken back is a line of its own.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.files import append_line, read_regular, read_undamaged, write_atomically
from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.lock import claimed
from cache.records import Count, Digest, convert, fault

VerdictKind = Literal["class", "unsure", "bad", "none"]
VERDICTS: tuple[str, ...] = get_args(VerdictKind)
EXCLUDING = ("bad", "none")  # such images are neither trained on nor scored


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A line of the journal.

    Attributes:
        number: of the line, from 1.
        batch: number of the first of the lines that one decision wrote, which are taken back together.
        rest: how many lines of the same request follow.
        digest: SHA-256 of the image file, 64 hex digits: identical files have one label.
        old: label before, "" for none.
        new: label since; that before where it is unsure, "" where the image is bad or none of the classes.
        verdict: `class`, `unsure`, `bad` (image) or `none` (of these classes); `undo` takes the decision `batch` back.
        split: that the image is in since; an unlabelled one that gets a label joins train or valid.
        time: UTC, ISO 8601.
        queue: where it was shown: `fix`, `label`, `explore`, or `random`, drawn to become a validation image.
        rank: its place in that queue, from 0.
    """

    number: Count
    batch: Count
    rest: Count
    digest: Digest
    old: str
    new: str
    verdict: Literal["class", "unsure", "bad", "none", "undo"]
    split: Literal["train", "valid", "test", "unlabelled"]
    time: str
    queue: str
    rank: Count


@dataclass
class LabelJournal:
    """The verdicts of a set, in memory and in `path`.

    Attributes:
        path: of the file, which need not exist.
        lines: all that it holds, number after number.
        chains: by digest the verdicts in force, one after the other; the last decides.
        size: bytes of the file up to the last of these lines.
    """

    path: Path
    lines: list[Verdict] = field(default_factory=list)
    chains: dict[str, list[Verdict]] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def load(cls, cache: Path, name: str) -> "LabelJournal":
        """That of set `name`, without verdicts where there is no file. A decision cut short by a kill is not read.

        DamagedCache names a line that is not as it was written: labels are never dropped without a word.
        """
        path = journal_path(cache, name)
        return cls.from_bytes(read_undamaged(path, "restore it from a copy") if path.exists() else b"", path)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> "LabelJournal":
        """That of the contents of its file."""
        journal, waiting, end = cls(path), list[Verdict](), 0
        try:
            for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
                waiting.append(convert(json.loads(line), Verdict))
                journal._check(waiting[-1], len(waiting))
                end += len(line)
                if waiting[-1].rest == 0:
                    for one in waiting:
                        journal._keep(one)
                    waiting, journal.size = [], end
        except (ValueError, RecursionError) as error:
            number = len(journal.lines) + max(1, len(waiting))
            raise DamagedCache(
                f"{path}, line {number}, cannot be read ({fault(error)}), expected a verdict of headgraft label: "
                "restore the file from a copy, or correct the line"
            ) from error
        return journal

    def make_writable(self) -> None:
        """Drop a decision that a kill cut short: the next line would be joined to it."""
        if self.path.exists() and len(data := read_regular(self.path)) > self.size:
            write_atomically(self.path, data[: self.size])

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """The verdict in force of each image that has one, by digest."""
        return {digest: chain[-1] for digest, chain in self.chains.items()}

    def label_in_data(self, digest: str) -> str:
        """The label that an image with a verdict in force had before any of them."""
        return _latest(self.chains[digest])[0].old

    def record(
        self,
        images: Sequence[ImageRecord],
        verdict: VerdictKind,
        label: str,
        queue: str,
        rank: int,
        drawn: Collection[str] = (),
    ) -> int:
        """Append one decision on some images, each with its label and split of now; durable when this returns.

        Unlabelled ones that get a label join valid where their digest is `drawn`, else train. Returns the number of
        the last line. What is in force already is not written again, so that a request may be repeated. CacheError
        where it cannot be written: nothing is kept then.
        """
        added = list[Verdict]()
        for image in images:
            chain = self.chains.get(image.digest, [])
            in_data = self.label_in_data(image.digest) if chain and chain[-1].new == image.label else image.label
            new = {"class": label, "unsure": image.label or in_data}.get(verdict, "")
            if chain and (chain[-1].verdict, chain[-1].new) == (verdict, new) and chain[-1].new == image.label:
                continue
            split = image.split
            if verdict == "class" and split == UNLABELLED:
                split = "valid" if image.digest in drawn else "train"
            elif verdict == "unsure" and not new:
                split = UNLABELLED
            added.append(_line(image.digest, image.label, new, verdict, split, queue, rank))
        start = len(self.lines) + 1
        self._append([replace(one, batch=start) for one in added])
        return len(self.lines)

    def undo(self, known: Collection[str]) -> list[Verdict]:
        """Take the last decision on images of `known` digests back; returns its verdicts, [] where there is none."""
        undone = self.last(known)
        self._append([_line(o.digest, o.new, o.old, "undo", o.split, o.queue, o.rank, o.batch) for o in undone])
        return undone

    def last(self, known: Collection[str]) -> list[Verdict]:
        """The verdicts of the last decision in force on images of `known` digests."""
        latest = [chain[-1] for digest, chain in self.chains.items() if digest in known]
        batch = max((one.batch for one in latest), default=0)
        return sorted((one for one in latest if one.batch == batch), key=lambda one: one.number)

    def _append(self, added: Sequence[Verdict]) -> None:
        if not added:
            return
        if (self.path.stat().st_size if self.path.exists() else 0) != self.size:
            raise CacheError(f"{self.path} was changed by another program: start headgraft label again, which reads it")
        start, count = len(self.lines) + 1, len(added)
        added = [replace(one, number=start + n, rest=count - 1 - n) for n, one in enumerate(added)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, b"\n".join(json.dumps(asdict(one), separators=(",", ":")).encode() for one in added))
        self.size = self.path.stat().st_size
        for one in added:
            self._keep(one)

    def _check(self, line: Verdict, place: int) -> None:
        """ValueError for a line that nothing writes, the `place`-th after the lines that are kept."""
        if line.number != len(self.lines) + place:
            raise ValueError(f"it has number {line.number}, expected {len(self.lines) + place}")
        if line.verdict == "class" and not line.new:
            raise ValueError("it gives no class")
        if line.verdict in EXCLUDING and line.new:
            raise ValueError(f"it gives a class to an image that is {line.verdict}")
        if b"\0" in line.new.encode():  # half characters are a ValueError already
            raise ValueError("its class has a NUL")
        datetime.fromisoformat(line.time)

    def _keep(self, line: Verdict) -> None:
        """ValueError for an undo of what is not in force."""
        if line.verdict == "undo":
            chain = self.chains.get(line.digest, [])
            if not chain or chain[-1].batch != line.batch:
                raise ValueError(f"it takes back decision {line.batch}, which is not the last one on its image")
            chain.pop()
            if not chain:
                del self.chains[line.digest]
        else:
            self.chains.setdefault(line.digest, []).append(line)
        self.lines.append(line)

    def holding(self, digest: str, labels: Collection[str]) -> Verdict | None:
        """The verdict in force on an image whose files have these `labels` in the data.

        None where there is none, or the data gave a third label since, which then holds.
        """
        if not (chain := self.chains.get(digest)):
            return None
        latest = _latest(chain)
        known = {latest[0].old, *(one.new for one in latest)}
        return chain[-1] if known.intersection(labels) else None

    def applied(self, index: SetIndex) -> SetIndex:
        """The index as it is with these verdicts: labels, splits, classes, without the images that are excluded.

        Images that are given a class that no training image has are in train, or no head could be right about them.
        """
        if not self.chains:
            return index
        verdicts = {digest: self.holding(digest, found) for digest, found in labels_of(index.images).items()}
        images = tuple(
            image if verdict is None else _changed(image, verdict)
            for image in index.images
            if (verdict := verdicts[image.digest]) is None or verdict.verdict not in EXCLUDING
        )
        trained = {image.label for image in images if image.split == "train"}
        images = tuple(
            replace(image, split="train")
            if image.split == "valid" and verdicts[image.digest] and image.label not in trained
            else image
            for image in images
        )
        gone = {image.label for image in index.images} - {image.label for image in images}
        classes = {*index.classes, *(image.label for image in images)} - gone - {""}
        return replace(index, images=images, classes=tuple(sorted(classes)))

    def outdated(self, index: SetIndex) -> int:
        """Images whose verdict no longer holds, since the data gives them a third label."""
        found = labels_of(index.images)
        return sum(digest in found and not self.holding(digest, found[digest]) for digest in self.chains)

    def counts(self, index: SetIndex) -> Counter[str]:
        """Verdicts that hold on the images of a set as it was extracted, by kind."""
        holding = (self.holding(digest, found) for digest, found in labels_of(index.images).items())
        return Counter(one.verdict for one in holding if one)


def labels_of(images: Iterable[ImageRecord]) -> dict[str, set[str]]:
    """The labels that each content has, by its digest."""
    found: dict[str, set[str]] = {}
    for image in images:
        found.setdefault(image.digest, set()).add(image.label)
    return found


def _latest(chain: Sequence[Verdict]) -> Sequence[Verdict]:
    """The last of the verdicts that follow one another: before them, the data gave another label."""
    start = len(chain) - 1
    while start and chain[start - 1].new == chain[start].old:
        start -= 1
    return chain[start:]


def _line(digest: str, old: str, new: str, verdict: Any, split: Any, queue: str, rank: int, batch: int = 0) -> Verdict:
    """A line that has no number yet."""
    return Verdict(
        number=0,
        batch=batch,
        rest=0,
        digest=digest,
        old=old,
        new=new,
        verdict=verdict,
        split=split,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        queue=queue,
        rank=rank,
    )


def _changed(image: ImageRecord, verdict: Verdict) -> ImageRecord:
    split = verdict.split if image.split == UNLABELLED else image.split
    return replace(image, label=verdict.new, split=split)


@contextmanager
def writing_labels(cache: Path) -> Iterator[None]:
    """Hold the journals of a cache for writing; CacheBusy where another process does."""
    with claimed(cache / layout.LABEL_FOLDER, patience=0):
        yield


def copy_labels(source: Path, target: Path, name: str) -> None:
    """Give the cache at `target` the verdicts that the one at `source` has on a set."""
    if (path := journal_path(source, name)).exists():
        with writing_labels(target):
            write_atomically(journal_path(target, name), read_regular(path))


def journal_path(cache: Path, name: str) -> Path:
    """Where the verdicts on set `name` lie."""
    return cache / layout.LABEL_FOLDER / f"{layout.check_set_name(name)}.jsonl"
