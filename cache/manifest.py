"""Everything that decides the stored numbers, as canonical JSON with a digest."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from msgspec import Meta

from cache.errors import CacheError, DamagedCache, ManifestMismatch
from cache.files import read_undamaged, write_atomically
from cache.layout import FEATURE_DTYPE, FORMAT_VERSION, LARGEST_SIDE
from cache.records import Count, Digest, convert, fault

T = TypeVar("T")

LARGEST_ROW = 1 << 24  # features
Side = Annotated[int, Meta(ge=1, le=2 * LARGEST_SIDE)]  # pixels
Number = int | float  # as it was written: digests tell 0 from 0.0
Positive = Annotated[int, Meta(gt=0)] | Annotated[float, Meta(gt=0)]
_RESTORE = "restore it, or extract again into another folder"
_ADVICE = "Ask for what the cache has, or extract into another folder (--cache DIR)."


def canonical_json(value: object) -> bytes:
    """The one spelling of `value` that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_digest(value: object) -> str:
    """SHA-256 (64 hex digits) of `value` in canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sealed(body: dict[str, Any], indent: int | None = None, version: int = FORMAT_VERSION) -> bytes:
    """The bytes of a file with `body`, its format version and its digest."""
    stored = {"format": version, **body, "sha256": json_digest(body)}
    return json.dumps(stored, indent=indent).encode("ascii")


def read_sealed(
    data: bytes,
    parse: Callable[[dict[str, Any]], T],
    path: Path | str,
    what: str,
    advice: str,
    seal: str = "sha256",
    newer: Mapping[int, Callable[[dict[str, Any]], T]] | None = None,
) -> T:
    """What `parse` makes of the bytes of a sealed file; `seal` is the field with its digest.

    `newer` parses further format versions. DamagedCache where the digest does not hold or parsing raises ValueError,
    CacheError for another format version. Messages call the file `path` and `what` it should be, and end in `advice`.
    """
    parsers = {FORMAT_VERSION: parse, **(newer or {})}
    try:
        stored = json.loads(data)
        digest = stored.pop(seal)
        # Unlike other files, a manifest has its version in what the digest covers.
        version = stored.pop("format") if seal == "sha256" else stored["base"]["format"]
        expected = json_digest(stored)  # ValueError for NaN, RecursionError for nesting without end
        known = version in parsers
        found = parsers[version](stored) if known and digest == expected else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCache(f"{path} is not {what} ({fault(error)}); {advice}") from error
    if not known:
        raise CacheError(
            f"{path} is of format {version!r}, this program reads format {' and '.join(map(str, parsers))}: "
            "use the version of headgraft that wrote it"
        )
    if found is None:
        raise DamagedCache(f"{path} was changed after it was written; {advice}")
    return found


@dataclass(frozen=True)
class Base:
    """What decides the numbers of every row.

    `row_shape` is the shape of one row of the layer, (512, 7, 7) for VGG16; `input_size` and `resize`
    are pixels; `mean` and `std` are per RGB channel of pixels scaled to 0..1.
    """

    backbone: str
    layer: str
    weights_digest: Digest
    row_shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=LARGEST_ROW)], ...], Meta(min_length=1, max_length=8)]
    input_size: Side
    resize: Side
    interpolation: str
    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]
    decoding: str
    precision: str
    dtype: Literal["<f2"] = FEATURE_DTYPE
    format: Literal[1] = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of these fields in canonical JSON."""
        return json_digest(asdict(self))


@dataclass(frozen=True)
class Augmentation:
    """What else decides the numbers of passes above 0; the recipe's parameters belong to its version."""

    recipe: str
    version: Count
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 of these fields in canonical JSON."""
        return json_digest(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """A cache's identity; `augmentation` is None until the first augmented pass."""

    base: Base
    augmentation: Augmentation | None = None

    @property
    def recipes(self) -> tuple[str, ...]:
        """What shards of the cache may name as their augmentation."""
        return ("", self.augmentation.digest) if self.augmentation else ("",)

    def merged_with(self, asked: "Manifest", where: Path | str, advice: str = _ADVICE) -> "Manifest":
        """This manifest, able to hold rows of `asked` too; a difference is refused field by field, with advice."""
        lines = _differences(self.base, asked.base)
        if self.augmentation and asked.augmentation:
            lines += _differences(self.augmentation, asked.augmentation)
        if lines:
            raise ManifestMismatch(
                f"the cache {where} was made with other settings:\n"
                + "\n".join(f"  {line}" for line in lines)
                + f"\n{advice}"
            )
        return Manifest(self.base, self.augmentation or asked.augmentation)

    def save(self, path: Path) -> None:
        """Write manifest.json whole or not at all."""
        write_atomically(path, self.as_json())

    def as_json(self) -> bytes:
        """The bytes of manifest.json."""
        body = asdict(self)
        return json.dumps({**body, "digest": json_digest(body)}, indent=1).encode()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read manifest.json; a damaged one, or one of another format version, is an error that says so."""
        return cls.from_json(read_undamaged(path, _RESTORE), path)

    @classmethod
    def from_json(cls, data: bytes, path: Path | str) -> Self:
        """The manifest of the bytes of manifest.json, which `path` names in messages."""
        return read_sealed(data, cls.parse, path, "a manifest", _RESTORE, "digest")

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Self:
        """The manifest of the fields of manifest.json; ValueError says what no manifest has."""
        found = convert(stored, cls)
        base = found.base
        if math.prod(base.row_shape) > LARGEST_ROW or base.resize < base.input_size:
            raise ValueError(f"rows of {base.row_shape}, {base.input_size} pixels of {base.resize}")
        return found


def _differences(found: Base | Augmentation, asked: Base | Augmentation) -> list[str]:
    pairs = ((f.name, getattr(found, f.name), getattr(asked, f.name)) for f in fields(found))
    return [
        f"{name}: the cache has {_short(have)}, asked for {_short(want)}" for name, have, want in pairs if have != want
    ]


def _short(value: object) -> str:
    """As a person reads it: of a digest the first digits."""
    return f"{str(value)[:12]}…" if re.fullmatch("[0-9a-f]{64}", str(value)) else repr(value)
