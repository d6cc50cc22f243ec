"""Image files → pixels of their views, decoded once each, ahead of the backbone."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any, Self

import torch

from pipeline.errors import DecodeError, ImageSetError
from pipeline.inputs.decode import read_image
from pipeline.inputs.device_views import MOST_VIEWS, DeviceViews
from pipeline.inputs.remarks import Remarks, catching_warnings
from pipeline.inputs.views import Views

Renderer = Views | DeviceViews
Rendered = list[tuple[str, Any]]  # each view with its pixels, or with what a device renders it from
_TOGETHER = 8  # files: threads that hand over each file by itself spend their time on waking one another
_MOST_BYTES = 1 << 31  # of pixels that wait to be rendered
Loaded = tuple[Rendered | DecodeError | ImageSetError, dict[str, str], float]  # with remarks on the file, and seconds


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
        self._tasks = _TOGETHER if workers and isinstance(renderer, DeviceViews) else 1  # files given out at once
        self._largest = 0  # bytes of pixels of one file that wait to be rendered; 0 while none is known
        self._stopped = Event()
        self.seconds = 0.0  # summed over the workers
        self.waited = 0.0  # that whoever takes the views had to wait for them
        self._pool = ThreadPoolExecutor(max(1, workers), "decode", torch.set_num_threads, (1,))
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(catching_warnings())
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)
        self._held.close()
        # What a thread sets is also what torch gives to threads to come: back to this thread's own number.
        torch.set_num_threads(torch.get_num_threads())

    @property
    def ahead(self) -> int:
        """Files decoded before they are asked for; what a device renders together is taken at one stroke."""
        if not self.workers:
            return 1
        if self._tasks > 1 and self._largest:
            return max(2 * self.workers, min(4 * MOST_VIEWS, _MOST_BYTES // self._largest))
        return max(16, 4 * self.workers)

    def run(self, tasks: Iterable[DecodeTask]) -> Iterator[tuple[DecodeTask, Rendered | DecodeError]]:
        """Each task with its views, or with the reason it has none, in the order of `tasks`."""
        waiting: deque[tuple[list[DecodeTask], Callable[[], list[Loaded]]]] = deque()
        given = iter(tasks)
        while some := list(islice(given, self._tasks)):
            result = self._pool.submit(self._load_all, some).result if self.workers else partial(self._load_all, some)
            waiting.append((some, result))
            while len(waiting) * self._tasks >= self.ahead:
                yield from self._wait(*waiting.popleft())
        while waiting:
            yield from self._wait(*waiting.popleft())

    def _wait(
        self, tasks: list[DecodeTask], result: Callable[[], list[Loaded]]
    ) -> Iterator[tuple[DecodeTask, Rendered | DecodeError]]:
        start = time.perf_counter()
        loaded = result()
        self.waited += time.perf_counter() - start
        for task, (outcome, odd, seconds) in zip(tasks, loaded, strict=True):
            self.seconds += seconds
            if isinstance(outcome, ImageSetError):  # in its turn: what comes before it is not lost
                raise outcome
            if not isinstance(outcome, DecodeError):
                self.remarks.add(task.path, odd)
            yield task, outcome

    def _load_all(self, tasks: list[DecodeTask]) -> list[Loaded]:
        """Until an interrupt, which waits for no more than one file a thread."""
        return [self._load(task) for task in tasks if not self._stopped.is_set()]

    def _load(self, task: DecodeTask) -> Loaded:
        start = time.perf_counter()
        outcome: Rendered | DecodeError | ImageSetError
        odd: dict[str, str] = {}
        try:
            pixels = self.renderer.preprocessing.decode(_read(task), odd)
            outcome = list(zip(task.views, self.renderer.prepare(pixels, task.digest, task.views), strict=True))
            self._largest = max(self._largest, pixels.nbytes)
        except (DecodeError, ImageSetError) as error:
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
