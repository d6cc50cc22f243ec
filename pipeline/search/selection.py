"""What validation says of a head that was chosen by it: a choice corrected for itself, and two heads compared.

Everything works on hits, whether each head is right about each validation image: (M, V) for M heads and V images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_RESAMPLES = 1000
_OPERATIONS = 4_000_000_000  # of all resamples: fewer are drawn of very many images

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """An accuracy over V images: of all of them (`top1`), or the mean of the classes that have any."""

    name: str
    labels: Labels  # (V,)

    def weights(self, counts: Floats | None = None) -> Floats:
        """(V,): what each image adds where it is right; `counts` is how often each is drawn, once unless given."""
        drawn = np.ones(len(self.labels)) if counts is None else counts.astype(float)
        if self.name == "top1":
            drawn /= drawn.sum()
            return drawn
        of_class = np.bincount(self.labels, drawn)
        found: Floats = drawn / np.maximum(of_class, 1)[self.labels] / (of_class > 0).sum()
        return found

    def of(self, hits: Hits) -> Floats:
        """Hits (M, V) or (V,) → the accuracy of each head, a fraction."""
        found: Floats = hits @ self.weights()
        return found


def corrected(hits: Hits, metric: Metric, seed: int = 0) -> float:
    """The accuracy of the best of M heads on images that it was not chosen on, by bootstrap.

    Images are drawn with replacement, the best head on them is chosen, and scored on the images that were not drawn
    (BBC-CV: Tsamardinos, Greasidou and Borboudakis, Bootstrapping the out-of-sample predictions for efficient and
    accurate cross-validation, Machine Learning 107, 2018). NaN where there are too few images to leave any out.
    """
    heads, images = hits.shape
    generator, values = np.random.default_rng(seed), []
    for _ in range(max(100, min(_RESAMPLES, _OPERATIONS // max(1, heads * images)))):
        counts = np.bincount(generator.integers(images, size=images), minlength=images).astype(float)
        if counts.all():
            continue
        chosen = int((hits @ metric.weights(counts)).argmax())
        values.append(float(hits[chosen] @ metric.weights((counts == 0).astype(float))))
    return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class Difference:
    """By how much one accuracy is above another on the same images, with a 95 % interval over images."""

    value: float
    low: float
    high: float


def difference(first: Sequence[Hits], second: Sequence[Hits], metric: Metric) -> Difference:
    """Of the means of two lists of heads, a (V,) for each seed: paired by image.

    The interval is normal, of the mean over images of what the two differ by; it says nothing of other seeds.
    """
    apart = np.mean(first, 0) - np.mean(second, 0)
    weights = metric.weights()
    value = float(apart @ weights)
    if metric.name == "top1":
        residual = apart - value
    else:  # images redrawn within each class
        of_class = np.bincount(metric.labels)
        residual = apart - (np.bincount(metric.labels, apart) / np.maximum(of_class, 1))[metric.labels]
    half = 1.96 * float(np.sqrt(np.square(weights * residual).sum()))
    return Difference(value, value - half, value + half)
