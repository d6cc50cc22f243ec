"""How good log-probabilities are: accuracies with intervals, and calibration."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy.typing as npt
from torch import Tensor

from pipeline.console import counted
from pipeline.statistics.calibration import error_of, floor_of
from pipeline.statistics.intervals import accuracies


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

    def as_record(self) -> dict[str, Any]:
        """As a run records it: every evaluation of a split, since repeated ones are no longer a test."""
        return {**asdict(self), "when": datetime.now(UTC).isoformat(timespec="seconds")}

    def in_words(self) -> str:
        """One line: accuracies with their intervals, and the calibration error."""
        names = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}
        shown = [
            f"{names[key]} {getattr(self, key):.2%} ({low:.2%} to {high:.2%})"
            for key, (low, high) in self.intervals.items()
        ]
        images = f"{self.split}, {counted(self.images, 'image')} of {counted(self.classes, 'class')}"
        calibration = f"calibration error {self.ece:.3f} (floor {self.ece_floor:.3f})"
        return f"{images}: {', '.join([*shown, calibration])}; in brackets 95 % intervals over images"


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
