"""Whether images as a whole have drifted from the training images, by their p-values.

Of images like the training ones, p-values are spread evenly from 0 to 1. Where fewer than half of them are over a half,
the rest are of another kind: Storey, A Direct Approach to False Discovery Rates, JRSS B 2002, with his lambda one half.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

FEWEST = 20  # images: of fewer, nothing can be said
_LAMBDA = 0.5


@dataclass(frozen=True)
class Drift:
    """What the p-values of some images say together.

    Attributes:
        images: with a p-value.
        unlike: estimated fraction of them that is unlike the training images, at least; 0 to 1.
        interval: `[low, high]` of it, 95 % over images.
        flagged: fraction whose p-value is below the model's `false_alarms`.
        expected: that fraction at most of images like the training ones, `false_alarms` itself.
    """

    images: int
    unlike: float
    interval: tuple[float, float]
    flagged: float
    expected: float

    def in_words(self) -> str:
        """One line."""
        low, high = self.interval
        return (
            f"of {self.images:,} images about {self.unlike:.0%} ({low:.0%} to {high:.0%}) are unlike the training "
            f"images; {self.flagged:.1%} are taken for unknown, of others at most {self.expected:.1%} would be"
        )


def drift_of(p_values: npt.NDArray[np.float64], false_alarms: float, known: int) -> Drift | None:
    """Of p-values (N,), which are fractions of `known` images; None of too few.

    All p-values of a model share these images, whose chance the interval counts too (Jeffreys).
    """
    count = len(p_values)
    if count < FEWEST:
        return None
    share, images = float((p_values > _LAMBDA).mean()), 1 / (1 / count + 1 / known)
    bounds = beta.ppf((0.975, 0.025), share * images + 0.5, (1 - share) * images + 0.5)
    unlike, low, high = (max(0.0, float(1 - one / (1 - _LAMBDA))) for one in (share, *bounds))
    return Drift(count, unlike, (low, high), float((p_values < false_alarms).mean()), false_alarms)
