"""The journal of a sweep: a line for what was asked, then one for each result, each durable before the next begins.

A sweep that is killed goes on from it; a last line cut short by the kill is dropped.
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.errors import CacheError
from cache.files import read_regular, write_atomically
from pipeline.errors import RunError
from pipeline.run import JOURNAL_FILE

_FORMAT = 1


@dataclass(frozen=True)
class Score:
    """How a head did in its first `epochs` epochs: validation accuracy, a fraction, and loss of the best, its epoch."""

    epochs: int
    valid_accuracy: float
    valid_loss: float
    kept_epoch: int

    @property
    def rank(self) -> tuple[float, float]:
        """The higher the better: accuracy, and of equally accurate ones the lower loss."""
        return self.valid_accuracy, -self.valid_loss


UNTRIED = Score(0, 0.0, math.inf, 0)


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
            write_atomically(path, _line({"format": _FORMAT, "asked": asked}))
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
            score = _score(self.path, line)
            self._keep(line["head"], score)
        return self

    def record(self, head: int, score: Score) -> None:
        """Keep a result; CacheError where the disk does not."""
        try:
            with open(self.path, "ab") as file:
                file.write(_line({"head": head, **vars(score)}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CacheError(f"could not write {self.path}: {error.strerror}; run the same sweep again") from error
        self._keep(head, score)

    def _keep(self, head: int, score: Score) -> None:
        self.scores.setdefault(head, {})[score.epochs] = score


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


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


def _score(path: Path, line: dict[str, Any]) -> Score:
    values = [line.get(name) for name in ("epochs", "valid_accuracy", "valid_loss", "kept_epoch")]
    if [type(value) for value in (line.get("head"), *values)] != [int, int, float, float, int]:
        raise _damaged(path, f"a line {str(line)[:80]}")
    return Score(*values)  # type: ignore[arg-type]  # of these types, as was just seen


def _damaged(path: Path, error: object) -> RunError:
    return RunError(f"{path} is not the journal of a sweep ({error}): begin the sweep anew with --overwrite")


def _refuse_other(folder: Path, first: dict[str, Any], asked: dict[str, Any]) -> None:
    before = first.get("asked")
    before = before if isinstance(before, dict) else {}
    names = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if names:
        lines = "\n".join(f"  {name}: it has {before.get(name)!r}, asked for {asked.get(name)!r}" for name in names)
        raise RunError(
            f"{folder} holds a sweep that was begun with other settings:\n{lines}\n"
            "Ask for the same to go on with it, choose another --run, or begin anew with --overwrite."
        )
