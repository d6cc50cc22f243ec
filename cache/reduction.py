"""What makes a cache a reduced one: the basis all its rows were reduced by, and what that cost in accuracy."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from msgspec import Meta

from cache import layout
from cache.errors import DamagedCache
from cache.files import read_undamaged, write_atomically
from cache.manifest import LARGEST_ROW, read_sealed, sealed
from cache.records import Digest, convert

_ADVICE = "restore it, or reduce the cache again"
Width = Annotated[int, Meta(ge=1, le=LARGEST_ROW)]  # features


@dataclass(frozen=True)
class Reduction:
    """How whole rows of the manifest become the rows of a reduced cache.

    `basis` is the name of the linear map and `digest` the SHA-256 of `basis.safetensors`, which holds its arrays;
    `in_features` and `out_features` are the lengths of a row before and after. `source` is the digest of what the basis
    was fitted on, `fitted_on` says that in words, and `accuracy` what heads lost by it; {} where it was not measured.
    """

    basis: str
    digest: Digest
    in_features: Width
    out_features: Width
    source: Digest
    fitted_on: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row, (R,)."""
        return (self.out_features,)

    def save(self, cache: Path) -> None:
        """Write reduction.json whole or not at all; the basis must be there already."""
        write_atomically(cache / layout.REDUCTION_FILE, sealed(asdict(self), indent=1))

    @classmethod
    def load(cls, cache: Path) -> Self | None:
        """That of the cache folder, its basis checked with it: without that its rows would say nothing.

        None where its rows are whole, DamagedCache where a file is not what was written.
        """
        path = cache / layout.REDUCTION_FILE
        if not path.exists():
            return None
        reduction = cls.from_json(read_undamaged(path, _ADVICE), path)
        reduction.read_basis(cache)
        return reduction

    @classmethod
    def from_json(cls, data: bytes, path: Path | str) -> Self:
        """The reduction of the bytes of reduction.json, which `path` names in messages."""
        return read_sealed(data, lambda stored: convert(stored, cls), path, "the record of a reduction", _ADVICE)

    def read_basis(self, cache: Path) -> bytes:
        """The bytes of `basis.safetensors`, checked against `digest`."""
        path = cache / layout.BASIS_FILE
        data = read_undamaged(path, _ADVICE)
        self.check_basis(data, path)
        return data

    def check_basis(self, data: bytes, path: Path | str) -> None:
        """DamagedCache, which names `path`, where these are not the bytes of the basis."""
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise DamagedCache(f"{path} is not the basis that the rows were reduced by: {_ADVICE}")


def save_basis(cache: Path, data: bytes) -> str:
    """Keep `data` as the cache's basis and return its digest; what was there before is replaced."""
    write_atomically(cache / layout.BASIS_FILE, data)
    return hashlib.sha256(data).hexdigest()
