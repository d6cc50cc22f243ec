"""What is odd in files that are decoded all the same: collected by kind, so that a person reads a line for each."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image

from pipeline.console import counted, named

FRAMES = "more than one page or frame; only the first is read"
METADATA = "damaged metadata; the pixels are read"
PROFILE = "a colour profile other than sRGB; it is ignored"

_collecting = threading.local()


class Remarks(dict[str, tuple[int, str]]):
    """By kind: how many files it is true of, and the first of them with details."""

    def add(self, path: object, remarks: dict[str, str]) -> None:
        """Count a file's `remarks`, details by kind."""
        for kind, detail in remarks.items():
            self.merge({kind: (1, f"{named(path)} ({named(detail)})" if detail else named(path))})

    def merge(self, other: Mapping[str, tuple[int, str]]) -> None:
        """Add others, such as those that another process has collected."""
        for kind, (count, first) in other.items():
            before, kept = self.get(kind, (0, first))
            self[kind] = before + count, kept

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [
            f"{counted(count, 'file')} with {kind}: {first}{f' and {count - 1} more' if count > 1 else ''}"
            for kind, (count, first) in self.items()
        ]


@contextmanager
def collected(remarks: dict[str, str]) -> Iterator[None]:
    """While this thread decodes one file, warnings of Pillow go into `remarks`, if `catching_warnings` is active."""
    _collecting.remarks = remarks
    try:
        yield
    finally:
        _collecting.remarks = None


@contextmanager
def catching_warnings() -> Iterator[None]:
    """Have every warning that is raised while a thread decodes a file become a remark of that file.

    The filters of Python's warnings belong to the process, so this surrounds the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"(PIL|pillow_heif)\.")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit stands in for it
        shown = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            remarks = getattr(_collecting, "remarks", None)
            if remarks is None:
                shown(message, category, *where, **more)
            else:
                remarks.setdefault(METADATA, str(message).strip())

        warnings.showwarning = note
        yield
