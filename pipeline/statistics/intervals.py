"""Accuracies with 95 % intervals, over images that may come in groups, and the difference of two accuracies."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta
from scipy.stats import t as student

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

METHOD = "modified Jeffreys"
_TAIL = 0.025  # on either side
_TOP = 5
# What the errors say of images in groups is weighed against images of a group that are all right or all wrong, which
# counts as much as this many errors: with fewer, or none, groups look independent by chance.
_PRIOR_ERRORS = 2.0


@dataclass(frozen=True)
class Interval:
    """A fraction, and the bounds of its 95 % interval over images."""

    value: float
    low: float
    high: float


def accuracies(log_probs: Floats, truth: Places, groups: npt.ArrayLike | None = None) -> dict[str, Interval]:
    """`top1`, `top5` where there are more than five classes, and `mean_per_class`, with 95 % intervals.

    Of log-probabilities (N, C) and true classes (N,), N above 0. `groups` (N,) has the same number, or text, for images
    that are not independent, such as identical files; None: all are.

    `top1` and `top5` estimate the accuracy over images drawn as these were. `mean_per_class` estimates the mean of the
    classes' accuracies, over the classes that have images: classes and their numbers of images are fixed, images are
    drawn within each class. What was chosen by its accuracy on these images is better on them than on others: no
    interval of one head can say that.
    """
    count = len(truth)
    of_group = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    alike = np.full(count, 1 / count)
    of_truth = log_probs[np.arange(count), truth]
    hits = log_probs.argmax(1) == truth
    found = {"top1": interval(hits, alike, of_group)}
    if log_probs.shape[1] > _TOP:  # with fewer classes every image is a hit
        found["top5"] = interval((log_probs > of_truth[:, None]).sum(1) < _TOP, alike, of_group)
    images = np.bincount(truth)
    return {**found, "mean_per_class": interval(hits, 1 / (np.count_nonzero(images) * images[truth]), of_group)}


def of_each_class(hits: Bools, truth: Places, groups: npt.ArrayLike) -> dict[int, Interval]:
    """The recall of each class that has images, by its place, as `accuracies` does it: of hits and classes, (N,)."""
    found, numbers = {}, np.asarray(groups)
    for place in np.unique(truth).tolist():
        own = truth == place
        of_group, count = np.unique(numbers[own], return_inverse=True)[1], int(own.sum())
        found[place] = interval(hits[own], np.full(count, 1 / count), of_group)
    return found


def interval(hits: Bools, weights: Floats, groups: Places) -> Interval:
    """The weighted mean of `hits` (N,), whose `weights` (N,) add up to 1, but for rounding, with its 95 % interval.

    `groups` (N,) are numbers from 0. The interval is the modified Jeffreys interval (Brown, Cai and DasGupta, Interval
    Estimation for a Binomial Proportion, Statistical Science 2001) of as many independent images as would have the
    variance of this mean, as Korn and Graubard do with Clopper and Pearson's (Survey Methodology 1998).
    """
    value = float(np.average(hits, weights=weights))
    return Interval(value, *_jeffreys(value, _independent_images(hits.astype(np.float64), weights, groups)))


def _independent_images(hits: Floats, weights: Floats, groups: Places) -> float:
    """How many independent images of equal weight would have the variance of the weighted mean of `hits`."""
    value, of_group = float(weights @ hits), np.bincount(groups, weights)
    # Variance of the mean where that of one hit is 1: of independent images, and of groups that are right together.
    alone, together = float(weights @ weights), float(of_group @ of_group)
    # Images that weigh much make the variance, as those of small classes do: their accuracy is what counts.
    typical = float(weights * of_group[groups] @ hits) / together
    apart = np.bincount(groups, weights * (hits - value))
    found = apart @ apart * len(of_group) / max(len(of_group) - 1, 1) / max(typical * (1 - typical), 1e-12)
    errors = max(min(hits.sum(), (1 - hits).sum()) - 1, 0)
    shared = np.clip((errors * found + _PRIOR_ERRORS * together) / (errors + _PRIOR_ERRORS), alone, together)
    overall = _smoothed(value, 1 / together)
    # Of as many images as their weights leave, fewer by groups: a large group alone makes this no less certain.
    typical = _smoothed(typical, alone**2 / float((weights**4).sum()) * alone / together)
    return float(overall * (1 - overall) / (typical * (1 - typical) * shared))


def _smoothed(value: float, count: float) -> float:
    """A fraction of `count` with two hits and two misses more: its variance is never 0 (Agresti and Coull, 1998)."""
    return (count * value + 2) / (count + 4)


def _jeffreys(value: float, count: float) -> tuple[float, float]:
    """Bounds for `value` of `count`, which need not be a whole number.

    Equal tails of Beta(hits + 1/2, misses + 1/2); near 0 and 1, where these cover too little, wider.
    """
    hits, misses = value * count, (1 - value) * count
    low, high = beta.ppf((_TAIL, 1 - _TAIL), hits + 0.5, misses + 0.5)
    nearly = 1 + 1e-9
    if misses < 1e-9:
        low = _TAIL ** (1 / count)
    if hits < 1e-9:
        high = 1 - _TAIL ** (1 / count)
    return 0.0 if hits <= nearly else float(low), 1.0 if misses <= nearly else float(high)


def paired_loss(whole: Bools, reduced: Bools) -> dict[str, float]:
    """What is `lost` by reducing, of heads of S seeds on the same N images, (S, N) right or not.

    `error` is the standard error of that mean difference over seeds, `low` and `high` its 95 % interval over seeds and
    images: the sum of the variances of the means over either, which counts what they share twice and so is a little
    wide, with degrees of freedom by Satterthwaite (An Approximate Distribution of Estimates of Variance Components,
    Biometrics Bulletin, 1946). Of one seed it is over images alone.
    """
    apart = whole.astype(np.float64) - reduced
    lost, (seeds, images) = float(apart.mean()), apart.shape
    parts = [(deviation(apart.mean(axis)) ** 2 / count, count - 1) for axis, count in ((1, seeds), (0, images))]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / (count or 1) for part, count in parts) if variance else 1.0
    reach = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
    return {"lost": lost, "error": math.sqrt(parts[0][0]), "low": lost - reach, "high": lost + reach}


def deviation(values: Floats) -> float:
    """Sample standard deviation, 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
