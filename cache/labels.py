"""Labels given by hand: an append-only journal of verdicts beside the index of a set, which they change when read.

No file of the user is touched, and no line of the journal is ever changed: what is taken back is a line of its own.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cache import layout
from cache.errors import DamagedCache
from cache.files import append_line, read_regular, read_undamaged, write_atomically
from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.records import Count, Digest, convert, fault

VERDICTS = ("class", "unsure", "bad", "none")
EXCLUDING = ("bad", "none")  # such images are neither trained on nor scored


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A line of the journal.

    Attributes:
        number: of the line, from 1.
        batch: number of the first of the lines that one decision wrote, which are taken back together.
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
    """

    path: Path
    lines: list[Verdict] = field(default_factory=list)
    chains: dict[str, list[Verdict]] = field(default_factory=dict)

    @classmethod
    def load(cls, cache: Path, name: str) -> "LabelJournal":
        """That of set `name`, without verdicts where there is no file. A last line cut short by a kill is not read.

        DamagedCache names a line that is not as it was written: labels are never dropped without a word.
        """
        path = journal_path(cache, name)
        return cls.from_bytes(read_undamaged(path, "restore it from a copy") if path.exists() else b"", path)

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> "LabelJournal":
        """That of the contents of its file."""
        journal = cls(path)
        try:
            for line in data[: data.rfind(b"\n") + 1].splitlines():
                journal._keep(convert(json.loads(line), Verdict))
        except (ValueError, RecursionError) as error:
            raise DamagedCache(
                f"{path}, line {len(journal.lines) + 1}, cannot be read ({fault(error)}), expected a verdict of "
                "headgraft label: restore the file from a copy, or correct the line"
            ) from error
        return journal

    def make_writable(self) -> None:
        """Drop a last line that a kill cut short: the next one would be joined to it."""
        if self.path.exists():
            data = read_regular(self.path)
            if not data.endswith(b"\n") and data:
                write_atomically(self.path, data[: data.rfind(b"\n") + 1])

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """The verdict in force of each image that has one, by digest."""
        return {digest: chain[-1] for digest, chain in self.chains.items()}

    def record(self, images: Sequence[ImageRecord], verdict: str, label: str, queue: str, rank: int, split: str) -> int:
        """Append one decision on some images, each with the label that it has now; durable when this returns.

        `split` is that of unlabelled ones since. Returns the number of the last line. What is in force already is not
        written again, so that a request may be repeated. CacheError where it cannot be written: nothing is kept then.
        """
        batch, added = len(self.lines) + 1, list[Verdict]()
        for image in images:
            chain = self.chains.get(image.digest, [])
            in_data = chain[0].old if chain else image.label
            new = {"class": label, "unsure": image.label or in_data}.get(verdict, "")
            if chain and (chain[-1].verdict, chain[-1].new) == (verdict, new):
                continue
            joins = image.split
            if verdict == "class" and image.split == UNLABELLED:
                joins = split
            elif verdict == "unsure" and not new:
                joins = UNLABELLED
            added.append(
                self._line(batch + len(added), batch, image.digest, image.label, new, verdict, joins, queue, rank)
            )
        self._append(added)
        return len(self.lines)

    def undo(self) -> list[Verdict]:
        """Take the last decision in force back; returns its verdicts, [] where there is none."""
        batch = max((chain[-1].batch for chain in self.chains.values()), default=0)
        undone = [chain[-1] for chain in self.chains.values() if chain[-1].batch == batch]
        start = len(self.lines) + 1
        self._append(
            [
                self._line(start + n, batch, one.digest, one.new, one.old, "undo", one.split, one.queue, one.rank)
                for n, one in enumerate(undone)
            ]
        )
        return undone

    def _line(
        self, number: int, batch: int, digest: str, old: str, new: str, verdict: str, split: str, queue: str, rank: int
    ) -> Verdict:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Verdict(
            number=number,
            batch=batch,
            digest=digest,
            old=old,
            new=new,
            verdict=verdict,  # type: ignore[arg-type]  # checked where it is asked for
            split=split,  # type: ignore[arg-type]
            time=now,
            queue=queue,
            rank=rank,
        )

    def _append(self, added: Sequence[Verdict]) -> None:
        if added:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, b"\n".join(json.dumps(asdict(one), separators=(",", ":")).encode() for one in added))
        for one in added:
            self._keep(one)

    def _keep(self, line: Verdict) -> None:
        """ValueError for a line that cannot come next."""
        if line.number != len(self.lines) + 1:
            raise ValueError(f"it has number {line.number}, expected {len(self.lines) + 1}")
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

    def applied(self, index: SetIndex) -> SetIndex:
        """The index as it is with these verdicts: labels, splits, classes, without the images that are excluded.

        Where a file was given a third label in the data since, that one holds. Images that are given a class that no
        training image has are in train, whatever their split: no head could be right about them.
        """
        if not self.chains:
            return index
        labels = {image.digest: set[str]() for image in index.images}
        for image in index.images:
            labels[image.digest].add(image.label)
        verdicts = {digest: one for digest, one in self.verdicts.items() if self._holds(digest, labels.get(digest))}
        images = tuple(
            image if verdict is None else _changed(image, verdict)
            for image in index.images
            if (verdict := verdicts.get(image.digest)) is None or verdict.verdict not in EXCLUDING
        )
        classes = tuple(sorted({image.label for image in images} - {""}))
        trained = {image.label for image in images if image.split == "train"}
        given = {digest for digest, one in verdicts.items() if one and one.new and one.new not in trained}
        images = tuple(replace(image, split="train") if image.digest in given else image for image in images)
        return replace(index, images=images, classes=classes)

    def outdated(self, index: SetIndex) -> int:
        """Images whose verdict no longer holds, since the data gives them a third label."""
        labels = {image.digest: set[str]() for image in index.images if image.digest in self.chains}
        for image in index.images:
            labels.get(image.digest, set()).add(image.label)
        return sum(not self._holds(digest, found) for digest, found in labels.items())

    def holding(self, image: ImageRecord) -> Verdict | None:
        """The verdict in force on an image as it was extracted; None where there is none, or the data changed since."""
        chain = self.chains.get(image.digest)
        return chain[-1] if chain and self._holds(image.digest, {image.label}) else None

    def _holds(self, digest: str, found: set[str] | None) -> bool:
        chain = self.chains[digest]
        return bool(found and found & {chain[0].old, *(one.new for one in chain)})

    def counts(self) -> Counter[str]:
        """Verdicts in force by kind."""
        return Counter(one.verdict for one in self.verdicts.values())


def _changed(image: ImageRecord, verdict: Verdict) -> ImageRecord:
    split = verdict.split if image.split == UNLABELLED else image.split
    return replace(image, label=verdict.new, split=split)


def copy_labels(source: Path, target: Path, name: str) -> None:
    """Give the cache at `target` the verdicts that the one at `source` has on a set."""
    if (path := journal_path(source, name)).exists():
        journal_path(target, name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(journal_path(target, name), read_regular(path))


def journal_path(cache: Path, name: str) -> Path:
    """Where the verdicts on set `name` lie."""
    return cache / layout.LABEL_FOLDER / f"{layout.check_set_name(name)}.jsonl"
