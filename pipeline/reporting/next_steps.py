"""What to try next, by what the report found."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FEW = 30  # training images a class


@dataclass(frozen=True)
class Step:
    """A sentence, and the command that does it; "" where none does."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Found:
    """What the advice rests on; `settings` are options that the cache was made with, where they are not defaults."""

    run: Path
    cache: Path
    set: str
    data: str
    settings: str
    passes: int
    train_images: int
    classes: int
    top1: float
    baseline: float
    calibrates: bool
    label_issues: int
    leaks: int
    across: int
    swept: bool
    tested: bool


def next_steps(found: Found) -> list[Step]:
    """What is wrong first, then what makes the head better, then what ends the work."""
    return list(_steps(found))


def _steps(found: Found) -> Iterator[Step]:
    cache = f"--cache {shlex.quote(str(found.cache))} --set {shlex.quote(found.set)}"
    if found.leaks:
        yield Step("Remove files that are in two splits, or have two labels: they make scores better than they are")
    if found.across:
        yield Step(
            "Check the near-duplicates in two splits or with two labels: where both show one picture, remove one"
        )
    if found.label_issues:
        yield Step(
            "Check the possible label errors; after correcting labels run extract again, which computes no features"
        )
    if not found.swept or found.baseline > found.top1:
        run = shlex.quote(f"{found.run}-sweep")
        yield Step("Try many heads", f"headgraft sweep {cache} --run {run}")
    if found.passes == 0 or (found.passes < 8 and found.train_images < _FEW * found.classes):
        more = max(1, 2 * found.passes)
        yield Step(
            "Add augmented passes, which help most with few images per class",
            f"headgraft extract {shlex.quote(found.data)} {cache}{found.settings} --passes {more}",
        )
    run = shlex.quote(str(found.run))
    if not found.tested:
        yield Step("When all choices are made, evaluate on the test images, once", f"headgraft evaluate {run}")
    sure = ", which also calibrates its probabilities" if found.calibrates else ""
    yield Step(f"Export one model from image files to classes{sure}", f"headgraft export {run} model.safetensors")
