"""pack: one plain HDF5 file with a set's features and what they are, for programs that know nothing of this format."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from cache import layout
from cache.errors import CacheError, counted
from cache.files import refuse_unwritable, replacing
from cache.index import ImageRecord, SetIndex
from cache.keys import RowKey
from cache.manifest import canonical_json
from cache.result import Result
from cache.store import FeatureCache

_TEXT = h5py.string_dtype("utf-8")


@dataclass
class PackResult(Result):
    """What `pack` wrote.

    Attributes:
        file: path of the HDF5 file.
        set: name of the image set.
        rows: (file, pass) pairs, one after the other.
        bytes: size of the file.
    """

    file: str
    set: str
    rows: int
    bytes: int

    def in_words(self) -> str:
        """One line."""
        return f"{self.file}: {counted(self.rows, 'row')} of {self.set}, {self.bytes / 1e6:.0f} MB"


def pack(
    path: Path, file: Path, name: str | None = None, passes: int | None = None, overwrite: bool = False
) -> PackResult:
    """Write set `name` to `file`: a row for every labelled file and each of its passes; shards share rows.

    Features are float32, since few programs read float16. Datasets and attributes: FORMAT.md, Packed files.
    MissingRows where a pass asked for is not there; CacheError where `file` cannot be written, and none is left.
    """
    refuse_unwritable(file.parent)
    if file.is_dir():
        raise CacheError(f"{file} is a folder: name a file, such as features.h5")
    if file.exists() and not overwrite:
        raise CacheError(f"{file} exists: name another file, or replace it with --overwrite")
    cache = FeatureCache.open(path)
    index = cache.index(name).labelled
    if not index.images:
        raise CacheError(f"set {index.name!r} of {path} has no images with labels: there is nothing to pack")
    passes = cache.passes(index, passes)
    images = [image for image in index.images for _ in image.keys(passes)]
    keys = [key for image in index.images for key in image.keys(passes)]
    with replacing(file) as temporary:
        offset = _write_all_but_features(temporary, cache, index, images, keys)
        with open(temporary, "r+b") as packed:
            for positions, block in cache.blocks(keys):
                for position, row in zip(positions.tolist(), block.astype("<f4"), strict=True):
                    packed.seek(offset + position * row.nbytes)
                    packed.write(row.data)
    return PackResult(str(file), index.name, len(keys), file.stat().st_size)


def _write_all_but_features(
    file: Path, cache: FeatureCache, index: SetIndex, images: Sequence[ImageRecord], keys: Sequence[RowKey]
) -> int:
    """The HDF5 file with room for the features; returns their offset.

    A full disk under HDF5's own writes would end the interpreter: so the whole space is asked for and given back first,
    and that of the features, by far the most, is claimed again before they are written.
    """
    size = 4 * len(keys) * cache.in_features
    descriptive = sum(len(image.path.encode(errors="surrogateescape")) + 256 for image in images) + (1 << 20)
    with open(file, "xb") as claim:
        _claim(claim, 0, size + descriptive)
    with h5py.File(file, "w", libver=("v110", "v110")) as packed:
        packed["labels"] = index.labels(images).astype("<i4")
        packed["passes"] = np.array([layout.pass_number(view) for _, view in keys], dtype="<i4")
        packed["splits"] = np.array([image.split for image in images], dtype="S5")
        packed.create_dataset("paths", data=[_text(image.path) for image in images], dtype=_TEXT)
        packed.create_dataset("class_names", data=[_text(label) for label in index.classes], dtype=_TEXT)
        packed.attrs["set"] = _text(index.name)
        packed.attrs["root"] = _text(index.root)
        packed.attrs["row_shape"] = np.array(cache.row_shape, dtype="<i8")
        packed.attrs["manifest"] = canonical_json(asdict(cache.manifest)).decode()
        packed.attrs["set_digest"] = index.digest
        features = _create_features(packed, len(keys), cache.in_features)
        features.dims[0].label, features.dims[1].label = "row", "feature"
        for scale in ("labels", "paths", "splits", "passes"):
            packed[scale].make_scale(scale)
            features.dims[0].attach_scale(packed[scale])
        offset = int(features.id.get_offset())
    with open(file, "r+b") as claim:
        _claim(claim, offset, size)
    return offset


def _claim(file: BinaryIO, offset: int, size: int) -> None:
    """Have the disk keep room from `offset` on, where the system can be asked; OSError where it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), offset, size)


def _text(name: str) -> str:
    """Valid UTF-8: bytes of a file name that are not stand as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _create_features(packed: h5py.File, rows: int, width: int) -> h5py.Dataset:
    """Contiguous float32, allocated and not filled."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return packed.create_dataset("features", (rows, width), "<f4", dcpl=created)
