"""What filling a cache took: a line of JSON for each time that rows were computed. No part of any identity."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from cache import layout
from cache.files import append_line, read_regular
from cache.records import Count, Seconds


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
    append_line(cache / layout.HISTORY_FILE, json.dumps(asdict(entry), separators=(",", ":")).encode())


def read_history(cache: Path) -> tuple[list[Extraction], int]:
    """The entries, oldest first, and how many lines are none: cut short by a kill, say. Empty where none was kept."""
    path = cache / layout.HISTORY_FILE
    lines = read_regular(path).splitlines() if path.is_file() else []
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # ValidationError is a ValueError
            entries.append(msgspec.convert(json.loads(line), Extraction))  # earlier versions wrote one field more
    return entries, len(lines) - len(entries)
