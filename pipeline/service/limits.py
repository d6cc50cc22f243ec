"""Whom the service answers, what a request may hold, and how many images may wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCARDED = 8  # times the limit that is read of a body and thrown away
RETRY_AFTER = 1  # second


class Room:
    """Room for `most` images, or bytes of them, that wait at once."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Take so much room, and give it back in the end; status 503, at once, where there is none."""
        if count > self._free:
            raise HTTPException(503, "queue full, retry in a second", {"Retry-After": str(RETRY_AFTER)})
        self._free -= count
        try:
            yield
        finally:
            self._free += count


def guarded(app: ASGIApp, most: int, local: bool) -> ASGIApp:
    """An ASGI application that refuses for `app` pages of other sites (403), and bodies over `most` bytes (413).

    A browser names the site of a page in `Origin`. Where only programs of this machine are meant to ask (`local`), the
    service's own name has to be one of it: a site could otherwise have its name point here, and be its own origin.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if reason := _foreign(headers, local):
                await JSONResponse({"reason": reason}, 403)(scope, receive, send)
                return
            announced = int(headers.get("content-length", 0))
            receive = _counted(receive, announced, most)
            if announced > most:  # also of a request whose body nothing would read
                try:
                    await receive()
                except HTTPException as error:
                    await JSONResponse({"reason": error.detail}, error.status_code, error.headers)(scope, receive, send)
                return
        await app(scope, receive, send)

    return answer


def _foreign(headers: Headers, local: bool) -> str:
    """Why a request is not answered, by its headers; "" where it is."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if local and not _is_loopback(host):
        return "only localhost requests are accepted: ask the service as localhost, or serve with --host"
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "requests from pages of other sites are refused"
    return ""


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _counted(receive: Receive, announced: int, most: int) -> Receive:
    """`receive`, with status 413 where the body is over `most` bytes, announced or received.

    The rest of the body is read first, up to a limit: who is still sending would see a broken connection, no reason.
    """
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive() if announced <= DISCARDED * most else {}
        received += len(message.get("body", b""))
        while max(announced, received) > most:
            if received > DISCARDED * most or not message.get("more_body", False):
                reason = f"the request is over the limit of {most:,} bytes: send fewer or smaller images"
                raise HTTPException(413, reason, {"Connection": "close"})
            message = await receive()
            received += len(message.get("body", b""))
        return message

    return counted
