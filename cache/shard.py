"""One immutable shard: an HDF5 file named by the digest of its bytes, written once, read through a memory map."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from cache import layout
from cache.errors import DamagedCache
from cache.files import write_atomically
from cache.keys import Digests, PackedKeys, RowKey, join_keys, split_keys, unpack_keys
from cache.records import fault

Float16Array = npt.NDArray[np.float16]
Positions = npt.NDArray[np.intp]

_INFINITY, _NEGATIVE_INFINITY = 0x7C00, 0xFC00  # bits of float16
_BLOCK = 1 << 21  # numbers looked at together

# What reading a crafted file raises, h5py's errors among them; RecursionError is a RuntimeError.
_NO_SHARD = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of all its rows; `provenance` (device, versions, code path) is outside the identity."""

    base_digest: str
    row_shape: tuple[int, ...]
    augmentation_digest: str = ""
    basis: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_shard(folder: Path, header: ShardHeader, keys: PackedKeys, *rows: Float16Array) -> Path:
    """Write `rows`, which together are (N, D), under `keys` (N,) as one new shard in `folder` and return its path.

    Without an augmented view among them, the shard names no augmentation.
    """
    digests, views = split_keys(keys)
    if (views == layout.CLEAN_VIEW.encode()).all():
        header = replace(header, augmentation_digest="")
    before, after = _without_features(header, digests, views)
    pieces = [before, *(np.ascontiguousarray(some, layout.FEATURE_DTYPE).data for some in rows), after]
    state, size = xxhash.xxh3_128(), 0
    for piece in pieces:
        state.update(piece)
        size += piece.nbytes
    path = folder / layout.shard_name(state.hexdigest(), size)
    if not path.exists():
        write_atomically(path, *pieces)
    return path


def _without_features(
    header: ShardHeader, digests: Digests, views: npt.NDArray[np.bytes_]
) -> tuple[memoryview, memoryview]:
    """What a shard holds before its features, and after them."""
    provenance = json.dumps(dict(header.provenance), sort_keys=True)
    same = header.base_digest, header.augmentation_digest, header.row_shape, header.basis, provenance
    template, places = _template(*same, len(views))
    image = bytearray(template)
    for place, array in zip(places, (digests, views), strict=False):
        image[place : place + array.nbytes] = array.tobytes()
    return memoryview(image)[: places[2]], memoryview(image)[places[2] :]


@lru_cache(maxsize=4)
def _template(
    base: str, augmentation: str, row_shape: tuple[int, ...], basis: str, provenance: str, count: int
) -> tuple[bytes, list[int]]:
    """That without keys, and where digests, views and features go: by HDF5 once, which stops every other thread.

    Built in memory: a full disk under HDF5's own writes ends the interpreter.
    """
    options = {"driver": "core", "backing_store": False, "libver": ("v110", "v110")}
    aligned = {"alignment_threshold": layout.ALIGNMENT, "alignment_interval": layout.ALIGNMENT}
    with h5py.File("shard", "w", **options, **aligned) as file:
        file.attrs[layout.ATTR_FORMAT] = layout.FORMAT_VERSION
        file.attrs[layout.ATTR_BASE] = base
        file.attrs[layout.ATTR_AUGMENTATION] = augmentation
        file.attrs[layout.ATTR_ROW_SHAPE] = np.array(row_shape, dtype="<i8")
        file.attrs[layout.ATTR_BASIS] = basis
        file.attrs[layout.ATTR_PROVENANCE] = provenance
        digests = file.create_dataset(layout.DIGESTS, data=np.zeros((count, 32), np.uint8))
        views = file.create_dataset(layout.VIEWS, data=np.zeros(count, layout.VIEW_DTYPE))
        features = file.create_dataset(layout.FEATURES, (count, math.prod(row_shape)), layout.FEATURE_DTYPE)
        features[-1] = 0  # has HDF5 give it its place
        file.flush()
        image, size = file.id.get_file_image(), features.nbytes
        places: list[int] = [dataset.id.get_offset() for dataset in (digests, views, features)]
    bare = image[: places[2]] + image[places[2] + size :]
    return bare, [place - size if place > places[2] else place for place in places]


@dataclass(frozen=True)
class Shard:
    """A shard whose bytes were checked against its name when it was opened."""

    path: Path
    header: ShardHeader
    packed_keys: PackedKeys
    rows: Float16Array  # (N, D), a read-only memory map

    def __len__(self) -> int:
        """Rows."""
        return len(self.packed_keys)

    @property
    def keys(self) -> list[RowKey]:
        """The key of each row; made anew each time."""
        return unpack_keys(self.packed_keys)

    @classmethod
    def open(cls, path: Path, name: str = "") -> "Shard":
        """Check length, then digest, then structure, and map the rows; a difference raises DamagedCache.

        `name` is what to check it against, where the file does not have that name yet.
        """
        try:
            _check_bytes(path, name or path.name)
            with h5py.File(path, "r") as file:
                header = _read_header(file)
                keys = _read_keys(file, augmented=header.augmentation_digest != "")
                offset, shape = _mappable(file, path.stat().st_size)
        except FileNotFoundError as error:
            raise DamagedCache(f"{path} is gone, as when a writer merged shards: run this again") from error
        except _NO_SHARD as error:
            raise DamagedCache(f"{path} is not a shard of this format: {fault(error)}") from error
        if shape != (len(keys), math.prod(header.row_shape)):
            raise DamagedCache(f"{path} holds {shape} features for {len(keys)} keys of {header.row_shape}")
        if not _all_finite(path, offset, math.prod(shape)):
            raise DamagedCache(f"{path} has a feature that is not finite, which no shard has")
        rows: Float16Array = np.memmap(path, dtype=layout.FEATURE_DTYPE, mode="r", offset=offset, shape=shape)
        return cls(path, header, keys, rows)

    def read(self) -> Float16Array:
        """The rows, read whole and checked again: what was sound when it was opened may not be by now."""
        data = self.path.read_bytes()
        promised = layout.parse_shard_name(self.path.name)
        if promised is None or promised != (xxhash.xxh3_128_hexdigest(data), len(data)):
            raise DamagedCache(f"{self.path} is damaged: it changed after it was opened")
        assert isinstance(self.rows, np.memmap)
        offset, count = int(self.rows.offset), self.rows.size
        return np.frombuffer(data, layout.FEATURE_DTYPE, count, offset).reshape(self.rows.shape)


