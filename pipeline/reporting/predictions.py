"""What a head says of the images of a split, and how often it is right, with intervals."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.evaluate import log_probs_of_split
from pipeline.run import Run

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

RESAMPLES = 1000
_TOP = 5


@dataclass(frozen=True)
class Predictions:
    """Of N images: `log_probs` (N, C), and `truth` (N,), the places of their classes."""

    images: tuple[ImageRecord, ...]
    log_probs: Floats
    truth: Places

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.log_probs.shape[1])

    @cached_property
    def probabilities(self) -> Floats:
        """(N, C)."""
        found: Floats = np.exp(self.log_probs)
        return found

    @cached_property
    def predicted(self) -> Places:
        """The most probable class of each, (N,)."""
        found: Places = self.probabilities.argmax(1)
        return found

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether that is the true one, (N,)."""
        found: npt.NDArray[np.bool_] = self.predicted == self.truth
        return found

    @cached_property
    def confidence(self) -> Floats:
        """Its probability, (N,)."""
        found: Floats = self.probabilities.max(1)
        return found

    @property
    def within_five(self) -> npt.NDArray[np.bool_]:
        """Whether the true class is among the five most probable, (N,)."""
        of_truth = self.probabilities[np.arange(len(self.truth)), self.truth]
        found: npt.NDArray[np.bool_] = (self.probabilities > of_truth[:, None]).sum(1) < _TOP
        return found


def predict_split(run: Run, cache: FeatureCache, index: SetIndex, split: str) -> Predictions:
    """The run's head on the clean views of one split, from the cache."""
    log_probs, labels = log_probs_of_split(run, cache, index, split)
    return Predictions(index.split(split), log_probs.double().numpy(), labels.numpy())


@dataclass(frozen=True)
class Interval:
    """A fraction, and between what bounds it is in 95 % of samples of images drawn anew from these."""

    value: float
    low: float
    high: float


def accuracies(found: Predictions) -> dict[str, Interval]:
    """`top1`, `top5` where there are more than five classes, and `mean_per_class`, over the classes that have images.

    Percentile bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993), seeded. A class
    that a sample lacks is left out of its mean.
    """
    count = len(found.truth)
    rows = [np.ones(count, dtype=np.int64), *_samples(count)]
    scored: dict[str, list[float]] = {"top1": [float(found.hits @ row / count) for row in rows]}
    if found.num_classes > _TOP:
        scored["top5"] = [float(found.within_five @ row / count) for row in rows]
    scored["mean_per_class"] = _mean_per_class(found, rows)
    return {name: _interval(values) for name, values in scored.items()}


def _samples(count: int) -> list[Places]:
    """How often each image is in each sample of as many images, drawn with replacement."""
    generator = np.random.default_rng(0)
    draws = (generator.integers(count, size=count) for _ in range(RESAMPLES))
    return [np.bincount(drawn, minlength=count) for drawn in draws]


def _mean_per_class(found: Predictions, rows: list[Places]) -> list[float]:
    count = len(found.truth)
    member = csr_array((np.ones(count), (found.truth, np.arange(count))), shape=(found.num_classes, count))
    means = []
    for row in rows:
        of_class, right = member @ row, member @ (row * found.hits)
        means.append(float(np.mean(right[of_class > 0] / of_class[of_class > 0])))
    return means


def _interval(values: list[float]) -> Interval:
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))
