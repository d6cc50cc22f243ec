"""POST /predict, GET /health, and a page: a model file over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.formparsers import MultiPartParser

from pipeline.backbones.backbone import Backbone
from pipeline.console import named
from pipeline.errors import DecodeError
from pipeline.inputs.decode import Pixels
from pipeline.inputs.remarks import catching_warnings
from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle
from pipeline.service.batcher import Batcher
from pipeline.service.decoding import LARGE, SMALL, effort, end_children, lower_priority, pixels_of, view_of_large
from pipeline.service.limits import DISCARDED, Busy, LimitBody, Limits, Room
from pipeline.service.origin import SameOrigin

RETRY_AFTER = 1  # second
# The page is all there is: nothing is loaded from anywhere, and nothing it shows can be a program.
SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ClassProbability(BaseModel):
    """A class, its display name and its probability."""

    label: str
    name: str
    probability: float


class FilePrediction(BaseModel):
    """The most probable classes of one file, the likeliest first."""

    file: str
    top: list[ClassProbability]


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


def create_app(bundle: Bundle, backbone: Backbone, limits: Limits) -> FastAPI:
    """The service of one model file."""
    batcher = Batcher(bundle, backbone)
    threads = max(2, available_cpus() // 2)
    small, large = ThreadPoolExecutor(threads, "decode-small"), ThreadPoolExecutor(1, "decode-large")
    middle = ThreadPoolExecutor(threads, "decode-middle", lower_priority)
    waiting, waiting_large = Room(limits.waiting), Room(limits.large)
    preprocessing = bundle.preprocessing
    waiting_bytes = Room(DISCARDED * limits.bytes)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        with catching_warnings(), batcher:
            try:
                yield
            finally:
                for pool in (small, middle, large):
                    pool.shutdown(wait=False, cancel_futures=True)
                end_children()

    app = FastAPI(
        title="Headgraft",
        description="Predictions of one exported model.",
        lifespan=running,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    MultiPartParser.spool_max_size = limits.bytes  # in memory: a file on disk for each would use up the descriptors
    app.add_middleware(LimitBody, most=limits.bytes)
    app.add_middleware(SameOrigin, local=limits.local)
    _answer_with_reasons(app)

    def view_of(data: bytes) -> Pixels:
        return preprocessing.view(pixels_of(data, limits.pixels, preprocessing))

    def view_apart(data: bytes) -> Pixels:
        return view_of_large(data, limits.pixels, preprocessing)

    async def views_of(uploads: list[UploadFile]) -> list[Pixels | BaseException]:
        """Of each file its view, or why there is none; Busy where too many large images wait."""
        loop = asyncio.get_running_loop()
        contents = [await upload.read() for upload in uploads]
        efforts = await asyncio.gather(*(loop.run_in_executor(small, effort, data) for data in contents))
        with waiting_large.take(sum(cost > LARGE for cost in efforts)):
            decoding = [
                loop.run_in_executor(large, view_apart, data)
                if cost > LARGE
                else loop.run_in_executor(middle if cost > SMALL else small, view_of, data)
                for data, cost in zip(contents, efforts, strict=True)
            ]
            return await asyncio.gather(*decoding, return_exceptions=True)

    async def predict_all(uploads: list[UploadFile], top_k: int) -> tuple[list[FilePrediction], list[FailedFile]]:
        decoded = await views_of(uploads)
        predictions, failed, computing = [], [], []
        for upload, found in zip(uploads, decoded, strict=True):
            name = named(upload.filename or "unnamed")
            if isinstance(found, DecodeError):
                failed.append(FailedFile(file=name, reason=str(found)))
            elif isinstance(found, BaseException):
                raise found
            else:
                computing.append((name, batcher.submit([found])[0]))
        for name, future in computing:
            guesses = bundle.top(await asyncio.wrap_future(future), top_k)
            top = [
                ClassProbability(label=named(g.label), name=named(g.name), probability=g.probability) for g in guesses
            ]
            predictions.append(FilePrediction(file=name, top=top))
        return predictions, failed

    @app.post("/predict", responses={413: {"model": Refusal}, 422: {"model": Refusal}, 503: {"model": Refusal}})
    async def predict(
        files: Annotated[list[UploadFile], File(description="Image files.")],
        top_k: Annotated[int, Query(ge=1, description="Classes to name for each file.")] = 5,
    ) -> Answer:
        """The most probable classes of image files; those that cannot be read are listed apart."""
        start = time.perf_counter()
        if len(files) > limits.files:
            raise HTTPException(413, f"{len(files)} files are over the limit of {limits.files}: send fewer at once")
        try:
            with waiting.take(len(files)), waiting_bytes.take(sum(file.size or 0 for file in files)):
                predictions, failed = await predict_all(files, top_k)
        except Busy:
            reason = "queue full, retry in a second"
            raise HTTPException(503, reason, {"Retry-After": str(RETRY_AFTER)}) from None
        except asyncio.CancelledError:  # the grace that the server gives is over
            raise HTTPException(503, "the service is being stopped") from None
        if not predictions:
            raise HTTPException(422, "; ".join(f"{one.file}: {one.reason}" for one in failed))
        return Answer(predictions=predictions, failed=failed, seconds=time.perf_counter() - start)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Health:
        """That the service is there, and what it serves."""
        return Health(status="ok", model=bundle.path.name, classes=len(bundle.classes), precision=backbone.precision)

    page = (files("pipeline.service") / "page.html").read_text("utf-8")

    @app.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=SAFE)

    return app


def _answer_with_reasons(app: FastAPI) -> None:
    """Whatever is refused is refused as {"reason": one sentence}."""

    async def refused(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"reason": named(error.detail)}, error.status_code, error.headers)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"reason": named(_fault(error.errors()[0]))}, 422)

    app.add_exception_handler(StarletteHTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)


def _fault(error: Any) -> str:
    """A reason for the first error that FastAPI found in the parameters of a request."""
    source, name, *place = error["loc"]
    if source == "query":
        return f"{name} is {str(error['input'])[:40]}, expected a whole number of at least 1"
    expected = "expected images in the field 'files', such as from curl -F files=@one.jpg"
    if not place:
        return f"no file arrived: {expected}"
    return f"part {place[0] + 1} of the field 'files' has no filename (filename* alone is not read): {expected}"
