"""What one request, and all of them, may hold: refused while it is being received rather than when it is whole."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes of its body, files, and pixels of each; and of all: images that wait at once.

    `local`: whether only programs of this machine are meant to ask.
    """

    bytes: int = 32 << 20
    files: int = 16
    pixels: int = 50_000_000
    waiting: int = 128
    local: bool = True

    @property
    def large(self) -> int:
        """Large images that may wait at once: those of one request, or a few of many that may wait."""
        return max(self.files, self.waiting // 8)


class Busy(Exception):
    """More images wait than may: come back later."""


class Room:
    """Room for `most` images that wait at once."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextlib.contextmanager
    def take(self, images: int) -> Iterator[None]:
        """Take room for so many images, and give it back in the end; Busy, at once, where there is none."""
        if images > self._free:
            raise Busy
        self._free -= images
        try:
            yield
        finally:
            self._free += images


DISCARDED = 8  # times the limit that is read of a body and thrown away


class LimitBody:
    """An ASGI application whose requests end with status 413 where their body is over `most` bytes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
        whole = False
        if received <= self.most:
            received = 0

            async def counted() -> Message:
                nonlocal received, whole
                message = await receive()
                whole = not message.get("more_body", False)
                received += len(message.get("body", b""))
                # What is over the limit is not handed on: to the application the client is gone.
                return {"type": "http.disconnect"} if received > self.most else message

            async def watched(message: Message) -> None:
                if received <= self.most:
                    await send(message)

            with contextlib.suppress(ClientDisconnect):
                await self.app(scope, counted, watched)
        if received > self.most:
            if not whole and received <= DISCARDED * self.most:
                await _discard(receive, DISCARDED * self.most)
            reason = f"the request is over the limit of {self.most:,} bytes: send fewer or smaller images"
            await JSONResponse({"reason": reason}, 413, {"Connection": "close"})(scope, receive, send)


async def _discard(receive: Receive, most: int) -> None:
    """Read the rest of a body, up to `most` bytes: who is still sending would see a broken connection, no reason."""
    while most > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        most -= len(message.get("body", b""))
