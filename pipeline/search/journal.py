"""The journal of a sweep: a line for what was asked, then one for each result, each durable before the next begins.

A sweep that is killed resumes from it; a last line cut short by the kill is dropped.
"""

import json
import math
from base64 import b64encode
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cache.errors import CacheError
from cache.files import append_line, read_regular, write_atomically
from cache.records import Count, convert, fault
from pipeline.errors import RunError
from pipeline.run_folder import JOURNAL_FILE

_FORMAT: Literal[2] = 2


@dataclass(frozen=True)
class Score:
    """How a head does after `epochs` epochs.

    Attributes:
        epochs: that it was trained for.
        loss: mean validation loss.
        hits: where it is right, a bit for each of the V validation images in the order of the index.
    """

    epochs: Count
    loss: float
    hits: bytes = field(repr=False)

    @classmethod
    def of(cls, epochs: int, loss: float, hits: npt.NDArray[np.bool_]) -> "Score":
        """Of hits (V,)."""
        return cls(epochs, loss, np.packbits(hits).tobytes())

    def unpacked(self, images: int) -> npt.NDArray[np.bool_]:
        """Hits (V,) over V `images`; RunError where they are of another number."""
        if len(self.hits) != -(-images // 8):
            raise RunError(f"the journal has hits of {8 * len(self.hits)} images, expected {images}: use --overwrite")
        return np.unpackbits(np.frombuffer(self.hits, np.uint8), count=images).astype(bool)


UNTRIED = Score(0, math.inf, b"")


@dataclass(frozen=True, kw_only=True)
class _Result(Score):
    """A line of the file: the score of a head, `hits` in base 64."""

    head: Count


@dataclass(frozen=True)
class _Asked:
    """The first line of the file."""

    format: Literal[2]
    asked: dict[str, Any]


@dataclass
class Journal:
    """What was `asked` of a sweep, and its `scores` by head, then by epochs; kept in memory alone without a `path`."""

    path: Path | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    scores: dict[int, dict[int, Score]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, asked: dict[str, Any]) -> "Journal":
        """That of the run folder, started if it is not there; RunError names what was asked otherwise then."""
        path = folder / JOURNAL_FILE
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _line({"format": _FORMAT, "asked": asked}) + b"\n")
            return cls(path, asked)
        if is_of_version_0_1(folder):
            raise RunError(
                f"{path} was written by headgraft 0.1, expected format {_FORMAT}: restart it with --overwrite"
            )
        journal = cls.read(folder)
        _refuse_other(folder, journal.asked, asked)
        data = read_regular(path)
        if (complete := _complete(data)) != data:
            write_atomically(path, complete)
        return journal

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """That of the run folder, whatever was asked; RunError where it is none."""
        path = folder / JOURNAL_FILE
        try:
            lines = [json.loads(line) for line in _complete(read_regular(path)).splitlines()]
            if not lines:
                raise ValueError("it has no complete line")
            journal = cls(path, convert(lines[0], _Asked).asked)
            for line in lines[1:]:
                result = convert(line, _Result)
                journal._keep(result.head, result)
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{path} is not the journal of a sweep ({fault(error)}): restart the sweep with --overwrite"
            ) from error
        return journal

    def record(self, head: int, score: Score) -> None:
        """Keep a result; CacheError where the disk does not."""
        line = {"head": head, **asdict(score), "hits": b64encode(score.hits).decode("ascii")}
        if self.path:
            try:
                append_line(self.path, _line(line))
            except OSError as error:
                raise CacheError(f"could not write {self.path}: {error.strerror}; run the same sweep again") from error
        self._keep(head, score)

    def _keep(self, head: int, score: Score) -> None:
        self.scores.setdefault(head, {})[score.epochs] = score


def is_of_version_0_1(folder: Path) -> bool:
    """Whether the journal of the run folder has format 1: it lacks which images a head classified correctly."""
    try:
        first: object = json.loads(_complete(read_regular(folder / JOURNAL_FILE)).partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.get("format") == 1


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _complete(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _refuse_other(folder: Path, before: dict[str, Any], asked: dict[str, Any]) -> None:
    names = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if names:
        lines = "\n".join(f"  {name}: it has {before.get(name)!r}, asked for {asked.get(name)!r}" for name in names)
        raise RunError(
            f"{folder} holds a sweep that was started with other settings:\n{lines}\n"
            "Use the same settings to resume it, choose another --run, or restart with --overwrite."
        )
