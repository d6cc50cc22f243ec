"""Image files → pixels of their views, decoded once each, ahead of the backbone."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from pipeline.errors import DecodeError, ImageSetError
from pipeline.inputs.decode import read_image
from pipeline.inputs.remarks import Remarks, catching_warnings
from pipeline.inputs.views import Renderer, ViewPixels

Rendered = list[tuple[str, ViewPixels]]  # (view, pixels)
Loaded = tuple[Rendered | DecodeError, dict[str, str], float]  # with remarks on the file, and seconds


@dataclass(frozen=True)
class DecodeTask:
    """One file to decode once, and the views of it that are wanted; without a digest it is taken as it is."""

    path: Path
    digest: bytes
    views: tuple[str, ...]


class Loader:
    """Decodes files and renders their views in `workers` threads; 0 decodes in the main thread. A context manager.

    Threads serve, because Pillow and torch free the interpreter while they decode and resize.
    """

    def __init__(self, renderer: Renderer, workers: int, remarks: Remarks | None = None) -> None:
        self.renderer = renderer
        self.remarks = Remarks() if remarks is None else remarks  # on files that were decoded
        self.workers = workers
        self.ahead = max(16, 4 * workers) if workers else 1  # files
        self.seconds = 0.0  # summed over the workers
        self.waited = 0.0  # that whoever takes the views had to wait for them
        self._pool = ThreadPoolExecutor(max(1, workers), "decode", torch.set_num_threads, (1,))
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(catching_warnings())
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._held.close()
        # What a thread sets is also what torch gives to threads to come: back to this thread's own number.
        torch.set_num_threads(torch.get_num_threads())

    def run(self, tasks: Iterable[DecodeTask]) -> Iterator[tuple[DecodeTask, Rendered | DecodeError]]:
        """Each task with its views, or with the reason it has none, in the order of `tasks`."""
        waiting: deque[tuple[DecodeTask, Callable[[], Loaded]]] = deque()
        for task in tasks:
            result = self._pool.submit(self._load, task).result if self.workers else partial(self._load, task)
            waiting.append((task, result))
            if len(waiting) >= self.ahead:
                yield self._wait(*waiting.popleft())
        while waiting:
            yield self._wait(*waiting.popleft())

    def _wait(self, task: DecodeTask, result: Callable[[], Loaded]) -> tuple[DecodeTask, Rendered | DecodeError]:
        start = time.perf_counter()
        outcome, odd, seconds = result()
        self.waited += time.perf_counter() - start
        self.seconds += seconds
        if not isinstance(outcome, DecodeError):
            self.remarks.add(task.path, odd)
        return task, outcome

    def _load(self, task: DecodeTask) -> Loaded:
        start = time.perf_counter()
        outcome: Rendered | DecodeError
        odd: dict[str, str] = {}
        try:
            pixels = self.renderer.preprocessing.decode(_read(task), odd)
            outcome = list(zip(task.views, self.renderer.render_all(pixels, task.digest, task.views), strict=True))
        except DecodeError as error:
            outcome = error
        return outcome, odd, time.perf_counter() - start


def _read(task: DecodeTask) -> bytes:
    data = read_image(task.path)
    if task.digest and hashlib.sha256(data).digest() != task.digest:
        raise ImageSetError(
            f"{task.path} changed while it was being extracted, or since it was listed: run the same command again, "
            "after --hash-only if parts go by that"
        )
    return data
