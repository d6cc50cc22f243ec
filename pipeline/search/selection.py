"""What validation says of a head that was chosen by it: a choice corrected for itself, and two heads compared.

Everything works on hits, whether each head is right about each validation image: (M, V) for M heads and V images.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cache.index import ImageRecord, SetIndex
from pipeline.statistics.groups import Groups

_RESAMPLES = 1000
_OPERATIONS = 4_000_000_000  # of all resamples: fewer are drawn of very many images
_DIGITS = 12  # of an accuracy: sums of the same hits in another order are equal

Floats = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


@dataclass(frozen=True)
class Metric:
    """An accuracy over V images: of all of them (`top1`), or the mean of the classes that have any.

    Attributes:
        name: one of `config.METRICS`.
        labels: class of each image, (V,).
        groups: images with the same number, (V,) from 0, are no independent evidence.
    """

    name: str
    labels: Labels
    groups: Labels

    @classmethod
    def over(cls, images: Sequence[ImageRecord], name: str, index: SetIndex, groups: Groups) -> Self:
        """Over some images of a set, in their order."""
        return cls(name, index.labels(images), np.unique(groups.numbers(images), return_inverse=True)[1])

    def weights(self, counts: Floats | None = None) -> Floats:
        """(V,): what each image adds where it is right; `counts` is how often each is drawn, once unless given."""
        drawn = np.ones(len(self.labels)) if counts is None else counts
        of_class = np.bincount(self.labels, drawn)
        share = np.maximum(of_class, 1)[self.labels] * (of_class > 0).sum()  # of the mean per class
        found: Floats = drawn / (drawn.sum() if self.name == "top1" else share)
        return found

    def of(self, hits: Hits) -> Floats:
        """Hits (M, V) or (V,) → the accuracy of each head; the same for as many hits of the same weight."""
        found: Floats = np.round(hits @ self.weights(), _DIGITS)
        return found


@dataclass(frozen=True)
class Corrected:
    """What a choice reaches on images that it was not made on: its accuracy, and how much it is above another head."""

    accuracy: float
    above: float


def corrected(hits: Hits, metric: Metric, other: Hits, seed: int = 0) -> Corrected | None:
    """The accuracy of the best of M heads, and that less the accuracy of the `other` head (V,), by bootstrap.

    Groups of images are drawn with replacement, the best head on them is chosen, and scored on the images that were not
    drawn (BBC-CV: Tsamardinos, Greasidou and Borboudakis, Bootstrapping the out-of-sample predictions for efficient and
    accurate cross-validation, Machine Learning 107, 2018). The choice sees 63 % of the images, so the figure is rather
    low than high. None where there are too few images to leave any out.
    """
    heads, images = hits.shape
    groups = int(metric.groups.max()) + 1
    generator, values = np.random.default_rng(seed), []
    right, reference = hits.astype(np.float32), other.astype(np.float32)
    for _ in range(max(100, min(_RESAMPLES, _OPERATIONS // max(1, heads * images)))):
        counts = np.bincount(generator.integers(groups, size=groups), minlength=groups).astype(float)[metric.groups]
        if counts.all():
            continue
        chosen = int(np.round(right @ metric.weights(counts), _DIGITS // 2).argmax())
        left = metric.weights((counts == 0).astype(float))
        values.append((float(right[chosen] @ left), float((right[chosen] - reference) @ left)))
    return Corrected(*np.mean(values, 0).round(_DIGITS).tolist()) if values else None


@dataclass(frozen=True)
class Difference:
    """By how much one accuracy is above another on the same images, with a 95 % interval over images.

    Attributes:
        value: a fraction.
        low: lower bound of the interval.
        high: upper bound of the interval.
        corrected: the same on images that chose neither; None where it is unknown.
    """

    value: Finite
    low: Finite
    high: Finite
    corrected: Finite | None = None


def difference(first: Sequence[Hits], second: Sequence[Hits], metric: Metric) -> Difference:
    """Of the means of two lists of heads, a (V,) for each seed: paired by image.

    The interval is that of Agresti and Min (Simple improved confidence intervals for comparing matched proportions,
    Statistics in Medicine 2005), with half an image more in each of the four cells, of as many independent images as
    the weights of the metric come to; images of a group vary together. It says nothing of other seeds, nor of a head
    that was chosen on these images: that is above on them by more than on others.
    """
    apart, weights = np.mean(first, 0) - np.mean(second, 0), metric.weights()
    value = round(float(apart @ weights), _DIGITS)
    count = 1 / float(weights @ weights)
    centre = count * value / (count + 2)
    of_group = np.bincount(metric.groups, weights * (apart - centre))
    squares = count**2 * float(of_group @ of_group) + ((1 - centre) ** 2 + (1 + centre) ** 2) / 2 + centre**2
    reach = 1.96 * math.sqrt(squares) / (count + 2)
    return Difference(value, max(-1.0, centre - reach), min(1.0, centre + reach))
