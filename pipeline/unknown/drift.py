"""Whether images as a whole have drifted from the training images, by their p-values.

Of images like the training ones, p-values are spread evenly from 0 to 1. Where fewer than half of them are over a half,
the rest are of another kind: Storey, A Direct Approach to False Discovery Rates, JRSS B 2002, with his lambda one half.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.statistics.intervals import interval

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
        expected: that fraction of images like the training ones, `false_alarms` itself.
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
            f"images; {self.flagged:.1%} are taken for unknown, {self.expected:.1%} would be of images like these"
        )


def drift_of(p_values: npt.NDArray[np.float64], false_alarms: float) -> Drift | None:
    """Of p-values (N,); None of too few."""
    count = len(p_values)
    if count < FEWEST:
        return None
    over = interval(p_values > _LAMBDA, np.full(count, 1 / count), np.arange(count))
    unlike, low, high = (max(0.0, 1 - share / (1 - _LAMBDA)) for share in (over.value, over.high, over.low))
    return Drift(count, unlike, (low, high), float((p_values < false_alarms).mean()), false_alarms)
