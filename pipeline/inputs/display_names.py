"""Display names of classes, read from a JSON object such as cat_to_name.json."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from cache.files import read_regular
from cache.records import convert, fault
from pipeline.console import counted
from pipeline.errors import PipelineError
from pipeline.inputs.names import difference, plain

logger = logging.getLogger("headgraft.inputs")


def read_names(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Display names of `classes` from a JSON object such as cat_to_name.json; a class that has none is left out.

    PipelineError where it is not such an object, or has a name for none of the classes.
    """
    try:
        names = convert(json.loads(read_regular(path)), dict[str, str])
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path} cannot be read ({fault(error)}); expected a JSON object of class: name") from error
    alike = {plain(key): key for key in names}
    key_of = {label: label if label in names else alike.get(plain(label), "") for label in classes}
    key_of = {label: key for label, key in key_of.items() if key in names}
    if not key_of:
        keys = f"the first {next(iter(names))!r}" if names else "it has none"
        raise PipelineError(
            f"{path} has a name for none of the {len(classes)} classes: its keys ({keys}) are not classes "
            f"(the first {classes[0]!r}); expected an object of class: name"
        )
    _log_mismatches(path, names, classes, key_of)
    return {label: names[key] for label, key in key_of.items()}


def _log_mismatches(path: Path, names: dict[str, str], classes: Sequence[str], key_of: dict[str, str]) -> None:
    """Names that fit no class as they stand, and classes without one."""
    unnamed = [label for label in classes if label not in key_of]
    unused = sorted(names.keys() - set(key_of.values()))
    if other := [(label, key) for label, key in key_of.items() if label != key]:
        taken = f"{counted(len(other), 'key')} taken for a class that differs in {difference(*other[0])}"
        logger.warning(f"{path}: {taken}")
    missing = f"{len(unnamed)} of {len(classes)} classes have no name (the first {unnamed[0]!r})" if unnamed else ""
    unfit = f"{len(unused)} of {len(names)} names have no class (the first {unused[0]!r})" if unused else ""
    if missing or unfit:
        logger.warning(f"{path}: {', '.join(filter(None, (missing, unfit)))}{_shift(names, classes)}")


def _shift(names: Iterable[str], classes: Sequence[str]) -> str:
    """Words on keys that count from another number than the classes, as 0 to 101 for 1 to 102; "" where none do."""
    if not all(text.isascii() and text.isdigit() for text in (*names, *classes)):
        return ""
    keys, labels = sorted(map(int, names)), sorted(map(int, classes))
    shifted = len(keys) == len(labels) and {key - label for key, label in zip(keys, labels, strict=True)} in ({1}, {-1})
    ends = f"{keys[0]} to {keys[-1]} for classes {labels[0]} to {labels[-1]}"
    return f"; the keys look shifted by one ({ends}), so that each class has the name of another" if shifted else ""
