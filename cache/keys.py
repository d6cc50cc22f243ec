"""Row keys, one by one and in bulk: as arrays they take 48 bytes each, as Python objects some hundreds."""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from cache import layout

RowKey = tuple[bytes, str]  # (SHA-256 of the image file, view)
PackedKeys = npt.NDArray[np.bytes_]  # (N,) S48: the digest, then the view, which never ends in a zero byte
Digests = npt.NDArray[np.uint8]  # (N, 32)
Places = npt.NDArray[np.int64]

_PACKED = np.dtype("S48")


def pack_keys(keys: Iterable[RowKey]) -> PackedKeys:
    """Keys as one array, in their order."""
    return np.array([digest + view.encode("ascii") for digest, view in keys], dtype=_PACKED)


def unpack_keys(packed: PackedKeys) -> list[RowKey]:
    """The keys of an array, in its order; each view's name is in memory once."""
    return [(key[:32], sys.intern(key[32:].decode("ascii"))) for key in packed.tolist()]


def join_keys(digests: Digests, views: npt.NDArray[np.bytes_]) -> PackedKeys:
    """Digests and views (N,) S16, as a shard stores them, as one array."""
    letters = np.ascontiguousarray(views).view(np.uint8).reshape(len(views), 16)
    return np.concatenate([digests, letters], axis=1).view(_PACKED).reshape(len(views))


def split_keys(packed: PackedKeys) -> tuple[Digests, npt.NDArray[np.bytes_]]:
    """Digests (N, 32) and views (N,) S16 of keys."""
    letters = np.ascontiguousarray(packed).view(np.uint8).reshape(len(packed), _PACKED.itemsize)
    views = np.ascontiguousarray(letters[:, 32:]).view(layout.VIEW_DTYPE).reshape(len(packed))
    return np.ascontiguousarray(letters[:, :32]), views


def digest_ends(packed: PackedKeys) -> npt.NDArray[np.uint64]:
    """The last eight bytes of the digest of each key, as a big-endian number, (N,)."""
    digests, _ = split_keys(packed)
    return np.ascontiguousarray(digests[:, 24:]).view(">u8").reshape(len(packed)).astype(np.uint64)


def keys_of(digests: Digests, view: str) -> PackedKeys:
    """The keys of one view of `digests` (N, 32), in their order."""
    return join_keys(digests, np.full(len(digests), view, dtype=layout.VIEW_DTYPE))


def pack_digests(digests: Iterable[str]) -> Digests:
    """SHA-256 of images, 64 hex digits each, as an array (N, 32)."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(-1, 32)


class KeyTable:
    """In which of several key arrays, and where in it, each key is found first."""

    def __init__(self, parts: Sequence[tuple[int, PackedKeys]]) -> None:
        self._keys, first = np.unique(np.concatenate([np.empty(0, _PACKED), *(k for _, k in parts)]), return_index=True)
        numbers = [np.full(len(keys), number, dtype=np.int32) for number, keys in parts]
        rows = [np.arange(len(keys), dtype=np.int32) for _, keys in parts]
        self._parts = np.concatenate([np.empty(0, np.int32), *numbers])[first]
        self._rows = np.concatenate([np.empty(0, np.int32), *rows])[first]

    def __len__(self) -> int:
        """Distinct keys."""
        return len(self._keys)

    @property
    def keys(self) -> PackedKeys:
        """The distinct keys, sorted."""
        return self._keys

    @property
    def used(self) -> set[int]:
        """Parts that some key is found in."""
        return set(np.unique(self._parts).tolist())

    def find(self, keys: PackedKeys) -> tuple[Places, Places]:
        """Part and row of each of `keys`, (N,) each; -1 for a key that is nowhere."""
        if not len(self):
            nowhere = np.full(len(keys), -1)
            return nowhere, nowhere.copy()
        place = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        found = self._keys[place] == keys
        return np.where(found, self._parts[place], -1), np.where(found, self._rows[place], -1)
