"""What would be answered, and how often wrongly, where only sure predictions are; and what is unlike the training."""

from dataclasses import dataclass

import numpy as np
import torch

from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.reporting.predictions import Predictions
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature
from pipeline.statistics.groups import Groups
from pipeline.statistics.selective import Answered, RiskCoverage, Unsupported, answered_at, fit_threshold, risk_coverage
from pipeline.unknown.detector import Distance
from pipeline.unknown.fitting import moments_of, pooled_rows, unfit

ERRORS = (0.005, 0.01, 0.02, 0.05)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class OperatingPoint:
    """What `export --max-error` would come to, if these images had not chosen the head.

    Attributes:
        max_error: that is allowed.
        found: threshold, answered and wrong; or why there is none.
        worst: place of the class with the largest error among its answered images; None without a wrong answer.
        worst_wrong: of these images.
        worst_answered: images of that class that are answered.
    """

    max_error: float
    found: Answered | Unsupported
    worst: int | None = None
    worst_wrong: int = 0
    worst_answered: int = 0

    @property
    def threshold(self) -> float | None:
        """None where there is none."""
        return self.found.threshold if isinstance(self.found, Answered) else None


@dataclass(frozen=True)
class Sureness:
    """Of the held-out images, with temperature.

    Attributes:
        curve: error by the fraction of images that are answered.
        points: one for each of `ERRORS`.
        images: one of each group: points are of these.
        unlike: places of the images that are most unlike the training images, by distance alone, the most unlike first;
            none where the head was trained on them, or rows allow no detector.
    """

    curve: RiskCoverage
    points: list[OperatingPoint]
    images: int
    unlike: list[int]


def find_sureness(
    run: Run, cache: FeatureCache, index: SetIndex, valid: Predictions, temperature: float | None, groups: Groups
) -> Sureness:
    """Of the held-out predictions, with the temperature that export would fold in."""
    log_probs = at_temperature(torch.from_numpy(valid.log_probs).double(), temperature or 1.0)
    sureness, predicted = (values.numpy() for values in log_probs.exp().max(1))
    hits = predicted == valid.truth
    first = np.unique(groups.numbers(valid.images), return_index=True)[1]
    points = [_point(error, sureness[first], hits[first], valid.truth[first]) for error in ERRORS]
    unlike = [] if run.record.refit or unfit(cache) else _unlike(cache, index, valid)
    return Sureness(risk_coverage(sureness, hits), points, len(first), unlike)


def _point(max_error: float, sureness: np.ndarray, hits: np.ndarray, truth: np.ndarray) -> OperatingPoint:
    found = fit_threshold(sureness, hits, max_error, CONFIDENCE)
    if isinstance(found, Unsupported) or not answered_at(sureness, hits, found.threshold).wrong:
        return OperatingPoint(max_error, found)
    kept = sureness >= found.threshold
    answered, wrong = np.bincount(truth[kept]), np.bincount(truth[kept], ~hits[kept])
    worst = int((wrong / np.maximum(answered, 1)).argmax())
    return OperatingPoint(max_error, found, worst, int(wrong[worst]), int(answered[worst]))


def _unlike(cache: FeatureCache, index: SetIndex, valid: Predictions) -> list[int]:
    train = index.split("train")
    moments = moments_of(pooled_rows(cache, train), torch.from_numpy(index.labels(train)), len(index.classes))
    return Distance.of(moments).of_rows(pooled_rows(cache, valid.images)).argsort(descending=True).tolist()
