"""A page of another site must not use, or read, a service that was meant for this machine."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameOrigin:
    """An ASGI application that refuses, with status 403, what a browser asks on behalf of another site.

    A browser says so in `Origin`. Where the service is `local`, its own name has to be one of this machine: a site
    could otherwise have its name point here, and be its own origin.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self.app = app
        self.local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        reason = self._fault(Headers(scope=scope)) if scope["type"] == "http" else ""
        if reason:
            await JSONResponse({"reason": reason}, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _fault(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and not _is_loopback(host):
            return "this service is for programs on its own machine: ask it as localhost, or serve with --host"
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "this service is not for pages of other sites"
        return ""


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
