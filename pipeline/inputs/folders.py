"""What a folder holds: folders, images, and what is not read; links are followed, hidden entries left out."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cache.errors import install_hint
from pipeline.console import named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import EXTENSIONS, HEIF, HEIF_EXTENSIONS


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as found; `split` "" is still to be chosen."""

    path: Path
    label: str
    split: str
    fault: str = ""  # why it cannot be an image of the set
    group: str = ""  # of images that are no independent evidence; "" for none


class Kind(Enum):
    """What an entry of a folder is."""

    FOLDER = "a folder, or a link to one"
    IMAGE = "named as an image that is read"
    BROKEN = "a link whose target is not there"
    UNREAD = "a file of another kind"


def entries_of(folder: Path) -> list[tuple[Path, Kind]]:
    """Entries of `folder` by name, hidden ones aside; OSError where it cannot be listed."""
    return [(folder / name, kind) for name, kind in sorted(_entries(folder), key=lambda entry: entry[0])]


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder`, by name; none where it cannot be listed, which whoever reads the folder reports."""
    try:
        return [folder / name for name in sorted(name for name, kind in _entries(folder) if kind is Kind.FOLDER)]
    except OSError:
        return []


def holds_images(folder: Path) -> bool:
    """Whether an image that is read lies in `folder` itself; not where it cannot be listed."""
    try:
        return any(kind is Kind.IMAGE for _, kind in _entries(folder))
    except OSError:
        return False


def _entries(folder: Path) -> Iterator[tuple[str, Kind]]:
    with os.scandir(folder) as found:
        yield from ((entry.name, _kind(entry)) for entry in found if not entry.name.startswith("."))


def _kind(entry: os.DirEntry[str]) -> Kind:
    """Without asking the system about each file, links aside: the folder says which it is."""
    try:
        if entry.is_dir():
            return Kind.FOLDER
        broken = entry.is_symlink() and not entry.stat()
    except OSError:  # a link to nothing, to itself, or to where nobody may look
        broken = True
    _, dot, extension = entry.name.rpartition(".")
    if dot + extension.lower() in EXTENSIONS:
        return Kind.IMAGE
    return Kind.BROKEN if broken else Kind.UNREAD


def refuse_other_locale(paths: Iterable[Path]) -> None:
    """ImageSetError for names outside ASCII where the locale is not UTF-8: elsewhere they would be other names."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and (path := next((path for path in paths if not str(path).isascii()), None)):
        raise ImageSetError(
            f"{named(path)} has a name that this locale reads as {encoding}, expected UTF-8: set PYTHONUTF8=1, or "
            "LC_ALL=C.UTF-8"
        )


def extension(path: Path) -> str:
    """The extension that a file is counted under, with its dot, in lower case."""
    return path.suffix.lower() or "no extension"


def shown(names: list[str], count: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def unread_line(unread: Mapping[str, int]) -> str:
    """How many files are not read, by extension, most of them first; "" for none."""
    if not unread:
        return ""
    count = sum(unread.values())
    of = "file of another kind is" if count == 1 else "files of other kinds are"
    kinds = [f"{name} {number}" for name, number in sorted(unread.items(), key=lambda item: (-item[1], item[0]))]
    heif = "" if HEIF or not HEIF_EXTENSIONS & unread.keys() else f" (for HEIC and HEIF {install_hint('heif')})"
    return f"{count} {of} not read: {shown(kinds)}{heif}"
