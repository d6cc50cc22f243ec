"""One image set's index: which files it has, their digests, labels and splits, and the order of its classes."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import starmap
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.files import read_regular, write_atomically
from cache.keys import PackedKeys, RowKey, keys_of, pack_digests
from cache.manifest import is_count, is_digest, json_digest

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One file of a set: `path` relative to the set's root, SHA-256 as 64 hex digits, size in bytes.

    `mtime_ns` only says which files to hash again when the folder is compared with the index.
    """

    path: str
    digest: str
    label: str
    split: str
    size: int
    mtime_ns: int

    @property
    def key(self) -> bytes:
        """The digest as the 32 bytes of a row key."""
        return bytes.fromhex(self.digest)

    def keys(self, passes: int) -> list[RowKey]:
        """The rows this file needs: its clean view and, in train, passes 1..`passes`."""
        views = passes + 1 if self.split == "train" else 1
        return [(self.key, layout.pass_view(number)) for number in range(views)]


@dataclass(frozen=True)
class SkippedImage:
    """A file that could not be decoded, and why; `digest` as of an image."""

    path: str
    digest: str
    reason: str


@dataclass(frozen=True)
class SetIndex:
    """The index of one image set; `classes` are the names in the order of the head's outputs.

    `data` is what was extracted, a folder or a CSV file; the records' paths start from `root`. `passes` is how many
    augmented passes all of its training images had when it was written: should one be missing, it was lost.
    """

    name: str
    data: str
    root: str
    split_seed: int
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...] = ()
    passes: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of what training depends on: paths, contents, labels, splits, class order; not place or time."""
        rows = sorted((i.path, i.digest, i.label, i.split) for i in self.images)
        return json_digest([list(self.classes), rows])

    def split(self, name: str) -> tuple[ImageRecord, ...]:
        """The records of one split, in index order."""
        return tuple(image for image in self.images if image.split == name)

    def labels(self, images: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
        """Places of the labels of some images in `classes`, (N,)."""
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[image.label] for image in images], dtype=np.int64)

    def row_keys(self, passes: int) -> list[RowKey]:
        """Distinct keys this set needs: the clean view of all, and of what is in train passes 1..`passes`."""
        return list(dict.fromkeys(key for image in self.images for key in image.keys(passes)))

    def says_all_of(self, other: "SetIndex") -> bool:
        """Whether it names the same images, labels and splits as `other`, and no fewer passes."""
        return self.digest == other.digest and self.passes >= other.passes

    def packed_keys(self, passes: int) -> PackedKeys:
        """The same keys as one array, in order of their bytes: a tenth of the memory."""
        digests = pack_digests(image.digest for image in self.images)
        trained = digests[[image.split == "train" for image in self.images]]
        views = [layout.pass_view(number) for number in range(1, passes + 1)]
        return np.unique(np.concatenate([keys_of(digests, layout.CLEAN_VIEW), *(keys_of(trained, v) for v in views)]))

    def counts(self) -> dict[str, int]:
        """Files by split."""
        return {split: len(self.split(split)) for split in SPLITS}

    def save(self, folder: Path) -> None:
        """Write the index whole or not at all."""
        body = {**asdict(replace(self, images=())), "images": _columns(self.images)}
        data = json.dumps({"format": layout.FORMAT_VERSION, **body, "sha256": json_digest(body)})
        write_atomically(index_path(folder, self.name), data.encode("ascii"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an index and check it against its digest."""
        try:
            data = read_regular(path)
        except OSError as error:
            raise DamagedCache(f"{path} is not an index ({error!r}); run extract again to write it") from error
        return cls.from_json(data, path.stem, path)

    @classmethod
    def from_json(cls, data: bytes, name: str, path: Path | str) -> Self:
        """The index of set `name` from the bytes of its file, which `path` names in messages."""
        try:
            stored: dict[str, Any] = json.loads(data)
            version, digest = stored.pop("format"), stored.pop("sha256")
            expected = json_digest(stored)  # no NaN, and no nesting without end
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCache(f"{path} is not an index ({error!r}); run extract again to write it") from error
        if version != layout.FORMAT_VERSION:
            raise CacheError(f"{path} is of format {version!r}, expected {layout.FORMAT_VERSION}; run extract again")
        if digest != expected:
            raise DamagedCache(f"{path} was changed after it was written; run extract again to write it")
        try:
            columns = stored["images"].values() if isinstance(stored["images"], dict) else [None]
            if not all(isinstance(part, list) for part in (stored["classes"], stored["skipped"], *columns)):
                raise TypeError("classes, skipped and the columns of images are lists")
            index = cls(
                name=stored["name"],
                data=stored["data"],
                root=stored["root"],
                split_seed=stored["split_seed"],
                classes=tuple(stored["classes"]),
                images=_records(stored.pop("images")),
                skipped=tuple(SkippedImage(**image) for image in stored["skipped"]),
                passes=stored["passes"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCache(f"{path} lacks or adds a field ({error}); run extract again to write it") from error
        if wrong := _impossible(index, name):
            raise DamagedCache(f"{path} has {wrong}, which no index has; run extract again to write it")
        return index


def _columns(images: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    """By field: as one object an image, an index of a million would take gigabytes of memory to read."""
    return {field.name: [getattr(image, field.name) for image in images] for field in fields(ImageRecord)}


def _records(columns: dict[str, list[Any]]) -> tuple[ImageRecord, ...]:
    """The records of the columns, each label and split in memory once."""
    names = [field.name for field in fields(ImageRecord)]
    if sorted(columns) != sorted(names):
        raise TypeError(f"images have the columns {sorted(columns)}")
    shared = {name: list(map(sys.intern, columns[name])) for name in ("label", "split")}
    return tuple(starmap(ImageRecord, zip(*({**columns, **shared}[name] for name in names), strict=True)))


def _impossible(index: SetIndex, name: str) -> str:
    """What is of another type, beyond all bounds, or leads out of the data set; "" where all is possible."""
    if index.name != name or not all(map(_is_file_name, (index.data, index.root, *index.classes))):
        return "another set's name, or no texts as places and classes"
    if not index.classes or len(set(index.classes)) != len(index.classes):
        return "no classes, or one twice"
    if not is_count(index.passes, most=layout.MOST_PASSES) or type(index.split_seed) is not int:
        return "no counts as passes and split_seed"
    from_csv, classes = index.data != index.root, frozenset(index.classes)  # a CSV may name files anywhere
    bad = next((record for record in index.images if not _is_possible(record, from_csv, classes)), None)
    if bad is None and len({record.path for record in index.images}) != len(index.images):
        return "one path twice"
    if bad is None and not all(_is_file_name(text) for image in index.skipped for text in astuple(image)):
        return "skipped files that are no texts"
    return "" if bad is None else f"the entry {bad!r}"[:300]


def _is_file_name(value: object) -> bool:
    """Whether `value` is a text that a file system can name a file by: no NUL, no half characters but stray bytes."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode("utf-8", "surrogateescape")  # under any locale
    except UnicodeEncodeError:
        return False


def _is_possible(record: ImageRecord, from_csv: bool, classes: frozenset[str]) -> bool:
    if not _is_file_name(record.path) or record.label not in classes:
        return False
    path = Path(record.path)
    return (
        (from_csv or not (path.is_absolute() or ".." in path.parts))
        and is_digest(record.digest)
        and record.split in SPLITS
        and is_count(record.size)
        and type(record.mtime_ns) is int
    )


def index_path(folder: Path, name: str) -> Path:
    """Where the index of set `name` lies."""
    return folder / f"{layout.check_set_name(name)}.json"


def list_sets(folder: Path) -> list[str]:
    """Names of the sets indexed in `folder`."""
    files: Iterable[Path] = folder.glob("*.json") if folder.is_dir() else ()
    return sorted(path.name.removesuffix(".json") for path in files if not path.name.startswith("."))
