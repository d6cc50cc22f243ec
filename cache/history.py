"""What filling a cache took: a line of JSON for each time that rows were computed. No part of any identity."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cache import layout
from cache.errors import CacheError
from cache.files import append_line, read_regular
from cache.records import Count, Seconds, convert


@dataclass(frozen=True)
class Extraction:
    """One extraction that computed rows, also one that was stopped.

    Attributes:
        when: UTC, ISO 8601.
        set: name of the image set.
        images: files of the set.
        computed: rows.
        reused: rows that were in the cache.
        seconds: of the whole command.
        warmup_seconds: of it before the first row.
        images_per_second: rows a second after that.
        phases: seconds of decoding, computing and writing, which overlap.
        passes: augmented passes that were asked for.
        device: kind of device.
    """

    when: str
    set: str
    images: Count
    computed: Count
    reused: Count
    seconds: Seconds
    warmup_seconds: Seconds
    images_per_second: Seconds
    phases: dict[str, Seconds]
    passes: Count
    device: str


def record_extraction(cache: Path, entry: Extraction) -> None:
    """Append `entry` to the history of the cache folder; CacheError where the disk does not keep it."""
    path = cache / layout.HISTORY_FILE
    try:
        append_line(path, json.dumps(asdict(entry), separators=(",", ":")).encode())
    except OSError as error:
        raise CacheError(f"could not write {path}: {error.strerror}; the rows are kept: run extract again") from error


def read_history(cache: Path) -> tuple[list[Extraction], int]:
    """The entries, oldest first, and how many lines are none: cut short by a kill, say. Empty where none was kept."""
    path = cache / layout.HISTORY_FILE
    if not path.is_file():
        return [], 0
    found = [_entry(line) for line in read_regular(path).splitlines()]
    entries = [entry for entry in found if entry is not None]
    return entries, len(found) - len(entries)


def _entry(line: bytes) -> Extraction | None:
    try:
        stored = json.loads(line)
        if isinstance(stored, dict):
            stored.pop("dense", None)  # what versions wrote that had dense views
        return convert(stored, Extraction)
    except (ValueError, RecursionError):
        return None
