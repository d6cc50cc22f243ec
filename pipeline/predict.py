"""Bundle + image files → predictions."""

import csv
import glob
import io
import json
import os
import sys
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cache.files import read_regular
from pipeline.bundle import Bundle, load_bundle
from pipeline.config import PredictConfig
from pipeline.console import Say, silent
from pipeline.errors import PipelineError
from pipeline.inputs.decode import EXTENSIONS
from pipeline.inputs.remarks import Remarks
from pipeline.machine.device import available_cpus, computes_bfloat16, resolve_device, resolve_precision


@dataclass
class PredictResult:
    """The fields of the command's JSON; `seconds` of all the work, the rate without reading the model."""

    precision: str
    predictions: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0


def predict(config: PredictConfig, say: Say = silent) -> PredictResult:
    """The `top_k` classes of every image file; files that cannot be decoded are listed, the others predicted."""
    start = time.perf_counter()
    bundle = load_bundle(config.model)
    names = read_names(config.names) if config.names else bundle.names
    paths, nothing = find_images(config.images)
    torch.set_num_threads(available_cpus())
    device = resolve_device(config.device)
    precision = bundle_precision(bundle, config.precision, device, say)
    network = bundle.backbone(device, precision)
    ready = time.perf_counter()
    remarks = Remarks()
    log_probs, failed = bundle.log_probs(network, paths, config.tta == "flip", remarks)
    for line in remarks.lines():
        say(line)
    rate = len(paths) / (time.perf_counter() - ready)
    result = PredictResult(precision, failed=nothing)
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


def bundle_precision(bundle: Bundle, asked: str, device: torch.device, say: Say) -> str:
    """`auto` is the bundle's precision where this device computes in it, else float32 with one line saying so."""
    if asked == "auto" and bundle.precision == "bfloat16" and not computes_bfloat16(device):
        say(
            f"the model was trained on bfloat16 features; this {device.type} does not compute in it, so float32 is used"
        )
        return "float32"
    return resolve_precision(asked, device, bundle.precision)


def find_images(given: tuple[str, ...]) -> tuple[list[Path], list[dict[str, str]]]:
    """Files as they are, the images below folders, and what globs match; `-` is a list of these on standard input.

    And what is none of these, with the reason.
    """
    found: list[Path] = []
    nothing: list[dict[str, str]] = []
    for text in chain.from_iterable(_listed_on_input() if text == "-" else (text,) for text in given):
        path = Path(text)
        if path.is_dir():
            matches, unlisted = _images_below(path)
            nothing += unlisted
        else:
            matches = [path] if path.is_file() else _matches(text)
        if not matches:
            nothing.append({"path": text, "reason": "no image, no folder with images, and matches nothing"})
        found += matches
    return found, nothing


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


def _images_below(folder: Path) -> tuple[list[Path], list[dict[str, str]]]:
    """Images in `folder` at any depth, hidden ones aside; and folders that cannot be listed, with the reason."""
    found: list[Path] = []
    unlisted: list[dict[str, str]] = []
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            unlisted.append({"path": str(place), "reason": f"cannot be listed: {error.strerror}"})
            continue
        waiting += [place / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        files = (place / entry.name for entry in entries if entry.is_file())
        found += [path for path in files if path.suffix.lower() in EXTENSIONS]
    return sorted(found), unlisted


def read_names(path: Path) -> dict[str, str]:
    """Display names by class from a JSON object such as cat_to_name.json."""
    try:
        names = json.loads(read_regular(path))
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error.strerror}; expected an object of class: name") from error
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path} cannot be read as JSON ({error}); expected an object of class: name") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) for value in names.values()):
        raise PipelineError(f"{path} is not a JSON object of class: name")
    return names
