"""What the command line shows while work goes on, on standard error; standard output is for results alone.

The program logs to the logger `headgraft` and those below it. Users of the library see nothing unless they ask.
"""

import ctypes
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper
from typing import Any

from cache.errors import counted as counted  # which the cache uses too

SECONDS_BETWEEN_LINES = 10.0

Show = Callable[[int, str, float], object]  # how much is done, at what rate in words, seconds left

logger = logging.getLogger("headgraft")


class Terminal(logging.Handler):
    """Lines of the log on standard error, above the progress bar where there is one.

    `terminal` says whether standard error is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terminal = bool(sys.stderr and sys.stderr.isatty())  # it may have been closed
        self.bar: Any = None  # rich's console, while it draws a bar

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        if self.bar:
            self.bar.out(record.getMessage(), highlight=False)
        else:
            print(record.getMessage(), file=sys.stderr, flush=True)


@contextmanager
def shown(level: int) -> Iterator[None]:
    """Have the log of this `level` on, and progress at `logging.INFO`, go to standard error."""
    handler, before = Terminal(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def results_alone() -> Iterator[Callable[[str], None]]:
    """Yield what prints a result: all else that goes to standard output meanwhile ends on standard error.

    Libraries print there, and so do child processes, which see only the descriptor.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # takes the place of an output that was closed
    os.close(spare)
    stream, kept = sys.stdout, os.dup(1)
    if isinstance(stream, TextIOWrapper):  # as standard error: a name that the terminal cannot show is no error
        stream.reconfigure(errors="backslashreplace")

    def put_back() -> None:
        if os.name != "nt":
            ctypes.CDLL(None).fflush(None)  # what C code printed waits in a buffer of its own
        os.dup2(kept, 1)

    def print_result(text: str) -> None:
        put_back()
        try:
            if stream:  # there is none where it was closed
                print(text, file=stream, flush=True)
        finally:
            os.dup2(2, 1)

    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield print_result
    finally:
        put_back()
        os.close(kept)


def named(path: object) -> str:
    """A path as one line of printable text: control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def first_line(error: BaseException) -> str:
    """What an error of a library says first: some go on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def reason(error: BaseException) -> str:
    """What the system said, where an error of the system is behind this one; else what this one says."""
    return getattr(error.__cause__ or error, "strerror", None) or str(error)


@contextmanager
def progress(total: int, what: str, note: Callable[[], str] = str) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`; a bar with rate, `note` and time left on a terminal, else a log line every ten seconds."""
    handler = next((one for one in logger.handlers if isinstance(one, Terminal) and one.terminal), None)
    start, done = time.monotonic(), 0
    shown_by = _bar(handler, total, what) if handler and logger.isEnabledFor(logging.INFO) else _lines(total, what)
    with shown_by as show:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            rate = done / max(time.monotonic() - start, 1e-9)
            show(done, f"{rate:.1f}/s{note()}", (total - done) / max(rate, 1e-9))

        yield advance


@contextmanager
def _bar(handler: Terminal, total: int, what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    console = Console(stderr=True)
    with Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task(what, total=total, rate="")
        handler.bar = console
        try:
            yield lambda done, rate, _: bar.update(task, completed=done, rate=rate)
        finally:
            handler.bar = None


@contextmanager
def _lines(total: int, what: str) -> Iterator[Show]:
    last = time.monotonic()

    def show(done: int, rate: str, left: float) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES or done == total:
            last = time.monotonic()
            logger.info(f"{what}: {done} of {total}, {rate}, {duration(left)} left")

    yield show


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in words: 312 MB, 1.4 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def version() -> str:
    """Of the installation; what is run from its source alone has none, which `headgraft doctor` explains."""
    from importlib import metadata  # takes longer than most of what starts here

    try:
        return metadata.version("headgraft")
    except metadata.PackageNotFoundError:
        return "of a folder that is not installed"
