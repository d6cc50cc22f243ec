"""Bundle + image files → predictions."""

import csv
import glob
import io
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from cache.files import write_atomically
from cache.result import Result
from pipeline.config.models import PredictConfig
from pipeline.console import counted, named
from pipeline.errors import ConfigError, PipelineError
from pipeline.evidence.drawing import as_png, draw
from pipeline.inputs.decode import Pixels
from pipeline.inputs.display_names import read_names
from pipeline.inputs.folders import Kind, entries_of, extension, unread_line
from pipeline.inputs.grey import narrow_range
from pipeline.inputs.listing import extensions
from pipeline.inputs.remarks import Remarks
from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_model
from pipeline.model.prediction import NONE_OF, Outputs
from pipeline.run_folder import check_target, refuse_other_kind
from pipeline.unknown.drift import FEWEST, Drift, drift_of

logger = logging.getLogger("headgraft.predict")


@dataclass
class PredictResult(Result):
    """What `predict` found.

    Attributes:
        precision: that the backbone computed in.
        predictions: `[{path, top: [{label, name, probability}], answered, reason, unknown_p, set}]`; `class` is an
            alias of `label`, kept until 1.0; `set` is there where the model has thresholds of sets, and with
            `--explain` `evidence: {class, against, cells, constant, total, picture}`.
        failed: `[{path, reason}]` of files that cannot be read; the exit status is 1 then.
        seconds: of the command.
        images_per_second: without reading the model.
        unread: `{extension: files}` of other kinds in the folders given.
        drift: what p-values of 20 images or more say together; null of fewer, and of a model without a detector of
            unknown images.
    """

    precision: str
    predictions: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0
    unread: dict[str, int] = field(default_factory=dict)
    drift: Drift | None = None

    def in_words(self) -> str:
        """A line for each image that could be read."""
        return "\n".join(map(_line, self.predictions))


def predict(config: PredictConfig) -> PredictResult:
    """Predict the `top_k` classes of every image file; files that cannot be decoded are listed, not raised.

    Raises:
        BundleError: the model file cannot be read.
        ConfigError: the model cannot do what an option asks, such as `explain` of one without cells.
    """
    start = time.perf_counter()
    bundle = load_model(config.model)
    if config.names:
        bundle = replace(bundle, card=replace(bundle.card, names=read_names(config.names, bundle.classes)))
    _check_targets(config, bundle)
    paths, nothing, unread = find_images(tuple(map(str, config.images)))
    if unread:
        logger.warning(unread_line(unread))
    torch.set_num_threads(available_cpus())
    predictor = bundle.on(config.device, config.precision)
    ready = time.perf_counter()
    policy = bundle.preprocessing.policy
    if found := narrow_range(paths, policy):
        logger.warning(f"{found[0]}; the model expects values up to {policy.grey_range:,}")
    failed: dict[int, str] = {}
    remarks = Remarks()
    evidence: dict[int, dict[str, Any]] = {}

    def explain(index: int, view: Pixels, outputs: Outputs) -> None:
        assert config.explain
        picture = config.explain / f"{index:05d}-{paths[index].stem}.png"
        evidence[index] = {"evidence": _explained(bundle, view, outputs, picture)}

    each = explain if config.explain else None
    outputs = predictor.outputs(paths, config.tta == "flip", failed, remarks, each)
    for line in remarks.lines():
        logger.warning(line)
    rate = len(paths) / (time.perf_counter() - ready)
    return PredictResult(
        predictor.backbone.precision,
        predictions=[
            {"path": str(path), **bundle.prediction(outputs[index], config.top_k).as_json(), **evidence.get(index, {})}
            for index, path in enumerate(paths)
            if index not in failed
        ],
        failed=nothing + [{"path": str(paths[index]), "reason": reason} for index, reason in failed.items()],
        seconds=time.perf_counter() - start,
        images_per_second=rate,
        unread=dict(unread),
        drift=_drift(config, bundle, outputs),
    )


def _line(one: dict[str, Any]) -> str:
    classes = ", ".join(f"{named(top['name'])} {top['probability']:.1%}" for top in one["top"])
    possible = one.get("set", []) if not one["reason"].startswith(NONE_OF) else []  # sets are of known classes
    inside = "; one of " + ", ".join(map(named, possible)) if len(possible) > 1 else ""
    said = classes if one["answered"] else f"{one['reason']} ({classes})"
    if one["reason"].startswith(NONE_OF):
        said = f"{one['reason']}, p = {one['unknown_p']:.2g} (if one of them, {classes})"
    return f"{named(one['path'])}: {said}{inside}"


def _explained(bundle: Bundle, view: Pixels, outputs: Outputs, picture: Path) -> dict[str, Any]:
    """Why the likeliest class rather than the runner-up, drawn and in numbers."""
    assert outputs.rows is not None
    found = bundle.evidence(outputs.rows)[0]
    label, against = (bundle.name(place) for place in (found.label, found.against))
    reason, answer = bundle.prediction(outputs, 1).reason, ""
    if bundle.card.rejection or bundle.card.unknown:
        answer = f"not answered: {reason}" if reason else "answered"
    write_atomically(picture, as_png(draw(view, found, label, against, answer)))
    return {**found.as_json(bundle.classes), "picture": str(picture)}


