"""What every answer of a service has in common: the headers of its page, and a reason in each refusal."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pipeline.console import named

# The page is all there is: nothing is loaded from elsewhere, and nothing it shows can be a program.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def fault_of(error: Any) -> str:
    """The first thing wrong with the parameters of a request, by where it stands."""
    return f"{'.'.join(map(str, error['loc'][1:])) or 'the request'}: {error['msg']}"


def answer_with_reasons(app: FastAPI, served: str, fault: Callable[[Any], str] = fault_of) -> None:
    """Whatever is refused is refused as {"reason": one sentence}; `fault` words errors in parameters."""

    async def refused(request: Request, error: Any) -> JSONResponse:
        asked = f"{request.method} {request.url.path} is not served, expected {served}"
        reason = asked if error.status_code in (404, 405) else error.detail
        return JSONResponse({"reason": named(reason)}, error.status_code, error.headers)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        return JSONResponse({"reason": named(fault(error.errors()[0]))}, 422)

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
