"""How good log-probabilities are: accuracies with intervals, and calibration."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

import numpy.typing as npt
from torch import Tensor

from pipeline.console import counted
from pipeline.statistics.calibration import error_of, floor_of
from pipeline.statistics.intervals import accuracies


@dataclass(frozen=True)
class Unrelated:
    """Scores of the images that are like no image the head was trained on.

    Attributes:
        images: files without a near-duplicate, and without an image of their group, among those.
        top1: accuracy, a fraction; null of no images.
        interval: `[low, high]` of it, 95 % over images.
    """

    images: int
    top1: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, log_probs: Tensor, labels: Tensor, groups: npt.ArrayLike) -> Self:
        """Of log-probabilities (N, C), labels (N,) and groups (N,)."""
        if not len(labels):
            return cls(0, None, None)
        found = accuracies(log_probs.double().numpy(), labels.numpy(), groups)["top1"]
        return cls(len(labels), found.value, (found.low, found.high))

    def in_words(self, images: int) -> str:
        """One line; `images` are all that were scored."""
        of = f"{self.images} of {counted(images, 'image')} without a near-duplicate or group mate in training"
        if self.top1 is None or self.interval is None:
            return of
        low, high = self.interval
        return f"{of}: top-1 {self.top1:.2%} ({low:.2%} to {high:.2%})"


@dataclass
class Scores:
    """Scores of one split.

    Attributes:
        images: files that were scored.
        classes: number of classes that they are of.
        split: `train`, `valid` or `test`.
        top1: accuracy, a fraction.
        top5: fraction of images with their class among the five most probable; None with five classes or fewer.
        mean_per_class: mean of the accuracies of each class, a fraction.
        ece: calibration error over 15 equal-width bins.
        ece_floor: mean `ece` over 200 sets of labels drawn from the probabilities.
        intervals: `[low, high]` of each accuracy, 95 % over images ([concepts](concepts.md#intervals)); none of a
            `top5` that is None.
        unrelated: scores of the images that are like no image of training; null where that was not looked for: of a
            model, of train, and of more than 30,000 images.
        out_of_fold: whether heads that did not see the images predicted them, of a choice over folds.
    """

    images: int
    classes: int
    split: str
    top1: float
    top5: float | None
    mean_per_class: float
    ece: float
    ece_floor: float
    intervals: dict[str, tuple[float, float]]
    unrelated: Unrelated | None = None
    out_of_fold: bool = False

    def as_record(self) -> dict[str, Any]:
        """As a run records it: every evaluation of a split, since repeated ones are no longer a test."""
        found = {name: value for name, value in asdict(self).items() if value is not None or name != "unrelated"}
        return {**found, "when": datetime.now(UTC).isoformat(timespec="seconds")}

    def in_words(self) -> str:
        """One line: accuracies with their intervals, and the calibration error."""
        names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
        shown = [
            f"{names[key]} {getattr(self, key):.2%} ({low:.2%} to {high:.2%})"
            for key, (low, high) in self.intervals.items()
        ]
        kind = f"{self.split} (out of fold)" if self.out_of_fold else self.split
        images = f"{kind}, {counted(self.images, 'image')} of {counted(self.classes, 'class')}"
        calibration = f"calibration error {self.ece:.3f} (floor {self.ece_floor:.3f})"
        line = f"{images}: {', '.join([*shown, calibration])}; in brackets 95 % intervals over images and groups"
        return f"{line}\n{self.unrelated.in_words(self.images)}" if self.unrelated else line


def score(log_probs: Tensor, labels: Tensor, split: str, groups: npt.ArrayLike | None = None) -> Scores:
    """Scores of log-probabilities (N, C) against labels (N,); images of one of `groups` (N,) are not independent."""
    found = accuracies(log_probs.double().numpy(), labels.numpy(), groups)
    return Scores(
        images=len(labels),
        classes=len(labels.unique()),
        split=split,
        top1=found["top1"].value,
        top5=found["top5"].value if "top5" in found else None,
        mean_per_class=found["mean_per_class"].value,
        ece=error_of(log_probs, labels),
        ece_floor=floor_of(log_probs),
        intervals={name: (one.low, one.high) for name, one in found.items()},
    )
