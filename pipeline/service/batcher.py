"""Images of all requests through the model, as many at once as wait, in one thread that has the processor."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pipeline.inputs.decode import Pixels
from pipeline.model.bundle import Predictor
from pipeline.model.prediction import Outputs


class Batcher:
    """Outputs of views, computed in batches across requests, in one event loop."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._thread = ThreadPoolExecutor(1, "predict")
        self._waiting: list[tuple[Pixels, asyncio.Future[Outputs]]] = []
        self._computing: asyncio.Task[None] | None = None

    async def outputs(self, view: Pixels) -> Outputs:
        """Outputs of one view, computed in the next batch."""
        answer: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self._waiting.append((view, answer))
        if self._computing is None or self._computing.done():
            self._computing = asyncio.create_task(self._compute())
        return await answer

    async def _compute(self) -> None:
        loop, size = asyncio.get_running_loop(), self._predictor.backbone.batch_size
        while self._waiting:
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            batch = [(view, answer) for view, answer in batch if not answer.done()]  # not of requests that are gone
            if not batch:
                continue
            try:
                found = await loop.run_in_executor(self._thread, self._predictor.of_views, [view for view, _ in batch])
            except Exception as error:  # whatever it is belongs to the requests, and the next batch is computed
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for number, (_, answer) in enumerate(batch):
                if not answer.done():
                    answer.set_result(found[number])

    def close(self) -> None:
        """End when the batch that is being computed is done; no request waits for others any more."""
        self._waiting.clear()
        self._thread.shutdown()
