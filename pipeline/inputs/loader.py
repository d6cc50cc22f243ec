"""Image files → pixels of their views, decoded once each, ahead of the backbone."""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from pipeline.errors import DecodeError, ImageSetError
from pipeline.inputs.decode import Decoding, Pixels, decode_rgb, read_image
from pipeline.inputs.remarks import Remarks, catching_warnings
from pipeline.inputs.views import Renderer, ViewPixels

Rendered = list[tuple[str, ViewPixels]]  # (view, pixels)
Odd = dict[str, str]  # remarks on one file
Loaded = tuple[Rendered | DecodeError, Odd, float]  # and seconds


@dataclass(frozen=True)
class Work:
    """One file to decode once, and the views of it that are wanted; without a digest it is taken as it is."""

    path: Path
    digest: bytes
    views: tuple[str, ...]


class Loader:
    """Decodes files and renders their views in `workers` threads; 0 decodes in line. A context manager.

    Threads serve, because Pillow and torch free the interpreter while they decode and resize.
    """

    def __init__(self, renderer: Renderer, workers: int, decoding: Decoding, remarks: Remarks | None = None) -> None:
        self.renderer = renderer
        self.decoding = decoding
        self.remarks = Remarks() if remarks is None else remarks  # on files that were decoded
        self.workers = workers
        self.ahead = max(16, 4 * workers)  # files
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

    def run(self, work: Iterable[Work]) -> Iterator[tuple[Work, Rendered | DecodeError]]:
        """Each item with its views, or with the reason it has none, in the order of `work`."""
        waiting: deque[tuple[Work, Future[Loaded]]] = deque()
        for item in work:
            if not self.workers:
                loaded = self._load(item)
                self.waited += loaded[2]
                yield item, self._count(item, loaded)
                continue
            waiting.append((item, self._pool.submit(self._load, item)))
            if len(waiting) >= self.ahead:
                yield self._wait(*waiting.popleft())
        for item, future in waiting:
            yield self._wait(item, future)

    def check(self, work: Iterable[Work]) -> Iterator[tuple[Work, DecodeError]]:
        """Those of `work` that cannot be decoded."""
        with self:
            for item, outcome in self.run(Work(item.path, item.digest, ()) for item in work):
                if isinstance(outcome, DecodeError):
                    yield item, outcome

    def _wait(self, item: Work, future: Future[Loaded]) -> tuple[Work, Rendered | DecodeError]:
        start = time.perf_counter()
        done = future.result()
        self.waited += time.perf_counter() - start
        return item, self._count(item, done)

    def _count(self, item: Work, loaded: Loaded) -> Rendered | DecodeError:
        outcome, odd, seconds = loaded
        self.seconds += seconds
        if not isinstance(outcome, DecodeError):
            self.remarks.add(item.path, odd)
        return outcome

    def _load(self, item: Work) -> Loaded:
        start = time.perf_counter()
        outcome: Rendered | DecodeError
        odd: Odd = {}
        try:
            pixels = decode_rgb(_read(item), policy=self.decoding, remarks=odd)
            outcome = list(zip(item.views, self.renderer.render_all(pixels, item.digest, item.views), strict=True))
        except DecodeError as error:
            outcome = error
        return outcome, odd, time.perf_counter() - start


def read_pixels(path: Path, decoding: Decoding) -> Pixels:
    """One image file, decoded in this thread: (height, width, 3); DecodeError with the reason."""
    with catching_warnings():
        return decode_rgb(read_image(path), policy=decoding)


def _read(item: Work) -> bytes:
    data = read_image(item.path)
    if item.digest and hashlib.sha256(data).digest() != item.digest:
        raise ImageSetError(
            f"{item.path} changed while it was being extracted, or since it was listed: run the same command again, "
            "after --hash-only if parts go by that"
        )
    return data
