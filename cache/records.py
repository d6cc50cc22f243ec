"""Records in JSON files as dataclasses: one decoding for types, bounds and unknown fields (msgspec)."""

from dataclasses import fields, is_dataclass
from json import JSONDecodeError
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from cache.errors import HeadgraftError

T = TypeVar("T")

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]  # SHA-256
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]


def convert(stored: object, kind: type[T]) -> T:
    """Parsed JSON as a dataclass, whose annotations give types and bounds; True is not a number, nor 1.0 a count.

    ValueError names the first field that is missing, unknown, of another type or out of bounds.
    """
    found = msgspec.convert(stored, kind)  # ValidationError is a ValueError
    _refuse_unknown(stored, found)
    return found


def fault(error: BaseException) -> str:
    """Why a record cannot be used: what our own checks and the system say, without the words of Python's libraries."""
    if isinstance(error, JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    ours = type(error) is ValueError or isinstance(error, msgspec.ValidationError | HeadgraftError)
    return str(error) if ours else getattr(error, "strerror", None) or "it cannot be decoded"


def _refuse_unknown(stored: Any, found: Any) -> None:
    if not is_dataclass(found) or not isinstance(stored, dict):
        return
    known = {field.name for field in fields(found)}
    if unknown := sorted(stored.keys() - known):
        raise ValueError(f"Unknown field `{unknown[0]}`"[:200])
    for name, value in stored.items():
        _refuse_unknown(value, getattr(found, name))
