"""The HTTP server: how many clients it holds, how long it waits for one, what it logs, and how it ends."""

import asyncio
import logging
import socket
import time
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger("headgraft.service")


try:
    import resource
except ImportError:  # as on Windows, which has no limit on descriptors
    resource = None  # type: ignore[assignment]

CONNECTIONS = 500  # at most, and at most half of the descriptors: uploads need the others
DESCRIPTORS = 8192  # more are not asked for
HEADER_SECONDS = 10.0  # that a client has for a request's header
BODY_SECONDS = 30.0  # that it may be behind with the body, which is to arrive with at least
BODY_RATE = 4000  # bytes/s
ANSWER_SECONDS = 30.0  # that it may leave an answer unread
GRACE_SECONDS = 5  # for requests in progress when the service is stopped
UNTOUCHED = 0.05  # seconds that a client keeps its place however many others come: its request may be under way
READ_BYTES = 16_384  # at once: parsing a body sent in chunks of a byte takes 1.5 s a MB
PAUSE = 0.02  # seconds until a connection is tried again for which there was no room


class Connection(H11Protocol):
    """A client's connection, dropped where the client takes too long.

    Attributes:
        since: From when on the client has kept the service waiting, in seconds of `time.monotonic`.
        received: Bytes of the current request.
    """

    since = 0.0
    received = 0

    @property
    def uploads(self) -> bool:
        """Whether the body of a request is being received."""
        return self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete

    @property
    def patience(self) -> float | None:
        """Seconds that the client may keep the service waiting; None while its answer is computed."""
        if self.cycle is None or self.cycle.response_complete:
            return HEADER_SECONDS
        if self.uploads:
            return BODY_SECONDS
        return ANSWER_SECONDS if self.flow.write_paused else None

    @property
    def overdue(self) -> float:
        """Share of its patience that the client has used: it is dropped at 1, or earlier where there is no room."""
        return (time.monotonic() - self.since) / self.patience if self.patience else 0.0

    def drop(self) -> None:
        """Close the connection now, whatever is still to be sent."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # of asyncio's own; the default is 256 KiB
        self.since = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Part of a request has arrived."""
        self.received += len(data)
        if self.uploads:
            self.since = min(time.monotonic(), self.since + len(data) / BODY_RATE)
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:  # a request has started
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        """An answer has been handed over; the next request may start, unless it came before the answer."""
        self.since, self.received = time.monotonic(), 0
        if self.conn.trailing_data[0].strip():
            self.transport.close()  # thousands of requests sent at once would keep the others waiting
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; after a request there may be an answer under way already."""
        if self.cycle is None:
            super().send_400_response(msg)
        else:
            self.drop()

    def pause_writing(self) -> None:
        """The client does not read its answer."""
        super().pause_writing()
        self.since = time.monotonic()


class Server(uvicorn.Server):
    """Accepts connections of one socket, never more than there are descriptors for.

    Where there is no room, the clients that keep the service waiting the longest are dropped, so that a new one is
    always answered. Bodies that are being received have `most_bytes` together: the largest is dropped.
    """

    def __init__(self, config: uvicorn.Config, most_bytes: int) -> None:
        super().__init__(config)
        self._most = min(CONNECTIONS, _raise_descriptor_limit() // 2)
        self._most_bytes = most_bytes
        self._logged: set[object] = set()
        for name in ("uvicorn.error", "asyncio", logger.name):
            logging.getLogger(name).addFilter(self._first_of_its_kind)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the client is answered with the reason

    @property
    def _connections(self) -> list[Connection]:
        return cast(list[Connection], list(self.server_state.connections))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections here rather than in asyncio, which logs each one that finds no descriptor."""
        await super().startup(sockets=[])
        (listener,) = sockets or []
        listener.setblocking(False)
        listener.listen(self.config.backlog)
        self._accepting = asyncio.create_task(self._accept(listener))

    async def on_tick(self, counter: int) -> bool:
        """Drop the clients that take too long or send too much."""
        for connection in self._connections:
            if connection.overdue > 1:
                connection.drop()
        uploads = sorted((one for one in self._connections if one.uploads), key=lambda one: one.received)
        while sum(one.received for one in uploads) > self._most_bytes:
            uploads.pop().drop()
        if self._accepting.done():
            self._accepting.result()  # it never ends by itself: show why
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give requests in progress `GRACE_SECONDS`; drop clients that the service waits for."""
        self._accepting.cancel()
        for connection in self._connections:
            if connection.patience is not None:
                connection.drop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the first signal, at once after the second; neither is an error."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while len(self._connections) >= self._most:
                await asyncio.sleep(0 if self._make_room() else PAUSE)
            try:
                client, _ = await loop.sock_accept(listener)
                protocol = partial(Connection, self.config, self.server_state, self.lifespan.state)
                await loop.connect_accepted_socket(protocol, client)
            except OSError as error:
                logger.warning("a connection was not accepted: %s (further ones are not reported)", error.strerror)
                self._make_room()
                await asyncio.sleep(PAUSE)

    def _make_room(self) -> bool:
        """Drop a twentieth of the connections; False where the service waits for no client."""
        soon = time.monotonic() - UNTOUCHED
        awaited = [one for one in self._connections if one.patience is not None and one.since < soon]
        awaited.sort(key=lambda one: one.overdue, reverse=True)
        for connection in awaited[: max(1, self._most // 20)]:
            connection.drop()
        return bool(awaited)

    def _first_of_its_kind(self, record: logging.LogRecord) -> bool:
        """Whether to log a record: a client can cause the same error any number of times, and stopping causes some."""
        kind = (record.msg, record.exc_info and record.exc_info[0])
        first = kind not in self._logged
        self._logged.add(kind)
        return first and not self.should_exit


def _raise_descriptor_limit() -> int:
    """Set this process's limit on descriptors as high as is allowed and of use; returns how many there are."""
    if resource is None:
        return DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= DESCRIPTORS:
        return DESCRIPTORS
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # some systems grant less than the hard limit says
        return soft
    return wanted
