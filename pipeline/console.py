"""Lines and a progress bar while work goes on, on standard error; standard output is for results alone."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import TextIOWrapper

SECONDS_BETWEEN_LINES = 10.0

Say = Callable[[str], None]


def say(line: str) -> None:
    """Print one line for the person watching."""
    print(line, file=sys.stderr, flush=True)


def silent(_: str) -> None:
    """Print nothing: the library's default."""


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
def progress(
    total: int, what: str, say: Say = silent, note: Callable[[], str] = str
) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`; a bar with rate, `note` and time left on a terminal, elsewhere a line every ten seconds."""
    if say is silent:
        yield lambda n: None
    elif sys.stderr.isatty():
        with _bar(total, what, note) as advance:
            yield advance
    else:
        yield _lines(total, what, say, note)


@contextmanager
def _bar(total: int, what: str, note: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")
        start, done = time.monotonic(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            bar.update(task, advance=n, rate=f"{done / max(time.monotonic() - start, 1e-9):.1f}/s{note()}")

        yield advance


def _lines(total: int, what: str, say: Say, note: Callable[[], str]) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            rate = done / max(now - start, 1e-9)
            say(f"{what}: {done} of {total}, {rate:.1f}/s{note()}, {duration((total - done) / rate)} left")

    return advance


def counted(count: int, word: str) -> str:
    """1 head, 2 heads; 1 pass, 2 passes."""
    return f"{count} {word}" if count == 1 else f"{count} {word}{'es' if word.endswith('s') else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 1 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in words: 312 MB, 1.4 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
