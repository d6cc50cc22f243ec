"""The folder of a run: the files it may have, who holds it, and what is refused rather than overwritten."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache import layout
from cache.files import is_temporary, refuse_unwritable
from cache.lock import claimed
from pipeline.console import named
from pipeline.errors import RunError, TargetExists

RUN_FILE = "run.json"
HEAD_FILE = "head.safetensors"
BASIS_FILE = "basis.safetensors"
REDUCTION_FILE = "reduction.safetensors"
HELD_OUT_FILE = "held_out.safetensors"
JOURNAL_FILE = "journal.jsonl"
RESULTS_FILE = "sweep.json"
TABLE_FILE = "heads.csv"
REPORT_FILE = "report.html"
SWEEP_FILES = (JOURNAL_FILE, RESULTS_FILE, TABLE_FILE)
RUN_FILES = (RUN_FILE, HEAD_FILE, BASIS_FILE, REDUCTION_FILE, HELD_OUT_FILE, REPORT_FILE, *SWEEP_FILES)


@contextmanager
def claimed_run(path: Path, overwrite: bool) -> Iterator[bool]:
    """Hold the folder of a run until it is written; yields whether a run in it is to be replaced.

    It is with `overwrite`, and where another process wrote it meanwhile: that one is waited for, and the later
    replaces the earlier. RunError where there was a finished run before, or anything else; CacheError where the folder
    cannot be written.
    """
    refuse_other_kind(path, folder=True)
    if os.path.lexists(path) and ((path / RUN_FILE).is_file() or _things(path, besides=RUN_FILES)):
        refuse_to_overwrite(path, overwrite)
        refuse_other_things(path)
    with claimed(path):
        yield overwrite or (path / RUN_FILE).is_file()


def refuse_other_things(path: Path) -> None:
    """RunError where the folder `path` holds anything that no run holds: --overwrite replaces runs only."""
    if others := _things(path, besides=RUN_FILES):
        raise RunError(f"{path} holds {named(others[0])}, which is not part of a run: choose another folder with --run")


def _things(path: Path, besides: tuple[str, ...] = ()) -> list[str]:
    """What is in the folder, but for a claim and files being written, which a killed process may have left."""
    files = (file for file in path.iterdir() if not layout.is_lock(file.name) and not is_temporary(file))
    return [file.name for file in files if file.name not in besides]


def prepare_sweep(path: Path, overwrite: bool) -> None:
    """Have the claimed folder `path` ready for a sweep: empty, or with an unfinished one; RunError where it is neither.

    With `overwrite`, a run or a sweep that is there is removed.
    """
    if overwrite:
        refuse_other_things(path)
        for name in (RUN_FILE, *SWEEP_FILES):  # run.json first: without it there is no run
            (path / name).unlink(missing_ok=True)
    elif (path / RUN_FILE).is_file() or not (path / JOURNAL_FILE).is_file():
        refuse_to_overwrite(path, overwrite)


def refuse_to_overwrite(path: Path, overwrite: bool) -> None:
    """RunError where `path` holds something and replacing it was not asked for."""
    if overwrite:
        return
    if (path / RUN_FILE).is_file():
        raise TargetExists(f"{path} holds a finished run: choose another --run, or overwrite it with --overwrite")
    if (path / JOURNAL_FILE).is_file():
        raise TargetExists(f"{path} holds an unfinished sweep: resume it, choose another --run, or use --overwrite")
    if path.exists() and (not path.is_dir() or _things(path)):
        raise TargetExists(f"{path} exists: choose another path, or overwrite it with --overwrite")


def check_target(path: Path, overwrite: bool, advice: str = "choose another path") -> None:
    """CacheError where the file `path` could not be written, RunError where it may not be: before any work."""
    refuse_unwritable(path.parent, advice)
    refuse_other_kind(path, folder=False)
    refuse_to_overwrite(path, overwrite)


def refuse_other_kind(path: Path, folder: bool) -> None:
    """RunError where `path` is a file and a folder is wanted, or the other way round."""
    if os.path.lexists(path) and path.is_dir() != folder:  # a name that is too long is said by whoever writes it
        kinds = ("a file", "a folder") if folder else ("a folder", "a file")
        raise RunError(f"{path} is {kinds[0]}, expected {kinds[1]} or nothing there: choose another path")
