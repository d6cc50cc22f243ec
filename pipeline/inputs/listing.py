"""Which files a data set has: folders with splits, one folder of classes, or a CSV."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.console import named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import EXTENSIONS

_SPLIT_OF = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
_COLUMNS = ("path", "label", "split")
_DEEPEST = 100  # folders inside one another


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as found; `split` "" is still to be chosen."""

    path: Path
    label: str
    split: str
    fault: str = ""  # why it cannot be an image of the set


def list_files(data: Path, train_needed: bool = True) -> tuple[Path, list[Listed]]:
    """Root of the records' paths, and every image file with label and split ("" where it is still to be chosen).

    ImageSetError where `data` is neither a folder of one of these forms nor a CSV with path,label,split.
    """
    if data.is_file():
        return data.parent, _list_csv(data)
    if not data.is_dir():
        raise ImageSetError(f"{data} does not exist, expected a folder of images or a CSV file")
    folders = {folder.name: folder for folder in _folders(data)}
    splits = {name: folder for name, folder in folders.items() if name in _SPLIT_OF}
    if "train" in splits or (splits and folders.keys() <= _SPLIT_OF.keys() and not train_needed):
        return data, [item for name, folder in splits.items() for item in _list_classes(data, folder, _SPLIT_OF[name])]
    if folders and folders.keys() <= _SPLIT_OF.keys():
        raise ImageSetError(f"{data} has {', '.join(sorted(folders))} but no train folder, expected one")
    _refuse_wrong_level(data, folders)
    return data, _list_classes(data, data, "")


def _refuse_wrong_level(data: Path, folders: dict[str, Path]) -> None:
    """A split given for the whole set, a folder above it, or images without class folders."""
    siblings = {folder.name for folder in _folders(data.absolute().parent)}
    if data.name in _SPLIT_OF and len(siblings & _SPLIT_OF.keys()) > 1:
        raise ImageSetError(f"{data} is one split of a data set; did you mean {data.parent}?")
    for folder in folders.values():
        if (folder / "train").is_dir():
            raise ImageSetError(f"{data} is not a data set, but holds one; did you mean {folder}?")
    if not folders and any(_is_image(entry) for entry in data.iterdir()):
        raise ImageSetError(
            f"{data} holds images but no class folders, expected a folder per class; "
            f"did you mean {data.absolute().parent}?"
        )


def _list_classes(root: Path, folder: Path, split: str) -> list[Listed]:
    above = (root.resolve(), folder.resolve())
    entries = ((label.name, entry) for label in _folders(folder) for entry in _entries_below(root, label, above))
    return [Listed(path, label, split, fault) for label, (path, fault) in entries]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return _is_named_image(path) and not path.is_dir()


def _is_named_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in EXTENSIONS


def _entries_below(root: Path, folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Image files in `folder` at any depth with "", and with the reason what cannot be looked into."""
    here = folder.resolve()
    if fault := _folder_fault(root, here, above):
        yield folder, fault
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_folder(entry)) for entry in found)
    except OSError as error:
        yield folder, f"cannot be listed: {error.strerror}"
        return
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _entries_below(root, folder / name, (*above, here))
        elif _is_named_image(entry := folder / name):
            yield entry, ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Without asking the system about each file, links aside: the folder says which it is."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _folder_fault(root: Path, here: Path, above: tuple[Path, ...]) -> str:
    """Why the folder that resolves to `here` is not looked into; "" where it is."""
    if here in above:
        return "a link to a folder above it, a loop"
    if not here.is_relative_to(root.resolve()):
        return f"a link to a folder outside {root}; only links to files are followed there"
    return f"a folder in {_DEEPEST} others, more than are looked into" if len(above) > _DEEPEST else ""


def _list_csv(file: Path) -> list[Listed]:
    expected = f"expected a folder of images, or a CSV file with the columns {','.join(_COLUMNS)}"
    with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        try:
            columns = ", ".join(map(named, reader.fieldnames or ()))
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                found = f"has the columns {columns[:60]}" if columns.isascii() and columns else "is no such table"
                raise ImageSetError(f"{file} {found}, {expected}")
            listed = [_csv_row(file, number, row) for number, row in enumerate(reader, 2)]
        except csv.Error as error:
            raise ImageSetError(f"{file} is not a CSV file ({error}), {expected}") from error
    missing = [str(item.path) for item in listed if not item.path.is_file()]
    if missing:
        raise ImageSetError(f"{file} names {len(missing)} files that are not there, the first {named(missing[0])}")
    twice = [path for path, count in Counter(item.path for item in listed).items() if count > 1]
    if twice:
        raise ImageSetError(
            f"{file} names a file twice, the first {named(twice[0])}; give each file one label and one split"
        )
    if not listed:
        raise ImageSetError(f"{file} has no row below its header, expected one for each image")
    return listed


def _csv_row(file: Path, number: int, row: dict[str, str | None]) -> Listed:
    path, label, split = row["path"], row["label"], row["split"]
    if not path or not label or "\0" in label or split not in _SPLIT_OF:
        lacks = "no path" if not path else "no usable label" if not label or "\0" in label else f"the split {split!r}"
        raise ImageSetError(
            f"{file}, line {number} has {lacks}, expected a path, a label and one of {', '.join(_SPLIT_OF)}: mend it"
        )
    return Listed(file.parent / path, label, _SPLIT_OF[split])


def extensions() -> str:
    """The image files that are looked for, in words."""
    return ", ".join(sorted(EXTENSIONS))
