"""How good log-probabilities are: accuracies with intervals, and calibration."""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cache.result import Result
from pipeline.console import counted
from pipeline.statistics.calibration import error_of, floor_of
from pipeline.statistics.intervals import accuracies, deviation
from pipeline.statistics.selective import risk_coverage


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


@dataclass(frozen=True)
class SeedScores:
    """Accuracies of heads that differ by their seed alone.

    Attributes:
        top1: of each, the head of the run first.
        mean: of all.
        std: their standard deviation, of a sample.
    """

    top1: list[float]
    mean: float
    std: float

    @classmethod
    def of(cls, top1: list[float]) -> Self:
        """Of two accuracies or more."""
        return cls(top1, float(np.mean(top1)), deviation(np.array(top1)))

    def in_words(self) -> str:
        """One line."""
        apart = f"the lowest {min(self.top1):.2%}, the highest {max(self.top1):.2%}"
        return f"{len(self.top1)} seeds: top-1 {self.mean:.2%} ± {self.std:.2%} (mean and std), {apart}"


@dataclass(frozen=True)
class AnsweredScores:
    """Scores of the images that a model answers.

    Attributes:
        coverage: fraction of the images that are.
        error: fraction of these that are wrong; null of none.
        interval: `[low, high]` of it, 95 % over images.
        promised: the most that the model was exported to have (`--max-error`); null without it.
    """

    coverage: float
    error: float | None
    interval: tuple[float, float] | None
    promised: float | None = None

    @classmethod
    def of(
        cls, log_probs: Tensor, labels: Tensor, answered: Tensor, groups: npt.ArrayLike | None, promised: float | None
    ) -> Self:
        """Of log-probabilities (N, C), labels (N,), whether each is answered (N,) and groups (N,)."""
        coverage = float(answered.double().mean())
        if not answered.any():
            return cls(coverage, None, None, promised)
        some = None if groups is None else np.asarray(groups)[answered.numpy()]
        found = accuracies(log_probs[answered].double().numpy(), labels[answered].numpy(), some)["top1"]
        return cls(coverage, 1 - found.value, (1 - found.high, 1 - found.low), promised)

    def in_words(self) -> str:
        """One line."""
        line = f"answered: {self.coverage:.1%} of the images"
        if self.error is None or self.interval is None:
            return line
        low, high = self.interval
        line = f"{line}, {self.error:.2%} of them wrong ({low:.2%} to {high:.2%})"
        if self.promised is None:
            return line
        kept = "kept on these images" if self.error <= self.promised else "which the interval includes"
        if low > self.promised:
            kept = "not kept: these images may be unlike those of training"
        return f"{line}; promised: at most {100 * self.promised:.3g}%, {kept}"


@dataclass(frozen=True)
class SetScores:
    """Scores of prediction sets.

    Attributes:
        coverage: fraction of the sets that hold the true class.
        mean_size: classes in a set.
    """

    coverage: float
    mean_size: float

    @classmethod
    def of(cls, inside: npt.NDArray[np.bool_], labels: Tensor) -> Self:
        """Of sets (N, C) and labels (N,)."""
        return cls(float(inside[np.arange(len(labels)), labels.numpy()].mean()), float(inside.sum(1).mean()))


@dataclass
class Scores(Result):
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
        aurc: area under the risk-coverage curve: mean error among the most confident images, over all numbers of these.
        risk_coverage: `[coverage, error]` of the most confident 5 %, 10 %, ... of the images.
        answered: `{coverage, error, interval, promised}` of the images that the model answers: which fraction they
            are, their error, its 95 % interval, and the most promised; null of runs, and of models that always answer.
        sets: `{coverage, mean_size}` of the model's prediction sets; null without.
        seeds: `{top1, mean, std}` of heads that differ by their seed alone (`--seeds`), null without.
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
    aurc: float = 0.0
    risk_coverage: list[list[float]] = field(default_factory=list)
    answered: AnsweredScores | None = None
    sets: SetScores | None = None
    seeds: SeedScores | None = None

    def as_record(self) -> dict[str, Any]:
        """As a run records it: every evaluation of a split, since repeated ones are no longer a test."""
        left_out = {
            "risk_coverage",
            *(name for name in ("unrelated", "answered", "sets", "seeds") if getattr(self, name) is None),
        }
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
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
        calibration = f"calibration error {self.ece:.3f} (floor {self.ece_floor:.3f}), AURC {self.aurc:.4f}"
        intervals = "in brackets 95 % intervals over images and groups, not over seeds"
        lines = [f"{images}: {', '.join([*shown, calibration])}; {intervals}"]
        if self.answered:
            lines.append(self.answered.in_words())
        if self.sets:
            lines.append(f"sets: {self.sets.coverage:.2%} hold the true class, {self.sets.mean_size:.2f} classes each")
        if self.unrelated:
            lines.append(self.unrelated.in_words(self.images))
        if self.seeds:
            lines.append(self.seeds.in_words())
        return "\n".join(lines)


def score(
    log_probs: Tensor,
    labels: Tensor,
    split: str,
    groups: npt.ArrayLike | None = None,
    answered: Tensor | None = None,
    inside: npt.NDArray[np.bool_] | None = None,
    promised: float | None = None,
) -> Scores:
    """Scores of log-probabilities (N, C) against labels (N,); images of one of `groups` (N,) are not independent.

    `answered` (N,) is whether the model answers each; None of one that always does. `inside` (N, C) is whether each
    class is in the set; None without sets. `promised` is the most error of the answered that the model was made for.
    """
    found = accuracies(log_probs.double().numpy(), labels.numpy(), groups)
    sureness, predicted = log_probs.double().exp().max(1)
    curve = risk_coverage(sureness.numpy(), (predicted == labels).numpy())
    steps = np.ceil(np.linspace(0.05, 1, 20) * len(labels)).astype(int) - 1
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
        aurc=curve.aurc,
        risk_coverage=[[float(curve.coverage[step]), float(curve.risk[step])] for step in steps],
        sets=None if inside is None else SetScores.of(inside, labels),
        answered=None if answered is None else AnsweredScores.of(log_probs, labels, answered, groups, promised),
    )
