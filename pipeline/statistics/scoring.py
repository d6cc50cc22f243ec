"""How good log-probabilities are: accuracies with intervals, and calibration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from pipeline.statistics.calibration import error_of, floor_of
from pipeline.statistics.intervals import accuracies


@dataclass
class Scores:
    """The fields of the command's JSON: fractions over `images` files of `classes` classes; `ece` over 15 equal bins.

    `ece_floor` is what it would be on average if the probabilities were right.
    `top5` is None with five classes or fewer. `intervals` has (low, high) of each accuracy, 95 % over images.
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


def score(log_probs: Tensor, labels: Tensor, split: str, groups: Sequence[str | int] | None = None) -> Scores:
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
