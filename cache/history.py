"""What filling a cache took: a line of JSON for each time that rows were computed. No part of any identity."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cache import layout
from cache.errors import CacheError
from cache.files import read_regular

_NUMBERS = ("images", "computed", "seconds", "warmup_seconds")


def record_extraction(cache: Path, entry: Mapping[str, Any]) -> None:
    """Append `entry` to the history of the cache folder; CacheError where the disk does not keep it."""
    path = cache / layout.HISTORY_FILE
    try:
        with open(path, "a+b") as file:
            torn = file.tell() > 0 and _last_byte(file) != b"\n"  # a line that a kill cut short stays its own
            file.write(b"\n" * torn + json.dumps(dict(entry), separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CacheError(f"could not write {path}: {error.strerror}; the rows are kept: run extract again") from error


def read_history(cache: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries, oldest first, and how many lines are none: cut short by a kill, say. Empty where none was kept."""
    path = cache / layout.HISTORY_FILE
    if not path.is_file():
        return [], 0
    found = [_entry(line) for line in read_regular(path).splitlines()]
    entries = [entry for entry in found if entry is not None]
    return entries, len(found) - len(entries)


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("phases"), dict)
        or not isinstance(entry.get("set"), str)
    ):
        return None
    values = [*(entry.get(name) for name in _NUMBERS), *entry["phases"].values()]
    return entry if all(type(value) in (int, float) and 0 <= value < math.inf for value in values) else None
