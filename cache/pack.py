"""pack: one plain HDF5 file with a set's features and what they are, for programs that know nothing of this format."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from cache.errors import CacheError, MissingRows
from cache.files import refuse_unwritable, sync_folder, temporary_name
from cache.index import ImageRecord, SetIndex
from cache.manifest import canonical_json
from cache.store import FeatureCache

_ZEROS = 1 << 24  # bytes written at once
_TEXT = h5py.string_dtype("utf-8")


@dataclass
class PackResult:
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
        return f"{self.file}: {self.rows} rows of {self.set}, {self.bytes / 1e6:.0f} MB"


@dataclass(frozen=True)
class _Row:
    image: ImageRecord
    view: str


def pack(
    path: Path, file: Path, name: str | None = None, passes: int | None = None, overwrite: bool = False
) -> PackResult:
    """Write set `name` to `file`: a row for every file and each of its passes, unlike shards, which share rows.

    Features are float32, since few programs read float16. Datasets and attributes: FORMAT.md, Packed files.
    MissingRows where a pass asked for is not there; CacheError where `file` cannot be written, and none is left.
    """
    refuse_unwritable(file.parent)
    if file.is_dir():
        raise CacheError(f"{file} is a folder: name a file, such as features.h5")
    if file.exists() and not overwrite:
        raise CacheError(f"{file} exists: name another file, or replace it with --overwrite")
    cache = FeatureCache.open(path)
    index = cache.index(name)
    if not index.images:
        raise CacheError(f"set {index.name!r} of {path} has no images: there is nothing to pack")
    known = max(index.passes, cache.complete_passes(index))
    if passes is not None and passes > known:
        raise MissingRows(
            f"set {index.name!r} of {path} has {known} augmented passes, {passes} were asked for: "
            f"run extract with --passes {passes}, or pack with --passes {known}"
        )
    rows = _rows(index, known if passes is None else passes)
    temporary = file.with_name(temporary_name())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        offset = _write_all_but_features(temporary, cache, index, rows)
        _write_features(temporary, offset, cache, rows)
        os.replace(temporary, file)
        sync_folder(file.absolute().parent)
    except OSError as error:
        raise CacheError(
            f"could not write {file}: {error.strerror or error}; make room, or name another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return PackResult(str(file), index.name, len(rows), file.stat().st_size)


def _rows(index: SetIndex, passes: int) -> list[_Row]:
    return [_Row(image, view) for image in index.images for _, view in image.keys(passes)]


def _write_all_but_features(file: Path, cache: FeatureCache, index: SetIndex, rows: Sequence[_Row]) -> int:
    """The HDF5 file with room for the features; returns their offset.

    A full disk under HDF5's own writes would end the interpreter: so the whole space is asked for and given back first,
    and that of the features, by far the most, is claimed again before they are written.
    """
    size = 4 * len(rows) * cache.in_features
    descriptive = sum(len(row.image.path.encode(errors="surrogateescape")) + 256 for row in rows) + (1 << 20)
    with open(file, "xb") as claim:
        _claim(claim, 0, size + descriptive)
    with h5py.File(file, "w", libver=("v110", "v110")) as packed:
        _describe(packed, cache, index, rows)
        features = _create_features(packed, len(rows), cache.in_features)
        features.dims[0].label, features.dims[1].label = "row", "feature"
        for scale in ("labels", "paths", "splits", "passes"):
            packed[scale].make_scale(scale)
            features.dims[0].attach_scale(packed[scale])
        offset = features.id.get_offset()
    with open(file, "r+b") as claim:
        _claim(claim, offset, size)
    return int(offset)


def _claim(file: BinaryIO, offset: int, size: int) -> None:
    """Have the disk keep room from `offset` on; OSError where it is full. Zeros where the system cannot be asked."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), offset, size)
        return
    file.seek(offset)
    for start in range(0, size, _ZEROS):
        file.write(bytes(min(_ZEROS, size - start)))


def _describe(packed: h5py.File, cache: FeatureCache, index: SetIndex, rows: Sequence[_Row]) -> None:
    place = {label: number for number, label in enumerate(index.classes)}
    packed["labels"] = np.array([place[row.image.label] for row in rows], dtype="<i4")
    packed["passes"] = np.array([int(row.view.removeprefix("pass:")) for row in rows], dtype="<i4")
    packed["splits"] = np.array([row.image.split for row in rows], dtype="S5")
    packed.create_dataset("paths", data=[_text(row.image.path) for row in rows], dtype=_TEXT)
    packed.create_dataset("class_names", data=[_text(label) for label in index.classes], dtype=_TEXT)
    manifest = cache.manifest
    packed.attrs["set"] = _text(index.name)
    packed.attrs["root"] = _text(index.root)
    packed.attrs["row_shape"] = np.array(cache.row_shape, dtype="<i8")
    packed.attrs["manifest"] = canonical_json(asdict(manifest)).decode()
    packed.attrs["set_digest"] = index.digest


def _text(name: str) -> str:
    """Valid UTF-8: bytes of a file name that are not stand as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _create_features(packed: h5py.File, rows: int, width: int) -> h5py.Dataset:
    """Contiguous float32, allocated and not filled."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((rows, width))
    return h5py.Dataset(h5py.h5d.create(packed.id, b"features", h5py.h5t.IEEE_F32LE, space, created))


def _write_features(file: Path, offset: int, cache: FeatureCache, rows: Sequence[_Row]) -> None:
    width = 4 * cache.in_features
    handle = os.open(file, os.O_WRONLY)
    try:
        for positions, block in cache.blocks([(row.image.key, row.view) for row in rows]):
            for position, values in zip(positions, block.astype("<f4"), strict=True):
                os.pwrite(handle, values.tobytes(), offset + int(position) * width)
        os.fsync(handle)
    finally:
        os.close(handle)
