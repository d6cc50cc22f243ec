"""From which cosine on two images are near-duplicates, and how often that is wrong: measured on the images themselves.

Pairs of different classes are different images, so that their cosines give the rate of false alarms. A handful of them
is not: copies with two labels. Beyond the `near` highest cosines the rate is therefore extrapolated, from there and
from ten times as many (after Weissman, "Estimation of parameters and large quantiles based on the k largest
observations", Journal of the American Statistical Association, 1978).
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

MOST_FALSE = 1.0  # pairs of different images, expected in the set
_FEWEST_PAIRS = 100  # of different classes
_BINS = 20_000  # of cosines from -1 to 1
_BLOCK = 1024


@dataclass(frozen=True)
class Threshold:
    """The least cosine of near-duplicates.

    Attributes:
        cosine: from -1 to 1; None where it is unknown, and only identical files are found.
        false_alarm_rate: probability that a pair of different images, of different classes, reaches it; None: unknown.
        expected_false: such pairs that are expected among the pairs of different classes; None: unknown. Pairs of one
            class, which may show one scene, have no known rate.
        detection_rate: fraction of augmented views whose cosine to their own image reaches it; None: no such views.
    """

    cosine: float | None = None
    false_alarm_rate: float | None = None
    expected_false: float | None = None
    detection_rate: float | None = None

    def as_json(self) -> dict[str, float | None]:
        """As commands print it."""
        return {"threshold": self.cosine, **{name: value for name, value in asdict(self).items() if name != "cosine"}}

    def __str__(self) -> str:
        if self.cosine is None:
            return "identical files only: too few or too many images to calibrate a threshold"
        false, seen = "false-alarm rate unknown", "detection rate unknown without augmented passes"
        if self.expected_false is not None:
            false = f"false pairs of different classes expected: {self.expected_false:.2g}"
            false += f" ({self.false_alarm_rate:.1e} per pair)"
        if self.detection_rate is not None:
            seen = f"{self.detection_rate:.1%} of augmented views recognised"
        return f"cosine of whitened, pooled features at least {self.cosine:.3f} (low in a small set): {false}, {seen}"


@dataclass(frozen=True)
class FalseAlarms:
    """How many pairs of different images reach a cosine.

    Attributes:
        reached: pairs that reach each of `_BINS` + 1 cosines from -1 to 1.
        start: cosine that the `near` most similar pairs reach; beyond, the rate falls by e with each `scale`.
    """

    reached: Tensor
    near: int
    start: float
    scale: float

    @property
    def pairs(self) -> int:
        """That were compared."""
        return int(self.reached[0])

    def rate(self, cosine: float) -> float:
        """The probability that a pair of different images reaches `cosine`."""
        if cosine >= self.start:
            return self.near / self.pairs * math.exp((self.start - cosine) / self.scale)
        return int(self.reached[math.ceil((cosine + 1) / 2 * _BINS)]) / self.pairs

    def cosine(self, rate: float) -> float:
        """The least cosine of at most this rate, at most 1; `rate` is below that of `start`."""
        return min(1.0, self.start + self.scale * math.log(self.near / self.pairs / rate))


def false_alarms(units: Tensor, labels: Tensor) -> FalseAlarms | None:
    """Of features (N, R) of length 1 and labels (N,) of different images; None where too few pairs differ in class."""
    counts, places = torch.zeros(_BINS, dtype=torch.int64), torch.arange(len(units))
    for first in range(0, len(units), _BLOCK):
        some = slice(first, first + _BLOCK)
        alike = (labels[some, None] == labels[first:]) | (places[some, None] >= places[first:])
        cosines = (units[some] @ units[first:].T).clamp_(-1, 1).masked_fill_(alike, -2)
        counts += torch.histc(cosines, _BINS, -1, 1).long()  # which leaves out -2
    reached = torch.cat([counts.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.int64)])
    pairs = int(reached[0])
    if pairs < _FEWEST_PAIRS:
        return None
    # A thousandth of the pairs is a tail of their distribution; few or many, it is known from enough of them.
    far = min(max(pairs // 1000, 30), 10_000)
    near = far // 10
    start, below = (2 * int((reached >= rank).nonzero().max()) / _BINS - 1 for rank in (near, far))
    return FalseAlarms(reached, near, start, max((start - below) / math.log(far / near), 2 / _BINS))
