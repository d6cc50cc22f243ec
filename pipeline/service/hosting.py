"""An application on a host and a port, until interrupted."""

import socket
from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

from cache.errors import install_hint
from pipeline.errors import PipelineError

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def require_packages(command: str) -> None:
    """PipelineError where a package of the extra is missing."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise PipelineError(f"{command} needs {', '.join(missing)}: {install_hint('serve')}")


def listening(host: str, port: int) -> socket.socket:
    """A socket at the host and port that were asked for."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PipelineError(f"--host {host} is not an address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        place = f"--host {host} --port {port}"
        raise PipelineError(f"{place} cannot be listened on ({error.strerror}): choose another") from error
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether only programs of this machine reach it."""
    return ip_address(listener.getsockname()[0]).is_loopback


def host(app: Any, listener: socket.socket, name: str, most_bytes: int, say: Callable[[str], None]) -> None:
    """Answer with `app` until interrupted, after one line to `say`; at most `most_bytes` of uploads at a time."""
    import uvicorn

    from pipeline.service.server import GRACE_SECONDS, Connection, Server

    settings = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        log_level="error",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    address, port = listener.getsockname()[:2]
    say(f"{name}: http://{f'[{address}]' if ':' in address else address}:{port}/ (Ctrl-C ends it)")
    Server(settings, most_bytes).run(sockets=[listener])