@dataclass(frozen=True)
class Part:
    """Rows of one shard: `positions` in the keys that were asked for, `rows` in the shard."""

    shard: Shard
    positions: Positions
    rows: Positions

    def blocks(self, source: Float16Array, size: int) -> Iterator[tuple[Positions, Float16Array]]:
        """Positions and rows (n, D), n at most `size`, of all the shard's rows `source`."""
        for start in range(0, len(self.positions), size):
            some = slice(start, start + size)
            yield self.positions[some], source[self.rows[some]]


def _check_bytes(path: Path, name: str) -> None:
    promised = layout.parse_shard_name(name)
    if promised is None:
        raise DamagedCache(f"{path} is not named as a shard is")
    digest, size = promised
    found = path.stat().st_size
    if found != size:
        raise DamagedCache(f"{path} has {found} bytes, its name says {size}")
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            state.update(block)
    if state.hexdigest() != digest:
        raise DamagedCache(f"{path} is damaged: its bytes do not have the digest in its name")


def _read_header(file: h5py.File) -> ShardHeader:
    version = int(file.attrs[layout.ATTR_FORMAT])
    if version != layout.FORMAT_VERSION:
        raise ValueError(f"format {version}, expected {layout.FORMAT_VERSION}")
    row_shape = tuple(int(n) for n in file.attrs[layout.ATTR_ROW_SHAPE])
    provenance = json.loads(file.attrs[layout.ATTR_PROVENANCE])
    if not row_shape or min(row_shape) < 1 or not isinstance(provenance, dict):
        raise ValueError("a row shape without features, or provenance that is not an object")
    base, augmentation, basis = (
        str(file.attrs[name]) for name in (layout.ATTR_BASE, layout.ATTR_AUGMENTATION, layout.ATTR_BASIS)
    )
    return ShardHeader(base, row_shape, augmentation, basis, provenance)


def _read_keys(file: h5py.File, augmented: bool) -> PackedKeys:
    """The distinct keys of the rows; `augmented` says whether views of the recipe may be among them."""
    stored = [_own(file, name) for name in (layout.DIGESTS, layout.VIEWS)]
    if max(dataset.nbytes for dataset in stored) > file.id.get_filesize():
        raise ValueError("more keys than the file has room for")
    digests, views = (dataset[()] for dataset in stored)
    if digests.dtype != np.uint8 or digests.shape != (len(views), 32) or views.dtype != layout.VIEW_DTYPE:
        raise ValueError(f"digests of shape {digests.shape} for {len(views)} views")
    names = [view.decode("ascii") for view in set(views.tolist())]
    if any(name.startswith("dense:") for name in names):
        raise ValueError("it holds dense views, which this version of Headgraft no longer uses")
    if not all(map(layout.is_view, names)) or (any(map(layout.is_augmented, names)) and not augmented):
        raise ValueError("a view that this format does not know, or an augmented one without its recipe")
    keys = join_keys(digests, views)
    if len(np.unique(keys)) != len(keys):
        raise ValueError("two rows of one key")
    return keys


def _own(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of the file itself: a link or external storage would have HDF5 open other files."""
    here = isinstance(file.get(name, getlink=True), h5py.HardLink)
    dataset = file[name] if here else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ValueError(f"{name} is not a dataset of the file itself")
    return dataset


def _all_finite(path: Path, offset: int, count: int) -> bool:
    """By their bits, ten times faster than `isfinite`: from infinity on, nothing is a number.

    Read block by block: through a map, all of a cache would become resident memory.
    """
    for start in range(0, count, _BLOCK):
        block = np.fromfile(path, "<i2", min(_BLOCK, count - start), offset=offset + 2 * start)
        if not block.size or block.max() >= _INFINITY or block.view(np.uint16).max() >= _NEGATIVE_INFINITY:
            return False
    return True


def _mappable(file: h5py.File, size: int) -> tuple[int, tuple[int, ...]]:
    """Offset and shape of the features, if they may be mapped without HDF5."""
    features = _own(file, layout.FEATURES)
    offset = features.id.get_offset()
    plain = features.chunks is None and features.dtype.str == layout.FEATURE_DTYPE and features.ndim == 2
    if not plain or offset is None:
        raise ValueError("features must be one contiguous two-dimensional <f2 dataset, allocated in the file")
    if offset % 2 or offset + features.nbytes > size or features.id.get_storage_size() != features.nbytes:
        raise ValueError("features reach outside the file")
    return offset, features.shape
