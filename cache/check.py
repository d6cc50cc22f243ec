"""verify: is every file of a cache what was written; repair: set aside what is not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from cache import layout
from cache.errors import CacheError, counted
from cache.files import remove, sync_folder
from cache.index import SetIndex
from cache.keys import KeyTable
from cache.labels import LabelJournal
from cache.lock import writing
from cache.projections import damaged_projections
from cache.result import Result
from cache.store import FeatureCache
from cache.writer import by_kind

Changes = Callable[[SetIndex], list[str]]  # how a set's images differ from its index, in words


@dataclass
class VerifyResult(Result):
    """What `verify` found.

    Attributes:
        cache: folder of the cache.
        shards: files of rows.
        rows: distinct rows in sound shards.
        bad: `[{shard, reason}]`; `shard` is a file's place in the cache, indexes and projections included.
        missing: `{set: rows}` that were lost.
        changed: `{set: [what]}`: images that differ from the index.
    """

    cache: str
    shards: int
    rows: int
    bad: list[dict[str, str]] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)

    def in_words(self) -> str:
        """A line of counts, and one for each thing that is wrong."""
        lines = [f"{counted(self.shards, 'shard')}, {counted(self.rows, 'row')}, {len(self.bad)} bad"]
        lines += [f"{bad['shard']}: {bad['reason']}" for bad in self.bad]
        lines += [f"{name}: {change}" for name, changes in self.changed.items() for change in changes]
        return "\n".join(lines)


@dataclass
class RepairResult(Result):
    """What `repair` did.

    Attributes:
        cache: folder of the cache.
        set_aside: `[{shard}]`, files that were quarantined.
        place: folder that they are in now.
        missing: `{set: rows}` that `extract` will compute again.
    """

    cache: str
    set_aside: list[dict[str, str]]
    place: str
    missing: dict[str, int]

    def in_words(self) -> str:
        """What was quarantined, file by file, and how many rows are missing."""
        lines = [f"{counted(len(self.set_aside), 'file')} quarantined in {self.place}"] if self.set_aside else []
        lines += [moved["shard"] for moved in self.set_aside]
        if lost := sum(self.missing.values()):
            lines.append(f"missing: {counted(lost, 'row')}, which extract will compute again")
        return "\n".join(lines) or "no file is corrupted"


def verify(path: Path, changes: Changes | None = None) -> VerifyResult:
    """Check names, lengths, digests and structure of every file, and that no set lost a row.

    `changes` compares a set's images with its index. A damaged manifest raises DamagedCache: without it nothing
    can be told.
    """
    cache = FeatureCache.open(path)
    indexes = cache.indexes()  # before the shards: those only grow
    sound, damaged = cache.examined
    rows = sum(len(KeyTable([(0, shard.packed_keys) for shard in kind])) for kind in by_kind(sound))
    result = VerifyResult(str(path), len(sound) + len(damaged), rows)
    bad = {file: str(error) for file, error in damaged.items()}
    bad |= dict.fromkeys(damaged_projections(path), "checksum mismatch")
    for name, index in indexes.items():
        file = path / layout.SET_FOLDER / f"{name}.json"
        if isinstance(index, CacheError):
            bad[file] = str(index)
            continue
        if lost := cache.lost(index):
            result.missing[name] = lost
            bad[file] = f"{counted(lost, 'row')} lost, in no sound shard: run extract again"
        if changes and (changed := changes(index)):
            result.changed[name] = changed
    for file in sorted((path / layout.LABEL_FOLDER).glob("[!.]*.jsonl")):
        try:
            LabelJournal.load(path, file.stem)
        except CacheError as error:
            bad[file] = str(error)
    result.bad = [
        {"shard": file.relative_to(path).as_posix(), "reason": reason.replace(str(file), "it", 1)}
        for file, reason in bad.items()
    ]
    return result


def repair(path: Path) -> RepairResult:
    """Move shards and indexes that cannot be used into `damaged/`, remove projections that cannot.

    What remains can be used; rows that were only in a bad shard are counted and can be extracted again.
    """
    cache = FeatureCache.open(path)  # where there is no cache, nothing is made, not even a lock
    with writing(path):
        remove(damaged_projections(path))
        bad_sets = [name for name, index in cache.indexes().items() if isinstance(index, CacheError)]
        moved = [*cache.examined[1], *(path / layout.SET_FOLDER / f"{name}.json" for name in bad_sets)]
        place = path / layout.DAMAGED_FOLDER
        for file in moved:
            place.mkdir(exist_ok=True)
            file.replace(_free_name(place / file.name))
            sync_folder(file.parent)
        missing = verify(path).missing
    return RepairResult(
        str(path), [{"shard": file.relative_to(path).as_posix()} for file in moved], str(place), missing
    )


def _free_name(file: Path) -> Path:
    """Beside what was set aside under this name before, nothing of which is lost."""
    names = (file.with_name(f"{file.stem}-{number}{file.suffix}") for number in count(2))
    return next(name for name in chain((file,), names) if not name.exists())
