"""A data set as a CSV of path,label, and split and group if it has them: as spreadsheets and other systems write it."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from cache.index import UNLABELLED
from cache.records import fault
from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import EXTENSIONS
from pipeline.inputs.folders import Listed, refuse_other_locale
from pipeline.inputs.splits import SPLIT_NAMES, is_unlabelled, split_of

_COLUMNS = ("path", "label")
_OPTIONAL = ("split", "group")
_EXPECTED = "expected a folder of images, or a CSV file with the columns path,label,split"
_DELIMITERS = ",;\t"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def list_csv(file: Path, root: Path) -> tuple[list[Listed], list[str]]:
    """The files that a CSV names, and lines on what was read otherwise than it stands there; `root` is its folder.

    A row without a label, whose split is empty or `unlabelled`, is an unlabelled image. Columns are separated by
    commas, semicolons or tabs, in UTF-8 or UTF-16. ImageSetError where it cannot be used.
    """
    if file.suffix.lower() in EXTENSIONS:
        raise ImageSetError(f"{file} is an image, {_EXPECTED}; headgraft predict names what is in one image")
    try:
        rows = dict(_rows(file))
    except (csv.Error, UnicodeError) as error:
        raise ImageSetError(f"{file} is not a CSV file ({fault(error)}), {_EXPECTED}") from error
    if not rows:
        raise ImageSetError(f"{file} has no row below its header, expected one for each image")
    refuse_other_locale(root / cells[0] for cells in rows.values())
    paths = {number: _found(root / cells[0]) for number, cells in rows.items()}
    if missing := [number for number, path in paths.items() if not path.is_file()]:
        raise ImageSetError(
            f"{file} names {counted(len(missing), 'file')} not there, the first in line {missing[0]}: "
            f"{named(paths[missing[0]])}"
        )
    count = Counter(paths.values())
    if twice := next((number for number, path in paths.items() if count[path] > 1), 0):
        raise ImageSetError(
            f"{file} names a file twice, the first in line {twice}: {named(paths[twice])}; give each one label and one "
            "split"
        )
    blank = [number for number, (_, label, *_) in rows.items() if label != label.strip()]
    trimmed = f"{file.name}: blanks around {counted(len(blank), 'label')} left out, the first in line"
    notes = [f"{trimmed} {blank[0]}"] if blank else []
    files = [
        Listed(paths[number], label.strip(), split_of(split) if label.strip() else UNLABELLED, group=group.strip())
        for number, (_, label, split, group) in rows.items()
    ]
    return files, notes


def _rows(file: Path) -> Iterator[tuple[int, tuple[str, str, str, str]]]:
    """Line number, and path, label, split and group ("" for none) as they stand there, of each row."""
    with open(file, "rb") as raw:
        encoding = "utf-16" if raw.read(2) in _UTF16 else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"  # names of files may be other bytes
    with open(file, newline="", encoding=encoding, errors=errors) as lines:
        header = lines.readline()
        lines.seek(0)
        delimiter = next((sign for sign in _DELIMITERS if set(_COLUMNS) <= set(_names(header, sign))), ",")
        names = _names(header, delimiter)
        if not set(_COLUMNS) <= set(names):
            columns = ", ".join(names)
            readable = columns and columns.isascii() and columns.isprintable()
            found = f"starts with the line {named(header.strip()[:60])!r}" if readable else "is not such a table"
            raise ImageSetError(f"{file} {found}, {_EXPECTED}")
        if "split" not in names and (near := get_close_matches("split", names, 1)):
            raise ImageSetError(f"{file} has a column {near[0]!r}: rename it to split, or leave it out")
        reader = csv.reader(lines, delimiter=delimiter)
        next(reader)
        for row in filter(None, reader):
            cells = dict(zip(names, row, strict=False))
            path, label, split, group = (cells.get(column, "") for column in (*_COLUMNS, *_OPTIONAL))
            wide = f"{len(row)} cells for {len(names)} columns" if any(row[len(names) :]) else ""
            if lacks := wide or _lacks(path, label, split if "split" in names else None, group):
                known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
                raise ImageSetError(
                    f"{file}, line {reader.line_num} has {lacks}, expected a path, a label and one of {known}, or a "
                    "path alone for an unlabelled image: fix it"
                )
            yield reader.line_num, (path, label, split, group)


def _names(header: str, delimiter: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]


def _lacks(path: str, label: str, split: str | None, group: str) -> str:
    """What a row has not that it needs; a `split` of None is chosen later."""
    if not path or "\0" in label:
        return "no usable label" if path else "no path"
    if not label.strip() and split and split.strip() and not is_unlabelled(split):
        return f"no usable label and the split {split!r}"
    if label.strip() and is_unlabelled(split or ""):
        return f"the label {label!r} and the split {split!r}"
    if any("\udc80" <= sign <= "\udcff" for sign in label):
        return f"a label that is not UTF-8 text ({named(label)}; save the file as UTF-8)"
    if not group.isprintable():
        return f"the group {group!r}"
    return "" if split is None or split_of(split) or not label.strip() else f"the split {split!r}"


def _found(path: Path) -> Path:
    """`path` made plain, where there is a file; else the path that a Windows program meant."""
    plain = Path(os.path.normpath(path))
    other = Path(os.path.normpath(str(path).replace("\\", "/")))
    return other if other != plain and not plain.is_file() and other.is_file() else plain
