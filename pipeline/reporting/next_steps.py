"""What to try next, by what the report found."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config.extract import ExtractConfig
from pipeline.reporting.findings import Findings
from pipeline.statistics.selective import Answered

_FEW = 30  # training images a class
_FEW_TO_JUDGE = 500  # validation images: half the width of an interval is then about 2 points at 95 %


@dataclass(frozen=True)
class Step:
    """A sentence, and the command that does it; "" where none does."""

    text: str
    command: str = ""


def next_steps(found: Findings) -> Iterator[Step]:
    """What is wrong first, then what makes the head better, then what ends the work."""
    index, passes = found.index, found.run.record.config.passes
    run, cache = shlex.quote(str(found.run.path)), shlex.quote(str(found.cache.path))
    where = f"--cache {cache} --set {shlex.quote(index.name)}"
    if found.leaks["across_splits"] or found.leaks["two_labels"]:
        yield Step("Remove files that are in two splits, or have two labels: they make scores better than they are")
    if not all(pair.identical for pair in found.across):
        yield Step(
            "Check the near-duplicates in two splits or with two labels: where both show one picture, remove one"
        )
    if found.label_issues.found:
        yield Step(
            "Check the possible label errors in the browser: labels are kept in the cache, no file is changed",
            found.label_command,
        )
    if not found.sweep or found.known.best > found.scores["top1"].value:
        yield Step(
            "Try many heads and merge the seeds of the best, which is usually a little more accurate",
            f"headgraft sweep {where} --run {shlex.quote(f'{found.run.path}-sweep')} --merge",
        )
    if passes == 0 or (passes < 8 and len(index.split("train")) < _FEW * len(index.classes)):
        more = max(1, 2 * passes)
        yield Step(
            "Add augmented passes, which help most with few images per class",
            f"headgraft extract {shlex.quote(index.data)} {where}{_extract_options(found)} --passes {more}",
        )
    if not found.cross_validated and not found.run.record.folds and len(found.valid.images) < _FEW_TO_JUDGE:
        yield Step("So few validation images say little: predict all images out of fold", f"headgraft cv {where}")
    if not found.test and index.split("test"):
        yield Step("When all choices are made, evaluate on the test images, once", f"headgraft evaluate {run}")
    yield from _answering_less(found, f"headgraft cv {where} --heads 64", f"headgraft export {run} model.safetensors")
    calibration = found.calibration
    better = calibration.scaled_ece < calibration.ece > calibration.floor
    also = ", which also calibrates its probabilities" if better else ""
    yield Step(f"Export one model from image files to classes{also}", f"headgraft export {run} model.safetensors")


def _answering_less(found: Findings, nested: str, export: str) -> Iterator[Step]:
    """A model that does not answer where it is unsure, at the least error that these images support.

    Images that chose the head cannot promise that: after a sweep over folds, `nested` cross-validation has others.
    """
    error, cv = 1 - found.scores["top1"].value, found.cross_validated
    for point in found.sureness.points:
        if isinstance(point.found, Answered) and point.max_error < error:
            answered = point.found.answered / found.sureness.images
            command = f"{export} --max-error {point.max_error:g}"
            yield Step(
                f"Where errors are costly, export a model that does not answer if it is unsure: it answers about "
                f"{100 * answered:.1f}\u00a0% of images, and at most {100 * point.max_error:g}\u00a0% of these wrongly",
                f"{nested} && {command}" if found.run.record.folds and (not cv or cv.settings) else command,
            )
            return


def _extract_options(found: Findings) -> str:
    """Options of `extract` that this cache needs: without them it would be refused, or split otherwise."""
    base, recipe = found.cache.manifest.base, found.cache.manifest.augmentation
    files = [made.get("weights") for made in found.cache.provenance(found.index.row_keys(0))]
    asked = {
        "backbone": base.backbone,
        "weights": next((name for name in files if isinstance(name, str)), None),
        "image_size": base.input_size,
        "seed": recipe.seed if recipe else ExtractConfig.seed,
        "split_seed": found.index.split_seed,
        "group_by": found.index.group_by or None,
    }
    changed = {name: value for name, value in asked.items() if value != getattr(ExtractConfig, name)}
    options = (f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in changed.items())
    return "".join(options) + (" --skip-bad" if found.index.skipped else "")
