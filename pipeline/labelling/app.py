"""The labelling page and what it asks: GET /state, /queue and /image, POST /verdict, /undo and /finish."""

import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Response
from fastapi.responses import HTMLResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, Field

from cache.errors import CacheError, HeadgraftError
from cache.labels import VerdictKind
from pipeline.console import named
from pipeline.errors import DecodeError, LabelError
from pipeline.inputs.decode import Decoding
from pipeline.inputs.pictures import picture_of
from pipeline.inputs.remarks import catching_warnings
from pipeline.labelling.progress import state
from pipeline.labelling.queues import Queues
from pipeline.labelling.session import Session
from pipeline.service.answers import PAGE_HEADERS, answer_with_reasons
from pipeline.service.limits import guarded

_MOST_BYTES = 1_000_000  # of a request
_MOST_ITEMS = 500  # of an answer
_PICTURES = 256  # kept in memory
_DECODED_AT_ONCE = 2  # a photograph of 50 megapixels takes half a GB
_LONGEST = 100  # characters of a new class
_SCRIPTS = ("common", "queues", "card", "verdicts", "typeahead", "explore", "keys", "status")  # one after the other


class VerdictRequest(BaseModel):
    """A decision on one image, or on several at once."""

    digest: str | None = None
    digests: list[str] = Field(default_factory=list, max_length=_MOST_ITEMS)
    verdict: VerdictKind
    label: str | None = Field(default=None, alias="class")
    queue: Literal["fix", "label", "explore"] = "explore"
    rank: int = Field(default=0, ge=0, le=10**9)


class UndoRequest(BaseModel):
    """Which decision to take back, by the number of one of its lines: refused where another came after it."""

    number: int | None = None


class Asked:
    """What the page asks of one session, whose images are below `root`; `finish` writes a run and says so."""

    def __init__(
        self,
        session: Session,
        root: Path,
        policy: Decoding,
        names: dict[str, str],
        run: Path,
        finish: Callable[[], Any],
    ) -> None:
        self._session, self._queues, self._names, self._run, self._finish = session, Queues(session), names, run, finish

        decoding = threading.Semaphore(_DECODED_AT_ONCE)

        @lru_cache(_PICTURES)
        def picture(digest: str, side: int) -> bytes:
            image = session.contents.images[session.known(digest)]
            with decoding, catching_warnings():
                found = picture_of(root / image.path, digest, policy)
            found.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
            found.save(target := BytesIO(), "WEBP", quality=85)
            return target.getvalue()

        self._picture = picture

    def state(self) -> dict[str, Any]:
        """Counts, accuracy, pace and forecast."""
        return state(self._session, self._queues, self._names, str(self._run))

    def queue(
        self,
        kind: Literal["fix", "label", "explore"],
        n: Annotated[int, Query(ge=1, le=_MOST_ITEMS)] = 12,
        like: str | None = None,
        label: Annotated[str | None, Query(alias="class")] = None,
        likely: str | None = None,
        split: Literal["train", "valid", "unlabelled"] | None = None,
    ) -> dict[str, Any]:
        """The next items of a queue, ranked by the labels so far."""
        if kind == "explore":
            return self._queues.explore(n, like, label, likely, split)
        return self._queues.fix(n) if kind == "fix" else self._queues.label(n)

    def verdict(self, asked: VerdictRequest) -> dict[str, int]:
        """Record a decision; it is on the disk when this answers. The same decision again is the same one."""
        digests = [*([asked.digest] if asked.digest else []), *asked.digests]
        label = _checked(asked, digests, self._session.classes)
        number = self._session.verdict(digests, asked.verdict, label, asked.queue, asked.rank)
        return {"number": number, "labels": len(self._session.journal.chains)}

    def undo(self, asked: UndoRequest | None = None) -> dict[str, Any]:
        """Take the last decision back."""
        undone = self._session.undo(asked.number if asked else None)
        digests = [one.digest for one in undone]
        queue = "label" if undone[0].queue == "random" else undone[0].queue
        items = self._queues.items(digests)
        first, last = undone[0], self._session.journal.last(self._session.digests)
        return {
            "number": first.number,
            "digests": digests,
            "queue": queue,
            "items": items,
            "verdict": first.verdict,
            "class": first.new or None,
            "last": {"number": last[0].number} if last else None,
        }

    def image(self, digest: str, side: Annotated[int, Query(ge=16, le=2048)] = 640) -> Response:
        """An image, no side longer than `side` pixels."""
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(self._picture(digest, side), media_type="image/webp", headers=headers)

    def finish(self) -> Any:
        """Train a head of all the labels, with its basis fitted on them, as a run."""
        return self._finish()


def _checked(asked: VerdictRequest, digests: list[str], known: Collection[str]) -> str:
    """The class of a verdict, "" of others; LabelError where it is incomplete, or cannot name a new class."""
    given = asked.label or ""
    label = given if given in known else given.strip()
    if not digests:
        raise LabelError("no image is named, expected digest or digests")
    if (asked.verdict == "class") != bool(label):
        raise LabelError(f"the verdict is {asked.verdict!r}, the class {label!r}: a class belongs to the verdict class")
    if label not in known and (label != named(label) or len(label) > _LONGEST):
        raise LabelError(f"the class {named(label[:_LONGEST])}: use at most {_LONGEST} printable characters")
    return label


def whole_page() -> str:
    """The page as one document, which loads nothing."""
    folder = files("pipeline.labelling") / "page"
    scripts = "\n".join((folder / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    page, style = ((folder / name).read_text("utf-8") for name in ("page.html", "style.css"))
    return page.replace("<!-- style.css -->", style).replace("<!-- scripts -->", scripts)


def create_app(asked: Asked, retrain: Callable[[], None], stop: Callable[[], None], local: bool) -> FastAPI:
    """The page of a session; `local` where only programs of this machine are meant to ask."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        retrain()
        yield
        stop()

    app = FastAPI(title="Headgraft labels", lifespan=running, openapi_url=None, redirect_slashes=False)
    app.add_middleware(guarded, most=_MOST_BYTES, local=local)
    answer_with_reasons(app, "GET /, /state, /queue, /image or POST /verdict, /undo, /finish")
    app.get("/state")(asked.state)
    app.get("/queue")(asked.queue)
    app.post("/verdict")(asked.verdict)
    app.post("/undo")(asked.undo)
    app.get("/image/{digest}")(asked.image)
    app.post("/finish")(asked.finish)
    page = whole_page()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers=PAGE_HEADERS)

    @app.exception_handler(HeadgraftError)
    def refused(_: Any, error: HeadgraftError) -> JSONResponse:
        status = 404 if isinstance(error, DecodeError) else 507 if isinstance(error, CacheError) else 409
        return JSONResponse({"reason": named(str(error))}, status)

    return app