def _check_targets(config: PredictConfig, bundle: Bundle) -> None:
    """Refuse, before any work, what could not be written."""
    if config.explain:
        refuse_other_kind(config.explain, folder=True)
        if config.explain.is_dir() and any(config.explain.iterdir()):
            raise ConfigError(f"--explain {config.explain} is a folder with files, expected a new or an empty one")
        bundle.refuse_without_evidence()
        config.explain.mkdir(parents=True, exist_ok=True)
    if config.drift:
        if not bundle.card.unknown:
            raise ConfigError(
                f"--drift needs a detector of unknown images: export {bundle.path} again, without --no-unknown"
            )
        check_target(config.drift, overwrite=True, advice="name another file with --drift")
        if config.drift.exists():
            raise ConfigError(f"--drift {config.drift} is there already: name another file")


def _drift(config: PredictConfig, bundle: Bundle, outputs: Outputs) -> Drift | None:
    """Of the images that could be read; drawn where it was asked for."""
    if outputs.p_values is None or bundle.card.unknown is None:
        return None
    p_values = outputs.p_values[~outputs.p_values.isnan()].double().numpy()
    found = drift_of(p_values, bundle.card.unknown.false_alarms, bundle.card.unknown.images)
    if found and found.interval[0] > 0:
        logger.warning(found.in_words())
    if config.drift and found is None:
        logger.warning(f"{counted(len(p_values), 'image')} could be read, {FEWEST} are needed to see drift: no chart")
    elif config.drift:
        config.drift.parent.mkdir(parents=True, exist_ok=True)
        from pipeline.reporting.figures import p_value_curve  # matplotlib takes a second to import

        write_atomically(config.drift, p_value_curve(p_values).encode())
    return found


def as_csv(predictions: list[dict[str, Any]]) -> str:
    """One line for each class of each image, with a header: path, rank, class, name, probability and whether answered.

    With the p-value of unknown images, and with the set where there is one, its classes separated by semicolons.
    """
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(("path", "rank", "class", "name", "probability", "answered", "reason", "unknown_p", "set"))
    for one in predictions:
        p_value = "" if one["unknown_p"] is None else f"{one['unknown_p']:.6g}"
        rest = (str(one["answered"]).lower(), one["reason"], p_value, ";".join(one.get("set", [])))
        for rank, score in enumerate(one["top"], start=1):
            lines.writerow((one["path"], rank, score["class"], score["name"], f"{score['probability']:.6g}", *rest))
    return table.getvalue().rstrip("\n")


def find_images(given: tuple[str, ...]) -> tuple[list[Path], list[dict[str, str]], Counter[str]]:
    """Files as they are, the images below folders, and what globs match; `-` is a list of these on standard input.

    And what is none of these, with the reason; and how many files of other kinds the folders have, by extension.
    """
    found: list[Path] = []
    failed: list[dict[str, str]] = []
    unread: Counter[str] = Counter()
    for text in chain.from_iterable(_listed_on_input() if text == "-" else (text,) for text in given):
        path = Path(text)
        try:
            matches = _images_below(path, failed, unread) if path.is_dir() else _matches(path, text)
        except OSError as error:
            failed.append({"path": text, "reason": f"cannot be read: {error.strerror}"})
            continue
        if not matches:
            failed.append({"path": text, "reason": _nothing_at(path)})
        found += matches
    return found, failed, unread


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


def _matches(path: Path, pattern: str) -> list[Path]:
    try:
        return [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    except RecursionError:  # hundreds of folders in one another
        return []


def _images_below(folder: Path, failed: list[dict[str, str]], unread: Counter[str]) -> list[Path]:
    """Images in `folder` at any depth, hidden ones aside, each folder once however many links lead to it.

    What cannot be looked into goes into `failed`, with the reason; files of other kinds are counted in `unread`.
    """
    found: list[Path] = []
    waiting, seen = [folder], set[tuple[int, int]]()
    while waiting:
        path = waiting.pop()
        try:
            about = path.stat()
            if (here := (about.st_dev, about.st_ino)) in seen:  # a path need not be resolved for that
                continue
            seen.add(here)
            entries = entries_of(path)
        except OSError as error:
            failed.append({"path": str(path), "reason": f"cannot be listed: {error.strerror}"})
            continue
        waiting += [below for below, kind in entries if kind is Kind.FOLDER]
        found += [below for below, kind in entries if kind is Kind.IMAGE]
        unread.update(extension(below) for below, kind in entries if kind is Kind.UNREAD)
        broken = [below for below, kind in entries if kind is Kind.BROKEN]
        failed += [{"path": str(below), "reason": Kind.BROKEN.value} for below in broken]
    return sorted(found)
