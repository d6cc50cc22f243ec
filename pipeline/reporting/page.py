"""The page: the templates beside this file, filled in. Every text from outside is escaped."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.console import counted, duration, named, size

_LONGEST = 22  # letters of a class at the edge of the matrix


def render(facts: Mapping[str, Any]) -> bytes:
    """The whole page as UTF-8; what is no character, a stray byte in a file's name, is written as an escape."""
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clipped=_clipped,
        counted=counted,
        percent=_percent,
        plain=named,
        rate=_rate,
        seconds=_seconds,
        short=_short,
        size=size,
    )
    environment.globals.update(facts)
    parts = environment.get_template("parts.html").module
    return environment.get_template("page.html").render(parts=parts).encode("utf-8", "backslashreplace")


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.1f}" if seconds > 0 else "–"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
