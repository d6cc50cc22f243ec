"""Bundle + image files → predictions."""

import csv
import glob
import io
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipeline.config import PredictConfig
from pipeline.console import named
from pipeline.errors import PipelineError
from pipeline.inputs.display_names import read_names
from pipeline.inputs.folders import Kind, entries_of, extension, unread_line
from pipeline.inputs.grey import narrow_range
from pipeline.inputs.listing import extensions
from pipeline.inputs.remarks import Remarks
from pipeline.machine.device import available_cpus, resolve_device
from pipeline.model.file import load_bundle

logger = logging.getLogger("headgraft.predict")


@dataclass
class PredictResult:
    """What `predict` found.

    Attributes:
        precision: that the backbone computed in.
        predictions: `[{path, top: [{class, name, probability}]}]`.
        failed: `[{path, reason}]` of files that cannot be read; the exit status is 1 then.
        seconds: of the command.
        images_per_second: without reading the model.
        unread: `{extension: files}` of other kinds in the folders given.
    """

    precision: str
    predictions: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0
    unread: dict[str, int] = field(default_factory=dict)

    def in_words(self) -> str:
        """A line for each image that could be read."""
        return "\n".join(
            f"{named(one['path'])}: "
            + ", ".join(f"{named(top['name'])} {top['probability']:.1%}" for top in one["top"])
            for one in self.predictions
        )


def predict(config: PredictConfig) -> PredictResult:
    """The `top_k` classes of every image file; files that cannot be decoded are listed, the others predicted."""
    start = time.perf_counter()
    bundle = load_bundle(config.model)
    names = read_names(config.names, bundle.classes) if config.names else bundle.names
    paths, nothing, unread = find_images(config.images)
    if unread:
        logger.warning(unread_line(unread))
    torch.set_num_threads(available_cpus())
    device = resolve_device(config.device)
    precision = bundle.precision_on(device, config.precision)
    mirrored = bundle.mirrors(config.tta)
    network = bundle.backbone(device, precision)
    ready = time.perf_counter()
    if found := narrow_range(paths, bundle.preprocessing.policy):
        logger.warning(f"{found[0]}; the model expects values up to {bundle.preprocessing.policy.grey_range:,}")
    remarks = Remarks()
    log_probs, failed = bundle.log_probs(network, paths, mirrored, remarks)
    for line in remarks.lines():
        logger.warning(line)
    rate = len(paths) / (time.perf_counter() - ready)
    result = PredictResult(precision, failed=nothing, unread=dict(unread))
    for place, path in enumerate(paths):
        if place in failed:
            result.failed.append({"path": str(path), "reason": failed[place]})
            continue
        guesses = bundle.top(log_probs[place], config.top_k, names)
        top = [{"class": guess.label, "name": guess.name, "probability": guess.probability} for guess in guesses]
        result.predictions.append({"path": str(path), "top": top})
    result.images_per_second, result.seconds = rate, time.perf_counter() - start
    return result


def as_csv(predictions: list[dict[str, Any]]) -> str:
    """One line for each class of each image, with a header: path, rank, class, name, probability."""
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(("path", "rank", "class", "name", "probability"))
    for prediction in predictions:
        for rank, guess in enumerate(prediction["top"], start=1):
            lines.writerow((prediction["path"], rank, guess["class"], guess["name"], f"{guess['probability']:.6g}"))
    return table.getvalue().rstrip("\n")


def find_images(given: tuple[str, ...]) -> tuple[list[Path], list[dict[str, str]], Counter[str]]:
    """Files as they are, the images below folders, and what globs match; `-` is a list of these on standard input.

    And what is none of these, with the reason; and how many files of other kinds the folders have, by extension.
    """
    found: list[Path] = []
    nothing: list[dict[str, str]] = []
    unread: Counter[str] = Counter()
    for text in chain.from_iterable(_listed_on_input() if text == "-" else (text,) for text in given):
        path = Path(text)
        try:
            if path.is_dir():
                matches, unlisted, others = _images_below(path)
                nothing += unlisted
                unread += others
            else:
                matches = [path] if path.is_file() else _matches(text)
            if not matches:
                nothing.append({"path": text, "reason": _nothing_at(path)})
        except OSError as error:
            nothing.append({"path": text, "reason": f"cannot be read: {error.strerror}"})
            continue
        found += matches
    return found, nothing, unread


def _nothing_at(path: Path) -> str:
    """Why no image was found at a path or pattern."""
    if path.is_dir():
        return f"a folder without images that are read ({extensions()})"
    return "not a regular file" if path.exists() else "does not exist, and matches no file"


def _listed_on_input() -> list[str]:
    """Lines of standard input that are not empty; bytes that are not UTF-8 stay as in file names."""
    names = [name for line in sys.stdin.buffer if (name := os.fsdecode(line).rstrip("\r\n"))]
    if not names:
        raise PipelineError("standard input lists no image, expected a path a line")
    return names


def _matches(pattern: str) -> list[Path]:
    try:
        return sorted(map(Path, glob.glob(pattern, recursive=True)))
    except RecursionError:  # hundreds of folders in one another
        return []


def _images_below(folder: Path) -> tuple[list[Path], list[dict[str, str]], Counter[str]]:
    """Images in `folder` at any depth, hidden ones aside, each folder once however many links lead to it.

    And what cannot be looked into, with the reason; and how many files of other kinds there are, by extension.
    """
    found: list[Path] = []
    unlisted: list[dict[str, str]] = []
    unread: Counter[str] = Counter()
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        try:
            if (here := place.resolve()) in seen:
                continue
            entries = entries_of(place)
        except OSError as error:
            unlisted.append({"path": str(place), "reason": f"cannot be listed: {error.strerror}"})
            continue
        seen.add(here)
        waiting += [path for path, kind in entries if kind is Kind.FOLDER]
        found += [path for path, kind in entries if kind is Kind.IMAGE]
        unlisted += [{"path": str(path), "reason": Kind.BROKEN.value} for path, kind in entries if kind is Kind.BROKEN]
        unread.update(extension(path) for path, kind in entries if kind is Kind.UNREAD)
    return sorted(found), unlisted, unread
