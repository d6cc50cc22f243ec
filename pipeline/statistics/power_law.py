"""How the error falls with the number of images, err(n) = a + b · n^-c, and what more images would bring.

The form is that of Hestness et al. (Deep Learning Scaling is Predictable, Empirically, 2017); Viering and Loog (The
Shape of Learning Curves, IEEE TPAMI 2022) find it among the best for most learners, and extrapolation beyond a few
times the images unsafe.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
_EXPONENTS = np.linspace(0.1, 1.5, 141)
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class PowerLaw:
    """err(n) = a + b · n^-c.

    Attributes:
        a: error that is left with any number of images, a fraction.
        b: what is above that with one image.
        c: how fast it falls, 0.1 to 1.5.
    """

    a: float
    b: float
    c: float

    def at(self, images: Floats | float) -> Floats:
        """The error of so many images, at most 1."""
        found: Floats = np.minimum(1.0, self.a + self.b * np.power(images, -self.c))
        return found


def fit_power_laws(images: Floats, errors: Floats, weights: Floats) -> list[PowerLaw]:
    """Least squares of each row of `errors` (S, P), of heads of so many `images` (P,), with `weights` (P,).

    For each c of a grid, a and b of 0 or more have a closed form.
    """
    scale, share = float(images.max()), weights / weights.sum()  # b is then the error above a at the most images
    x = (images / scale) ** -_EXPONENTS[:, None]  # (E, P)
    mean_x, mean_e = x @ share, errors @ share
    variance = (x - mean_x[:, None]) ** 2 @ share
    covariance = (errors - mean_e[:, None]) * share @ (x - mean_x[:, None]).T  # (S, E)
    slope = np.maximum(covariance / variance, 0)
    floor = mean_e[:, None] - slope * mean_x
    through_zero = (errors * share @ x.T) / (x**2 @ share)  # where the floor would be below 0
    slope, floor = np.where(floor < 0, through_zero, slope), np.maximum(floor, 0)
    costs = ((floor[:, :, None] + slope[:, :, None] * x - errors[:, None]) ** 2) @ share
    best, rows = costs.argmin(1), np.arange(len(errors))
    found = zip(floor[rows, best].tolist(), slope[rows, best].tolist(), _EXPONENTS[best].tolist(), strict=True)
    return [PowerLaw(a, b * scale**c, c) for a, b, c in found]


@dataclass(frozen=True)
class Point:
    """The error of heads of so many images.

    Attributes:
        images: that a head is trained on; of a forecast, that there would be.
        error: a fraction.
        low: lower bound of its 95 % interval.
        high: upper bound of that interval.
    """

    images: int
    error: float
    low: float
    high: float


def curve_of(
    images: Floats, wrong: Floats, folds: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], wanted: Floats
) -> tuple[list[Point], PowerLaw, list[Point]]:
    """Points at `images` (P,), the law through them, and what it says of `wanted` numbers of images.

    `wrong` (P, N) is whether the head of each part is wrong about each of N images, each in one of `folds` (N,) and one
    of `groups` (N,) from 0. Intervals are by bootstrap: folds are drawn with replacement, since the heads of a fold
    share their training images, and groups within them.
    """
    generator, count = np.random.default_rng(0), wrong.shape[1]
    errors = wrong.mean(1)
    weights = count / np.maximum(errors * (1 - errors), 1 / count)
    law = fit_power_laws(images, errors[None], weights)[0]
    of_groups = _by_group(wrong, folds, groups)
    drawn = np.stack([_resampled(of_groups, generator) for _ in range(RESAMPLES)])
    laws = [one.at(wanted) for one in fit_power_laws(images, drawn, weights)]
    lows, highs = np.percentile(drawn, _TAILS, axis=0)
    points = _points(images, errors, lows, highs)
    lows, highs = np.percentile(laws, _TAILS, axis=0)
    return points, law, _points(wanted, law.at(wanted), lows, highs)


def gain_of(images: Sequence[int], errors: Sequence[float], more: int) -> float:
    """By how much the error falls with `more` images than the last of `images` (P,), by the law through `errors` (P,).

    A rough figure: the law's own error is not in it.
    """
    sizes, found = np.array(images, np.float64), np.array([errors])
    law = fit_power_laws(sizes, found, np.ones(len(sizes)))[0]
    return float(law.at(sizes[-1]) - law.at(sizes[-1] + more))


def _points(images: Floats, errors: Floats, lows: Floats, highs: Floats) -> list[Point]:
    rows = zip(images.tolist(), errors.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [Point(round(count), *others) for count, *others in rows]


def _by_group(
    wrong: Floats, folds: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]
) -> list[tuple[Floats, Floats]]:
    """Of each fold the wrong images (P, G) and images (G,) of each group."""
    found = []
    for fold in np.unique(folds):
        numbers = np.unique(groups[folds == fold], return_inverse=True)[1]
        sums = np.stack([np.bincount(numbers, part).astype(np.float64) for part in wrong[:, folds == fold]])
        found.append((sums, np.bincount(numbers).astype(np.float64)))
    return found


def _resampled(of_groups: list[tuple[Floats, Floats]], generator: np.random.Generator) -> Floats:
    """Errors (P,) of folds drawn with replacement, and of groups drawn within each."""
    total, images = np.zeros(len(of_groups[0][0])), 0.0
    for fold in generator.integers(len(of_groups), size=len(of_groups)):
        sums, sizes = of_groups[fold]
        times = np.bincount(generator.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        total += sums @ times
        images += float(sizes @ times)
    found: Floats = total / images
    return found
