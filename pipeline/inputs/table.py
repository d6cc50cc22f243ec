"""A data set as a CSV of path,label,split: as spreadsheets and other systems write it."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import EXTENSIONS
from pipeline.inputs.folders import Listed, refuse_other_locale
from pipeline.inputs.splits import SPLIT_NAMES, split_of

_COLUMNS = ("path", "label", "split")
_EXPECTED = f"expected a folder of images, or a CSV file with the columns {','.join(_COLUMNS)}"
_DELIMITERS = ",;\t"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def list_csv(file: Path, root: Path) -> tuple[list[Listed], list[str]]:
    """The files that a CSV names, and lines on what was read otherwise than it stands there; `root` is its folder.

    Columns are separated by commas, semicolons or tabs, in UTF-8 or UTF-16. ImageSetError where it cannot be used.
    """
    if file.suffix.lower() in EXTENSIONS:
        raise ImageSetError(f"{file} is an image, {_EXPECTED}; headgraft predict names what is in one image")
    try:
        rows = list(_rows(file, root))
    except (csv.Error, UnicodeError) as error:
        raise ImageSetError(f"{file} is not a CSV file ({error}), {_EXPECTED}") from error
    if not rows:
        raise ImageSetError(f"{file} has no row below its header, expected one for each image")
    refuse_other_locale(item.path for _, item, _ in rows)
    files = [(number, _found(item)) for number, item, _ in rows]
    _refuse_missing(file, [(number, item) for number, item in files if not item.path.is_file()])
    _refuse_twice(file, files)
    blank = [number for number, _, outer in rows if outer]
    trimmed = f"{file.name}: blanks around {counted(len(blank), 'label')} left out, the first in line"
    notes = [f"{trimmed} {blank[0]}"] if blank else []
    return [item for _, item in files], notes


def _rows(file: Path, root: Path) -> Iterator[tuple[int, Listed, bool]]:
    """Line number, file, and whether its label had blanks around it, of each row."""
    with open(file, "rb") as raw:
        encoding = "utf-16" if raw.read(2) in _UTF16 else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"  # names of files may be other bytes
    with open(file, newline="", encoding=encoding, errors=errors) as lines:
        header = lines.readline()
        lines.seek(0)
        delimiter = next((sign for sign in _DELIMITERS if set(_COLUMNS) <= set(_names(header, sign))), ",")
        reader = csv.reader(lines, delimiter=delimiter)
        names = _names(header, delimiter)
        if not set(_COLUMNS) <= set(names):
            columns = ", ".join(names)
            readable = columns and columns.isascii() and columns.isprintable()
            found = f"starts with the line {named(header.strip()[:60])!r}" if readable else "is not such a table"
            raise ImageSetError(f"{file} {found}, {_EXPECTED}")
        next(reader)
        for row in reader:
            if row:
                yield reader.line_num, *_file_of(file, root, reader.line_num, names, row)


def _names(header: str, delimiter: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]


def _file_of(file: Path, root: Path, number: int, names: list[str], row: list[str]) -> tuple[Listed, bool]:
    """The file that a row names, and whether its label had blanks around it."""
    cells = dict(zip(names, row, strict=False))
    path, label, split = (cells.get(column, "") for column in _COLUMNS)
    lacks = f"{len(row)} cells for {len(names)} columns" if any(row[len(names) :]) else _lacks(path, label, split)
    if lacks:
        known = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
        raise ImageSetError(f"{file}, line {number} has {lacks}, expected a path, a label and one of {known}: fix it")
    return Listed(root / path, label.strip(), split_of(split)), label != label.strip()


def _lacks(path: str, label: str, split: str) -> str:
    if not path or not label.strip() or "\0" in label:
        return "no usable label" if path else "no path"
    if any("\udc80" <= sign <= "\udcff" for sign in label):
        return f"a label that is not UTF-8 text ({named(label)}; save the file as UTF-8)"
    return "" if split_of(split) else f"the split {split!r}"


def _found(item: Listed) -> Listed:
    """`item` under its plain path, where there is a file; else under the path that a Windows program meant."""
    plain = Path(os.path.normpath(item.path))
    other = Path(os.path.normpath(str(item.path).replace("\\", "/")))
    meant = other if other != plain and not plain.is_file() and other.is_file() else plain
    return Listed(meant, item.label, item.split)


def _refuse_missing(file: Path, missing: list[tuple[int, Listed]]) -> None:
    if missing:
        number, item = missing[0]
        raise ImageSetError(
            f"{file} names {counted(len(missing), 'file')} not there, the first in line {number}: {named(item.path)}"
        )


def _refuse_twice(file: Path, files: list[tuple[int, Listed]]) -> None:
    """A file under one or several spellings of its path."""
    count = Counter(item.path for _, item in files)
    lines = [number for number, item in files if count[item.path] > 1]
    if lines:
        path = next(item.path for number, item in files if number == lines[0])
        raise ImageSetError(
            f"{file} names a file twice, the first in line {lines[0]}: {named(path)}; give each one label and one split"
        )
