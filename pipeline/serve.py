"""A model file over HTTP, until interrupted."""

import logging
import socket
from importlib.util import find_spec
from ipaddress import ip_address

import torch

from cache.errors import install_hint
from pipeline.config import ServeConfig
from pipeline.errors import PipelineError
from pipeline.machine.device import available_cpus
from pipeline.model.file import load_bundle

logger = logging.getLogger("headgraft.serve")

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def serve(config: ServeConfig) -> None:
    """Serve a model on `host` and `port`; PipelineError where a package of the extra is missing."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise PipelineError(f"serve needs {', '.join(missing)}: {install_hint('serve')}")
    import uvicorn

    from pipeline.service.app import create_app
    from pipeline.service.limits import DISCARDED
    from pipeline.service.server import GRACE_SECONDS, Connection, Server

    with _listening(config) as listener:  # first: reading a model takes longer
        local = ip_address(listener.getsockname()[0]).is_loopback
        bundle = load_bundle(config.model)
        torch.set_num_threads(available_cpus())
        settings = uvicorn.Config(
            create_app(bundle.on(config.device, config.precision), config, local),
            http=Connection,
            ws="none",
            loop="asyncio",
            log_level="error",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = Server(settings, int(DISCARDED * config.max_mb * 1e6))
        host, port = config.host, listener.getsockname()[1]
        logger.info(f"{config.model}: http://{f'[{host}]' if ':' in host else host}:{port}/ (Ctrl-C ends it)")
        server.run(sockets=[listener])


def _listening(config: ServeConfig) -> socket.socket:
    """A socket at the host and port that were asked for."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PipelineError(f"--host {config.host} is not an address of this machine: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        place = f"--host {config.host} --port {config.port}"
        raise PipelineError(f"{place} cannot be listened on ({error.strerror}): choose another") from error
    return listener
