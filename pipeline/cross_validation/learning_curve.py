"""What a learning curve says: errors by number of images, the law through them, forecasts; as a record and a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.files import read_regular, write_atomically
from cache.layout import PREDICTION_FOLDER
from cache.records import Digest, convert, fault
from cache.result import Result
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.inputs.folders import shown
from pipeline.statistics.power_law import Point, PowerLaw

MOST_CLASSES = 10  # that want images most


def curve_path(cache: Path, name: str) -> Path:
    """Where that of a set lies in its cache."""
    return cache / PREDICTION_FOLDER / f"{name}.json"


@dataclass(frozen=True)
class WantedClass:
    """A class that more images would help.

    Attributes:
        label: its name.
        images: that it has.
        error: of heads of all images, a fraction, shrunken to that of all classes where it has few.
        gain: what twice its images would bring by the law, a fraction of its images.
    """

    label: str
    images: int
    error: float
    gain: float


@dataclass(frozen=True)
class CurveResult(Result):
    """What the learning curve says.

    Attributes:
        set: name of the image set.
        images: of train and valid, each predicted once by the heads of every point.
        groups: of images that are no independent evidence.
        points: error by number of training images, with 95 % intervals over folds and groups.
        fit: `{a, b, c}` of err(n) = a + b n^-c.
        forecast: the error by the fit for once, twice and four times the images, with 95 % intervals.
        classes: those for which twice the images would bring most.
        basis: name of the basis, fitted for each head.
        passes: augmented passes that heads were trained on.
        steps: of each head, whatever its number of images.
        seconds: of the command.
    """

    set: str
    images: int
    groups: int
    points: list[Point]
    fit: PowerLaw
    forecast: list[Point]
    classes: list[WantedClass]
    basis: str
    passes: int
    steps: int
    seconds: float

    def save(self, path: Path, set_digest: str) -> None:
        """Write it down as of the set of that digest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"set_digest": set_digest, "curve": asdict(self)}, indent=1).encode())

    @classmethod
    def refuse_other(cls, path: Path) -> None:
        """RunError where there is a file that `save` did not write."""
        try:
            convert(json.loads(read_regular(path)), _Stored)
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} is no learning curve of headgraft ({fault(error)}): move it away") from error

    @classmethod
    def load(cls, path: Path, set_digest: str) -> "CurveResult | None":
        """What `save` wrote; None of another set than that of the digest. OSError or ValueError for another file."""
        stored = convert(json.loads(read_regular(path)), _Stored)
        return stored.curve if stored.set_digest == set_digest else None

    def in_words(self) -> str:
        """A line for each point and forecast, and the classes."""
        rows = [("images", "error", "95 %"), *map(_row, self.points), *(_row(one, "~") for one in self.forecast)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        fit = f"~ by err(n) = {self.fit.a:.3f} + {self.fit.b:.3g} n^-{self.fit.c:.2f}, for more images of the same kind"
        wanted = shown([f"{one.label} ({one.images}: {100 * one.gain:+.1f})" for one in self.classes], MOST_CLASSES)
        classes = f"classes that twice their images would help most (images: points): {wanted}"
        made = f"basis {self.basis}, {counted(self.passes, 'augmented pass')}, {counted(self.steps, 'step')} a head"
        return "\n".join([*lines, fit, classes, f"{made}; {self.seconds:.1f} s"])


@dataclass(frozen=True)
class _Stored:
    """The file."""

    set_digest: Digest
    curve: CurveResult


def _row(point: Point, mark: str = "") -> tuple[str, str, str]:
    return f"{mark}{point.images:,}", f"{point.error:.2%}", f"{point.low:.2%} to {point.high:.2%}"
