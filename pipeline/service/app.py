"""POST /predict, GET /health, GET /drift, and a page: a model file over HTTP."""

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, UploadFile
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.formparsers import MultiPartParser
from torch import Tensor

from pipeline.config.models import ServeConfig
from pipeline.console import counted, named
from pipeline.errors import DecodeError
from pipeline.evidence.drawing import as_png, shade
from pipeline.inputs.decode import Pixels
from pipeline.inputs.listing import extensions
from pipeline.inputs.remarks import catching_warnings
from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle, Predictor
from pipeline.model.prediction import Outputs, ScoreJson
from pipeline.service.answers import PAGE_HEADERS, answer_with_reasons
from pipeline.service.batcher import Batcher
from pipeline.service.decoding import LARGE, SMALL, effort, lower_priority, view_of, view_of_large
from pipeline.service.limits import DISCARDED, Room, guarded
from pipeline.unknown.drift import drift_of

_DAY, _MOST_P_VALUES = 86_400, 10_000  # seconds and images that drift is seen in
T = TypeVar("T")


class FilePrediction(BaseModel):
    """What the model says of one file: its most probable classes, the likeliest first, and whether it answers."""

    file: str
    top: list[ScoreJson]
    answered: bool
    reason: str
    unknown_p: float | None
    set: list[str] | None = None
    evidence: dict[str, Any] | None = None


class FailedFile(BaseModel):
    """A file that could not be read, and why."""

    file: str
    reason: str


class Answer(BaseModel):
    """What is known of the files of a request; `seconds` from its arrival."""

    predictions: list[FilePrediction]
    failed: list[FailedFile]
    seconds: float


class Refusal(BaseModel):
    """Why nothing was predicted."""

    reason: str


class Health(BaseModel):
    """That the service is there, and what it serves."""

    status: str
    model: str
    classes: int
    precision: str
    evidence: bool


class DriftReport(BaseModel):
    """Of the images of the last day, the latest ones: what their p-values say, and how many there are in each tenth."""

    images: int
    unlike: float | None = None
    interval: tuple[float, float] | None = None
    flagged: float | None = None
    expected: float | None = None
    tenths: list[int]


def create_app(predictor: Predictor, config: ServeConfig, local: bool) -> FastAPI:
    """The service of one model file; `local` where only programs of this machine are meant to ask."""
    service, most = _Service(predictor, config), int(config.max_mb * 1e6)
    app = FastAPI(
        title="Headgraft",
        description="Predictions of one exported model.",
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    MultiPartParser.spool_max_size = most  # in memory: a file on disk for each would use up the descriptors
    app.add_middleware(guarded, most=most, local=local)
    answer_with_reasons(app, "POST /predict, GET /health, /drift or /", _fault)
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (413, 422, 503)}
    app.post("/predict", responses=refusals)(service.predict)
    app.head("/health", include_in_schema=False)(service.health)
    app.get("/health")(service.health)
    app.get("/drift")(service.drift)
    page = _page(predictor.bundle, config)

    @app.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    return app


