"""What changes between two kinds of heads of the same seeds, scored on the same images."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


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
