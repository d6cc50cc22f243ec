"""Images of all requests through the model, as many at once as wait, in one thread that has the processor."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.backbones.backbone import Backbone
from pipeline.inputs.decode import Pixels
from pipeline.model.bundle import Bundle


@dataclass(frozen=True)
class _Image:
    view: Pixels
    answer: "Future[Tensor]"


class Batcher:
    """Log-probabilities of views, computed in batches across requests. A context manager."""

    def __init__(self, bundle: Bundle, backbone: Backbone) -> None:
        self._bundle = bundle
        self._backbone = backbone
        self._waiting: queue.SimpleQueue[_Image | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="predict", daemon=True)

    def __enter__(self) -> "Batcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(queue.Empty):
            while image := self._waiting.get_nowait():  # no request waits for these any more
                image.answer.cancel()
        self._waiting.put(None)
        self._thread.join()

    def submit(self, views: Sequence[Pixels]) -> list["Future[Tensor]"]:
        """Log-probabilities (C,) of each view, when they are there."""
        images = [_Image(view, Future()) for view in views]
        for image in images:
            self._waiting.put(image)
        return [image.answer for image in images]

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < self._backbone.batch_size and not self._waiting.empty():
                image = self._waiting.get()
                if image is None:
                    last = True
                    break
                batch.append(image)
            self._answer([image for image in batch if image.answer.set_running_or_notify_cancel()])
            if last:
                return

    @torch.inference_mode()
    def _answer(self, batch: list[_Image]) -> None:
        if not batch:
            return
        try:
            rows = self._bundle.head(self._backbone.features([image.view for image in batch]))
        except Exception as error:  # whatever it is belongs to the requests, and the thread goes on
            for image in batch:
                image.answer.set_exception(error)
            return
        for image, log_probs in zip(batch, rows, strict=True):
            image.answer.set_result(log_probs)