class _Service:
    """Predictions of one model: uploads are decoded in threads, and computed in batches across requests.

    Threads by how much work an image is, so that none waits for a larger one; large ones are decoded one at a time, in
    a process of their own.
    """

    def __init__(self, predictor: Predictor, config: ServeConfig) -> None:
        self._predictor, self._config, self._batcher = predictor, config, Batcher(predictor)
        threads = max(2, available_cpus() // 2)
        self._small = ThreadPoolExecutor(threads, "decode-small")
        self._middle = ThreadPoolExecutor(threads, "decode-middle", lower_priority)
        self._one_large = asyncio.Semaphore()
        self._images = Room(config.max_waiting)
        self._large_images = Room(max(config.max_files, config.max_waiting // 8))
        self._bytes = Room(int(DISCARDED * config.max_mb * 1e6))
        self._p_values = deque[tuple[float, float]](maxlen=_MOST_P_VALUES)  # when, and which

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Until the service is stopped: then nobody waits for an answer any more."""
        with catching_warnings():
            try:
                yield
            finally:
                for pool in (self._small, self._middle):
                    pool.shutdown(wait=False, cancel_futures=True)
                self._batcher.close()

    async def predict(
        self,
        files: Annotated[list[UploadFile], File(description="Image files.")],
        top_k: Annotated[int, Query(ge=1, description="Classes to name for each file.")] = 5,
        explain: Annotated[bool, Query(description="Also which cells speak for the likeliest class.")] = False,
    ) -> Answer:
        """The most probable classes of image files; those that cannot be read are listed apart."""
        start, most = time.perf_counter(), self._config.max_files
        bundle = self._predictor.bundle
        if explain and bundle.without_evidence:
            raise HTTPException(422, bundle.without_evidence)
        if len(files) > most:
            raise HTTPException(413, f"{counted(len(files), 'file')}, over the limit of {most}: send fewer at once")
        answer = Answer(predictions=[], failed=[], seconds=0)
        try:
            with self._images.take(len(files)), self._bytes.take(sum(file.size or 0 for file in files)):
                views = await self._views([await file.read() for file in files])
                read = [view for view in views if not isinstance(view, DecodeError)]
                outputs = iter(cast(list[Outputs], await _all_of(map(self._batcher.outputs, read))))
        except asyncio.CancelledError:  # the grace that the server gives is over
            raise HTTPException(503, "the service is being stopped") from None
        for file, view in zip(files, views, strict=True):
            name = named(file.filename or "unnamed")
            if isinstance(view, DecodeError):
                answer.failed.append(FailedFile(file=name, reason=str(view)))
            else:
                found = await self._prediction(view, next(outputs), top_k, explain)
                answer.predictions.append(FilePrediction(file=name, **found))
        if not answer.predictions:
            raise HTTPException(422, "; ".join(f"{one.file}: {one.reason}" for one in answer.failed))
        answer.seconds = time.perf_counter() - start
        return answer

    async def _prediction(self, view: Pixels, outputs: Outputs, top_k: int, explain: bool) -> dict[str, Any]:
        """The fields of `FilePrediction`, but for the file."""
        bundle = self._predictor.bundle
        found = bundle.prediction(outputs, top_k)
        if found.unknown_p is not None:
            self._p_values.append((time.time(), found.unknown_p))
        shown = [replace(one, label=named(one.label), name=named(one.name)) for one in found.top]
        inside = None if found.set is None else tuple(map(named, found.set))
        fields: dict[str, Any] = {**replace(found, top=tuple(shown), set=inside).as_json()}
        if explain and outputs.rows is not None:
            loop = asyncio.get_running_loop()
            fields["evidence"] = await loop.run_in_executor(self._small, _drawn, bundle, view, outputs.rows)
        return fields

    async def drift(self) -> DriftReport:
        """Whether images have drifted from those that the model was trained on."""
        since, unknown = time.time() - _DAY, self._predictor.bundle.card.unknown
        values = np.array([value for when, value in self._p_values if when >= since])
        tenths = np.histogram(values, 10, (0, 1))[0].tolist()
        found = drift_of(values, unknown.false_alarms, unknown.images) if unknown else None
        return DriftReport(**{"images": len(values), **(asdict(found) if found else {})}, tenths=tenths)

    async def health(self) -> Health:
        """That the service is there, and what it serves."""
        bundle, precision = self._predictor.bundle, self._predictor.backbone.precision
        return Health(
            status="ok",
            model=bundle.path.name,
            classes=len(bundle.classes),
            precision=precision,
            evidence=not bundle.without_evidence,
        )

    async def _views(self, contents: Sequence[bytes]) -> list[Pixels | DecodeError]:
        """Of each file its view, or why there is none; status 503 where too many large images wait."""
        loop = asyncio.get_running_loop()
        efforts = await asyncio.gather(*(loop.run_in_executor(self._small, effort, data) for data in contents))
        with self._large_images.take(sum(cost > LARGE for cost in efforts)):
            return await _all_of(map(self._view, contents, efforts))

    async def _view(self, data: bytes, cost: int) -> Pixels:
        settings = int(self._config.max_megapixels * 1e6), self._predictor.bundle.preprocessing
        if cost > LARGE:
            async with self._one_large:
                return await view_of_large(data, *settings)
        pool = self._middle if cost > SMALL else self._small
        return await asyncio.get_running_loop().run_in_executor(pool, view_of, data, *settings)


def _page(bundle: Bundle, config: ServeConfig) -> str:
    """The page, with what it says of the model and of the limits in it as JSON that ends no script."""
    facts = {
        "model": named(bundle.path.name),
        "classes": [named(bundle.card.names.get(label, label)) for label in bundle.classes],
        "explains": not bundle.without_evidence,
        "threshold": bundle.card.rejection.threshold if bundle.card.rejection else None,
        "max_mb": config.max_mb,
        "max_files": config.max_files,
        "max_megapixels": config.max_megapixels,
        "kinds": extensions(),
    }
    page = (files("pipeline.service") / "page.html").read_text("utf-8")
    return page.replace("FACTS", json.dumps(facts).replace("<", "\\u003c"), 1)


def _drawn(bundle: Bundle, view: Pixels, rows: Tensor) -> dict[str, Any]:
    """Evidence in numbers, and drawn, as an address that holds the picture."""
    found = bundle.evidence(rows)[0]
    picture = base64.b64encode(as_png(shade(view, found))).decode()
    return {**found.as_json(tuple(map(named, bundle.classes))), "picture": f"data:image/png;base64,{picture}"}


async def _all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T | DecodeError]:
    """What each comes to, or, when all have ended and given back what they hold, the first error of another kind."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, DecodeError):
            raise result
    return cast(list[T | DecodeError], results)


def _fault(error: Any) -> str:
    """A reason for the first error that FastAPI found in the parameters of a request."""
    source, name, *place = error["loc"]
    if source == "query":
        expected = "true or false" if name == "explain" else "a whole number of at least 1"
        return f"{name} is {str(error['input'])[:40]}, expected {expected}"
    expected = "expected images in the field 'files', such as from curl -F files=@one.jpg"
    if not place:
        return f"no file arrived: {expected}"
    return f"part {place[0] + 1} of the field 'files' has no filename (filename* alone is not read): {expected}"
