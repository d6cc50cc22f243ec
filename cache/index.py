"""One image set's index: which files it has, their digests, labels and splits, and the order of its classes."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.files import read_regular, write_atomically
from cache.keys import PackedKeys, RowKey, keys_of, pack_digests
from cache.manifest import json_digest
from cache.records import Count, Digest, convert

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
        stored.pop("dense", None)  # what versions wrote that had dense views
        try:
            file = convert(stored, _File)
        except ValueError as error:
            raise DamagedCache(f"{path} is not an index ({error}); run extract again to write it") from error
        if wrong := _impossible(file, name):
            raise DamagedCache(f"{path} has {wrong}, which no index has; run extract again to write it")
        named = {field.name: getattr(file, field.name) for field in fields(file)}
        return cls(**{**named, "images": _records(file.images)})


@dataclass(frozen=True)
class _Columns:
    """Of the images, by field: as one object an image, an index of a million would take gigabytes of memory to read."""

    path: list[str]
    digest: list[Digest]
    label: list[str]
    split: list[Literal["train", "valid", "test"]]
    size: list[Count]
    mtime_ns: list[int]


@dataclass(frozen=True)
class _File:
    """The fields of an index file, but for its format and digest."""

    name: str
    data: str
    root: str
    split_seed: int
    classes: tuple[str, ...]
    images: _Columns
    skipped: tuple[SkippedImage, ...]
    passes: Annotated[int, Meta(ge=0, le=layout.MOST_PASSES)]


def _columns(images: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    return {field.name: [getattr(image, field.name) for image in images] for field in fields(ImageRecord)}


def _records(columns: _Columns) -> tuple[ImageRecord, ...]:
    """The records of the columns, each label and split in memory once."""
    labels, splits = (list(map(sys.intern, column)) for column in (columns.label, columns.split))
    parts = columns.path, columns.digest, labels, splits, columns.size, columns.mtime_ns
    return tuple(map(ImageRecord, *parts))


def _impossible(file: _File, name: str) -> str:
    """What no data set gives, or leads out of it; "" where all is possible."""
    columns, classes = file.images, frozenset(file.classes)
    if file.name != name or not all(map(_is_file_name, (file.data, file.root, *file.classes))):
        return "another set's name, or no texts as data, root and classes"
    if not classes or len(classes) != len(file.classes):
        return "no classes, or one twice"
    if len({len(getattr(columns, field.name)) for field in fields(columns)}) > 1:
        return "columns of different lengths"
    if len(set(columns.path)) != len(columns.path):
        return "one path twice"
    from_csv = file.data != file.root  # which may name files anywhere
    if bad := next((path for path in columns.path if not _is_possible(path, from_csv)), None):
        return f"the path {bad!r}"[:300]
    if other := next((label for label in columns.label if label not in classes), None):
        return f"the label {other!r}, which is not among its classes"[:300]
    if not all(_is_file_name(text) for image in file.skipped for text in astuple(image)):
        return "skipped files with invalid text"
    return ""


def _is_file_name(value: object) -> bool:
    """Whether `value` is a text that a file system can name a file by: no NUL, no half characters but stray bytes."""
    try:
        return isinstance(value, str) and b"\0" not in value.encode("utf-8", "surrogateescape")  # under any locale
    except UnicodeEncodeError:
        return False


def _is_possible(path: str, from_csv: bool) -> bool:
    inside = from_csv or not (Path(path).is_absolute() or ".." in Path(path).parts)
    return inside and path != "" and _is_file_name(path)


def index_path(folder: Path, name: str) -> Path:
    """Where the index of set `name` lies."""
    return folder / f"{layout.check_set_name(name)}.json"


def list_sets(folder: Path) -> list[str]:
    """Names of the sets indexed in `folder`."""
    files: Iterable[Path] = folder.glob("*.json") if folder.is_dir() else ()
    return sorted(path.name.removesuffix(".json") for path in files if not path.name.startswith("."))
