"""The journal of a sweep: a line for what was asked, then one for each result, each durable before the next begins.

A sweep that is killed goes on from it; a last line cut short by the kill is dropped.
"""

import json
import math
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import CacheError
from cache.files import append_line, read_regular, write_atomically
from cache.records import Count, convert
from pipeline.errors import RunError
from pipeline.run_folder import JOURNAL_FILE

_FORMAT = 2


@dataclass(frozen=True)
class Score:
    """How a head does after `epochs` epochs: its mean loss on the V validation images, and `hits`, where it is right.

    `hits` are V bits, packed, in the order of the index.
    """

    epochs: int
    valid_loss: float
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


@dataclass(frozen=True)
class _Line:
    """A result as a line of the file: `hits` in base 64."""

    head: Count
    epochs: Count
    loss: float
    hits: bytes


UNTRIED = Score(0, math.inf, b"")


@dataclass
class Journal:
    """`scores` by head, then by epochs."""

    path: Path
    scores: dict[int, dict[int, Score]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, asked: dict[str, Any]) -> "Journal":
        """That of the run folder, begun if it is not there; RunError names what was asked otherwise then."""
        path = folder / JOURNAL_FILE
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _line({"format": _FORMAT, "asked": asked}) + b"\n")
            return cls(path)
        first, *lines = _read(path)
        _refuse_other(folder, first, asked)
        _drop_torn_line(path)
        return cls(path)._with(lines)

    @classmethod
    def read(cls, folder: Path) -> "Journal":
        """That of a sweep that is finished, whatever was asked."""
        path = folder / JOURNAL_FILE
        return cls(path)._with(_read(path)[1:])

    def _with(self, lines: list[dict[str, Any]]) -> "Journal":
        for line in lines:
            try:
                found = convert(line, _Line)
            except ValueError as error:
                raise _damaged(self.path, error) from error
            self._keep(found.head, Score(found.epochs, found.loss, found.hits))
        return self

    def record(self, head: int, score: Score) -> None:
        """Keep a result; CacheError where the disk does not."""
        try:
            hits = b64encode(score.hits).decode("ascii")
            append_line(
                self.path, _line({"head": head, "epochs": score.epochs, "loss": score.valid_loss, "hits": hits})
            )
        except OSError as error:
            raise CacheError(f"could not write {self.path}: {error.strerror}; run the same sweep again") from error
        self._keep(head, score)

    def _keep(self, head: int, score: Score) -> None:
        self.scores.setdefault(head, {})[score.epochs] = score


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _complete(data: bytes) -> bytes:
    return data[: data.rfind(b"\n") + 1]


def _drop_torn_line(path: Path) -> None:
    data = read_regular(path)
    if len(_complete(data)) != len(data):
        write_atomically(path, _complete(data))


def _read(path: Path) -> list[dict[str, Any]]:
    """Its lines, without one that a kill cut short."""
    try:
        lines = [json.loads(line) for line in _complete(read_regular(path)).splitlines()]
        if not lines or not all(isinstance(line, dict) for line in lines) or lines[0]["format"] != _FORMAT:
            raise ValueError("no journal of this format")
    except (ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error
    return lines


def _damaged(path: Path, error: object) -> RunError:
    return RunError(f"{path} is not the journal of a sweep ({error}): restart the sweep with --overwrite")


def _refuse_other(folder: Path, first: dict[str, Any], asked: dict[str, Any]) -> None:
    before = first.get("asked")
    before = before if isinstance(before, dict) else {}
    names = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if names:
        lines = "\n".join(f"  {name}: it has {before.get(name)!r}, asked for {asked.get(name)!r}" for name in names)
        raise RunError(
            f"{folder} holds a sweep that was started with other settings:\n{lines}\n"
            "Use the same settings to resume it, choose another --run, or restart with --overwrite."
        )
