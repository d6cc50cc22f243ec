"""The page: the templates beside this file, filled in. Every text from outside is escaped."""

import re
from datetime import UTC, datetime

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.console import counted, duration, named, size, version
from pipeline.duplicates.near_duplicates import MOST_COMPARED
from pipeline.heads.head import hidden_in_words
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.labelling.ridge import FOLDS
from pipeline.reporting import figures, sections
from pipeline.reporting.costs import PHASES
from pipeline.reporting.evidence import squares
from pipeline.reporting.findings import Findings
from pipeline.reporting.next_steps import next_steps
from pipeline.reporting.thumbnails import Thumbnails
from pipeline.search.results import ranked
from pipeline.search.space import SETTINGS
from pipeline.statistics.calibration import BINS
from pipeline.statistics.intervals import METHOD

_LONGEST = 22  # letters of a class at the edge of the matrix


def render(found: Findings, shown: sections.Shown, pictures: Thumbnails) -> bytes:
    """The whole page as UTF-8; what is no character, a stray byte in a file's name, is written as an escape."""
    environment = _environment()
    environment.globals.update(
        found=found,
        shown=shown,
        run=found.run,
        name=found.name,
        label_name=found.label_name,
        next_steps=list(next_steps(found)),
        matrix_side=_matrix(found),
        pictures=pictures,
        numbers={digest: number for number, digest in enumerate(pictures.uris)},
        figures=figures,
        squares=squares,
        inset=_inset(found),
        hidden_in_words=hidden_in_words,
        held_out="held-out" if found.run.record.folds else "validation",
        ranked=ranked,
        settings=_settings(found),
        phases=PHASES,
        bins=BINS,
        folds=FOLDS,
        method=METHOD,
        most_compared=MOST_COMPARED,
        most_in_cell=sections.IN_CELL,
        version=version(),
        today=f"{datetime.now(UTC):%Y-%m-%d}",
    )
    parts = environment.get_template("parts.html").module
    return environment.get_template("page.html").render(parts=parts).encode("utf-8", "backslashreplace")


def _inset(found: Findings) -> float:
    """Fraction of a thumbnail's side, on each side, that the backbone does not see."""
    seen = Preprocessing.of(found.cache.manifest.base)
    return (1 - seen.input_size / seen.resize) / 2


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _matrix(found: Findings) -> dict[str, float]:
    """Units of the confusion matrix: side of a cell, of all cells, and room for the longest name. Text is 6.5 high."""
    order = found.confusion.order
    cell = max(8, min(24, 240 // len(order)))
    longest = max(len(_clipped(found.name(label))) for label in order)
    return {"cell": cell, "side": cell * len(order), "margin": 6 + 4.1 * longest}


def _settings(found: Findings) -> dict[str, bool]:
    """Settings of a sweep's heads, and whether they vary among these."""
    heads = found.sweep.result.heads if found.sweep else []
    return {name: len({getattr(head.config, name) for head in heads}) > 1 for name in SETTINGS}


def _environment() -> Environment:
    """The templates, and how they write numbers and names."""
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
        percent=lambda fraction: f"{100 * fraction:.1f}\u00a0%",
        points_of=lambda images: f"{100 / images:.2g} points",
        plain=named,
        points=lambda fraction: f"{100 * fraction:+.1f}",
        rate=lambda count, seconds: f"{count / seconds:,.1f}" if seconds > 0 else "–",
        seconds=lambda seconds: f"{seconds:.1f} s" if seconds < 60 else duration(seconds),
        short=lambda value: f"{value:.3g}" if isinstance(value, float) else str(value),
        size=size,
        spaced=lambda text: re.sub(r"(?<=\d)%", "\u00a0%", text),
        thousands=lambda count: f"{count:,}",
    )
    return environment
