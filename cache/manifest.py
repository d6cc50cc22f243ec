"""Everything that decides the stored numbers, as canonical JSON with a digest."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from cache.errors import CacheError, DamagedCache, ManifestMismatch
from cache.files import read_regular, write_atomically
from cache.layout import FEATURE_DTYPE, FORMAT_VERSION, LARGEST_SIDE

T = TypeVar("T")

LARGEST_ROW = 1 << 24  # features
_ADVICE = "Ask for what the cache has, or extract into another folder (--cache DIR)."


def canonical_json(value: object) -> bytes:
    """The one spelling of `value` that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_digest(value: object) -> str:
    """SHA-256 (64 hex digits) of `value` in canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True)
class Base:
    """What decides the numbers of every row.

    `row_shape` is the shape of one row of the layer, (512, 7, 7) for VGG16; `input_size` and `resize`
    are pixels; `mean` and `std` are per RGB channel of pixels scaled to 0..1.
    """

    backbone: str
    layer: str
    weights_digest: str
    row_shape: tuple[int, ...]
    input_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    decoding: str
    precision: str
    dtype: str = FEATURE_DTYPE
    format: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """SHA-256 of these fields in canonical JSON."""
        return json_digest(asdict(self))


@dataclass(frozen=True)
class Augmentation:
    """What else decides the numbers of passes above 0; the recipe's parameters belong to its version."""

    recipe: str
    version: int
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
        return cls.from_json(read_regular(path), path)

    @classmethod
    def from_json(cls, data: bytes, path: Path | str) -> Self:
        """The manifest of the bytes of manifest.json, which `path` names in messages."""
        try:
            stored = json.loads(data)
            digest, base = stored.pop("digest"), stored["base"]
            version = base["format"]
            expected = json_digest(stored)  # no NaN, and no nesting without end
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCache(f"{path} is not a manifest ({error!r}); restore it, or extract anew") from error
        if version != FORMAT_VERSION:
            raise CacheError(
                f"{path} is of format {version!r}, this program reads format {FORMAT_VERSION}: "
                "use the version of headgraft that wrote it, or extract into another folder"
            )
        if digest != expected:
            raise DamagedCache(f"{path} was changed after it was written; restore it, or extract anew")
        try:
            return cls.parse(stored)
        except ValueError as error:
            raise DamagedCache(f"{path} has {error}; restore it, or extract anew") from error

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Self:
        """The manifest of the fields of manifest.json; ValueError says what no manifest has."""
        try:
            base, augmentation = stored["base"], stored["augmentation"]
            manifest = cls(_read(Base, base), augmentation and _read(Augmentation, augmentation))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a field too many or too few ({error})") from error
        if wrong := _impossible(manifest):
            raise ValueError(f"a value that no manifest has: {wrong}")
        return manifest


def _read(kind: type[T], stored: Mapping[str, Any]) -> T:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})


def _impossible(manifest: Manifest) -> str:
    """The first field with a value of another type or beyond all bounds, and the value; "" where all are possible."""
    base, recipe = manifest.base, manifest.augmentation
    texts = {"backbone", "layer", "interpolation", "decoding", "precision"}
    possible = {
        **{name: isinstance(getattr(base, name), str) for name in texts},
        "weights_digest": is_digest(base.weights_digest),
        "row_shape": _is_shape(base.row_shape),
        "input_size": is_count(base.input_size, 1, LARGEST_SIDE),
        "resize": is_count(base.input_size) and is_count(base.resize, base.input_size, 2 * LARGEST_SIDE),
        "mean": _are_numbers(base.mean),
        "std": _are_numbers(base.std) and min(base.std) > 0,
        "dtype": base.dtype == FEATURE_DTYPE,
    }
    if recipe:
        possible |= {
            "recipe": isinstance(recipe.recipe, str),
            "version": is_count(recipe.version, 0, LARGEST_SIDE),
            "seed": type(recipe.seed) is int,
        }
    wrong = next((name for name, ok in possible.items() if not ok), None)
    if wrong is None:
        return ""
    return f"{wrong} {getattr(base if hasattr(base, wrong) else recipe, wrong)!r}"[:200]


def is_digest(value: object) -> bool:
    """Whether `value` is a SHA-256 as 64 lower-case hex digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_count(value: object, least: int = 0, most: int = 1 << 62) -> bool:
    """Whether `value` is a whole number in the range; True and 1.0 are not."""
    return type(value) is int and least <= value <= most


def _is_shape(value: Sequence[object]) -> bool:
    sides = [side for side in value if type(side) is int and 1 <= side <= LARGEST_ROW] if _is_short(value) else []
    return 0 < len(sides) == len(value) and math.prod(sides) <= LARGEST_ROW


def _are_numbers(value: Sequence[object]) -> bool:
    numbers = [n for n in value if isinstance(n, int | float) and math.isfinite(n)] if _is_short(value) else []
    return len(numbers) == len(value) == 3


def _is_short(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= 8


def _differences(found: Base | Augmentation, asked: Base | Augmentation) -> list[str]:
    pairs = ((f.name, getattr(found, f.name), getattr(asked, f.name)) for f in fields(found))
    return [
        f"{name}: the cache has {_short(have)}, asked for {_short(want)}" for name, have, want in pairs if have != want
    ]


def _short(value: object) -> str:
    """As a person reads it: of a digest the first digits."""
    return f"{str(value)[:12]}…" if is_digest(value) else repr(value)
