"""One image set's index: which files it has, their digests, labels and splits, and the order of its classes."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cache import layout
from cache.files import read_undamaged, write_atomically
from cache.keys import PackedKeys, RowKey, keys_of, pack_digests
from cache.manifest import json_digest, read_sealed, sealed
from cache.records import Count, Digest

_ADVICE = "run extract again to write it"
SPLITS = ("train", "valid", "test")
UNLABELLED = "unlabelled"  # the split of images without a label: extracted, never trained on, never scored
_WITH_UNLABELLED = 2  # format version of an index that has such images; a program that knows none refuses it


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One file of a set: `path` relative to the set's root, SHA-256 as 64 hex digits, size in bytes.

    Of split `unlabelled`, `label` is "", and `path` is absolute where the file does not lie below the root.
    `mtime_ns` only says which files to hash again when the folder is compared with the index. Images of the same
    `group`, such as frames of one scene, are no independent evidence; "" is a group of its own.
    """

    path: str
    digest: str
    label: str
    split: str
    size: int
    mtime_ns: int
    group: str = ""

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
    `group_by` is the regular expression that groups were read off paths with, "" where it was none. `unlabelled` are
    absolute paths of the folders whose images were added without labels; `data` among them has no labelled images.
    """

    name: str
    data: str
    root: str
    split_seed: int
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...] = ()
    passes: Annotated[int, Meta(ge=0, le=layout.MOST_PASSES)] = 0
    group_by: str = ""
    unlabelled: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of what training depends on: paths, contents, labels, splits, groups, class order; not place or time.

        Without groups it is as it was before there were any. Unlabelled images do not enter it.
        """
        images = (image for image in self.images if image.split != UNLABELLED)
        rows = sorted((i.path, i.digest, i.label, i.split, *filter(None, [i.group])) for i in images)
        return json_digest([list(self.classes), rows])

    @property
    def labelled(self) -> Self:
        """The set without its unlabelled images: what training and scoring see."""
        if not self.unlabelled and all(image.split != UNLABELLED for image in self.images):
            return self
        return replace(self, images=tuple(i for i in self.images if i.split != UNLABELLED), unlabelled=())

    def split(self, *names: str) -> tuple[ImageRecord, ...]:
        """The records of one split, in index order; of several, one split after the other."""
        return tuple(image for name in names for image in self.images if image.split == name)

    def labels(self, images: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
        """Places of the labels of some images in `classes`, (N,)."""
        place = {name: number for number, name in enumerate(self.classes)}
        return np.array([place[image.label] for image in images], dtype=np.int64)

    def row_keys(self, passes: int) -> list[RowKey]:
        """Distinct keys this set needs: the clean view of all, and of what is in train passes 1..`passes`."""
        return list(dict.fromkeys(key for image in self.images for key in image.keys(passes)))

    def says_all_of(self, other: "SetIndex") -> bool:
        """Whether it has the same images, labels and splits as `other`, and no fewer passes."""
        mine, others = ({image.digest for image in index.split(UNLABELLED)} for index in (self, other))
        return self.digest == other.digest and mine == others and self.passes >= other.passes

    def packed_keys(self, passes: int) -> PackedKeys:
        """The same keys as one array, in order of their bytes: a tenth of the memory."""
        digests = pack_digests(image.digest for image in self.images)
        trained = digests[[image.split == "train" for image in self.images]]
        views = [layout.pass_view(number) for number in range(1, passes + 1)]
        return np.unique(np.concatenate([keys_of(digests, layout.CLEAN_VIEW), *(keys_of(trained, v) for v in views)]))

    def counts(self) -> dict[str, int]:
        """Files by split; of `unlabelled` only where there are some."""
        unlabelled = len(self.split(UNLABELLED))
        return {split: len(self.split(split)) for split in SPLITS} | ({UNLABELLED: unlabelled} if unlabelled else {})

    def save(self, folder: Path) -> None:
        """Write the index whole or not at all."""
        body = {**asdict(replace(self, images=())), "images": _columns(self.images)}
        for optional in ("group_by", "unlabelled"):
            if not body[optional]:
                del body[optional]
        plain = self.classes and self.labelled is self
        version = layout.FORMAT_VERSION if plain else _WITH_UNLABELLED
        write_atomically(index_path(folder, self.name), sealed(body, version=version))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an index and check it against its digest."""
        return cls.from_json(read_undamaged(path, _ADVICE), path.stem, path)

    @classmethod
    def from_json(cls, data: bytes, name: str, path: Path | str) -> Self:
        """The index of set `name` from the bytes of its file, which `path` names in messages."""
        newer = {_WITH_UNLABELLED: partial(cls._parse, name, True)}
        return read_sealed(data, partial(cls._parse, name, False), path, "an index", _ADVICE, newer=newer)

    @classmethod
    def _parse(cls, name: str, unlabelled: bool, stored: dict[str, Any]) -> Self:
        """ValueError for what no data set gives, or leads out of it. Unknown fields are ignored."""
        _ = stored["passes"], stored["skipped"]  # without them, lost passes would not be noticed
        images = msgspec.convert(stored.pop("images"), _Columns)
        found = msgspec.convert({**stored, "images": []}, cls)
        if found.name != name:
            raise ValueError(f"it is of set {found.name!r}"[:300])
        if wrong := (_impossible(found, images) or ("" if unlabelled else _unlabelled_in(found, images))):
            raise ValueError(f"it has {wrong}")
        return replace(found, images=_records(images))


@dataclass(frozen=True)
class _Columns:
    """Of the images, by field: as one object an image, an index of a million would take gigabytes of memory to read."""

    path: list[str]
    digest: list[Digest]
    label: list[str]
    split: list[Literal["train", "valid", "test", "unlabelled"]]
    size: list[Count]
    mtime_ns: list[int]
    group: list[str] = field(default_factory=list)  # none where no image has one


def _columns(images: Sequence[ImageRecord]) -> dict[str, list[Any]]:
    columns = {field.name: [getattr(image, field.name) for image in images] for field in fields(ImageRecord)}
    if not any(columns["group"]):
        del columns["group"]
    return columns


def _records(columns: _Columns) -> tuple[ImageRecord, ...]:
    """The records of the columns, each label, split and group in memory once."""
    labels, splits, groups = (list(map(sys.intern, some)) for some in (columns.label, columns.split, columns.group))
    parts = columns.path, columns.digest, labels, splits, columns.size, columns.mtime_ns
    return tuple(map(ImageRecord, *parts, *([groups] if groups else [])))


def _impossible(found: SetIndex, images: _Columns) -> str:
    """What no data set gives, or leads out of it; "" where all is possible."""
    classes, from_csv = frozenset(found.classes), found.data != found.root  # a CSV may name files anywhere
    skipped = (text for image in found.skipped for text in astuple(image))
    texts = (found.data, found.root, *found.classes, *found.unlabelled, *skipped)
    if bad := next((text for text in texts if not _is_file_name(text)), None):
        return f"the text {bad!r}"[:300]
    if bad := next((folder for folder in found.unlabelled if not _is_absolute(folder)), None):
        return f"the folder {bad!r}, expected an absolute path"[:300]
    if len(classes) != len(found.classes):
        return "a class twice"
    columns = [getattr(images, field.name) for field in fields(images)]
    if len({len(column) for column in columns if column or column is not images.group}) > 1:
        return "columns of different lengths"
    if len(set(images.path)) != len(images.path):
        return "one path twice"
    added = {UNLABELLED: found.unlabelled}  # labelled images may not lie there
    named = zip(images.path, images.split, strict=True)
    bad = next((path for path, split in named if not _is_possible(path, from_csv, added.get(split, ()))), None)
    if bad is not None:
        return f"the path {bad!r}"[:300]
    for label, split in set(zip(images.label, images.split, strict=True)):
        if split == UNLABELLED and label:
            return f"the label {label!r} of an unlabelled image"[:300]
        if split != UNLABELLED and (not label or label not in classes):
            return f"the label {label!r} of an image in {split}, which is not among its classes"[:300]
    return ""


def _unlabelled_in(found: SetIndex, images: _Columns) -> str:
    """What only an index of the newer format version may have; "" where there is none of it."""
    if found.unlabelled or UNLABELLED in images.split:
        return f"unlabelled images, expected format {_WITH_UNLABELLED}"
    return "" if found.classes else "no classes"


def _is_file_name(text: str) -> bool:
    """Whether a file system can name a file by `text`: no NUL, no half characters but stray bytes."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")  # under any locale
    except UnicodeEncodeError:
        return False


def _is_absolute(path: str) -> bool:
    return Path(path).is_absolute() and ".." not in Path(path).parts


def _is_possible(path: str, from_csv: bool, added: Sequence[str]) -> bool:
    """Whether an image may have this path: below the set's root, or below one of the folders that were `added`."""
    inside = from_csv or not (Path(path).is_absolute() or ".." in Path(path).parts)
    inside = inside or (_is_absolute(path) and any(Path(path).is_relative_to(folder) for folder in added))
    return inside and path != "" and _is_file_name(path)


def index_path(folder: Path, name: str) -> Path:
    """Where the index of set `name` lies."""
    return folder / f"{layout.check_set_name(name)}.json"
