"""Selective classification: to answer only where the head is sure, so that few of the answers are wrong.

Sources: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017; fixed-sequence testing
by Angelopoulos et al., Learn then Test, 2021.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, nbinom

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# Probabilities to try as thresholds, the strictest first: fixed before any image is seen, as the test wants it.
_THRESHOLDS = 1 / (1 + np.exp(-np.linspace(14.0, -7.0, 421)))
_FORGIVEN = 2  # errors that the first threshold may have: one wrong label among the most confident does not end it


@dataclass(frozen=True)
class Answered:
    """What a threshold leaves of some images.

    Attributes:
        threshold: of the probability of the likeliest class; it and more are answered.
        answered: images.
        wrong: images among these.
    """

    threshold: float
    answered: int
    wrong: int

    @property
    def error(self) -> float:
        """Fraction of the answered images that is wrong; 0 of none."""
        return self.wrong / max(self.answered, 1)


@dataclass(frozen=True)
class Unsupported:
    """Why there is no threshold.

    Attributes:
        reason: one sentence.
        images_needed: number of images that would do; None where more would not help.
    """

    reason: str
    images_needed: int | None


def fewest_answered(max_error: float, confidence: float, wrong: int = 0) -> int:
    """Answered images, `wrong` of them wrong, from which an error of at most `max_error` follows with `confidence`."""
    return int(nbinom.ppf(confidence, wrong + 1, max_error)) + wrong + 1


def holds(answered: int, wrong: int, max_error: float, confidence: float) -> bool:
    """Whether the error is at most `max_error` by the exact binomial test (Clopper and Pearson, Biometrika 1934)."""
    return bool(binom.cdf(wrong, answered, max_error) <= 1 - confidence)


def answered_at(sureness: Floats, hits: Bools, threshold: float) -> Answered:
    """Of N images, `sureness` (N,) being the probability of the likeliest class and `hits` (N,) whether it is right."""
    kept = sureness >= threshold
    return Answered(float(threshold), int(kept.sum()), int((kept & ~hits).sum()))


def fit_threshold(sureness: Floats, hits: Bools, max_error: float, confidence: float) -> Answered | Unsupported:
    """The laxest threshold whose answers are wrong at most `max_error` of the time, with `confidence`.

    Of N independent images that did not choose the head, `sureness` (N,) being 0 of those that are not to be answered
    for another reason. Thresholds are tested from a strict one on, each as if it were the only one, until one fails:
    the promise then holds for the one before. The first is where a few errors would pass, or where half of the images
    are answered.
    """
    needed, count = fewest_answered(max_error, confidence), len(hits)
    first = max(needed, min(fewest_answered(max_error, confidence, _FORGIVEN), count // 2))
    found, failed = None, None
    for threshold in _THRESHOLDS:
        at = answered_at(sureness, hits, threshold)
        if at.answered < first or (found and at.answered == found.answered):
            continue
        if not holds(at.answered, at.wrong, max_error, confidence):
            failed = at
            break
        found = at
    return found or _unsupported(failed, count, max_error, confidence)


def _unsupported(failed: Answered | None, images: int, max_error: float, confidence: float) -> Unsupported:
    """Why not, and how many images would do if the error among them were what it is among these."""
    needed = fewest_answered(max_error, confidence)
    if failed is None:
        return Unsupported(
            f"{needed:,} answered images without an error are needed for {100 * max_error:.3g} % at "
            f"{100 * confidence:.3g} %, there are {images:,} images",
            needed,
        )
    if failed.error >= max_error:
        return Unsupported(f"{failed.wrong:,} of the {failed.answered:,} most confident predictions are wrong", None)
    more = failed.answered
    while not holds(more, math.ceil(failed.error * more), max_error, confidence):
        more = math.ceil(1.1 * more)
    return Unsupported(
        f"{failed.wrong:,} of the {failed.answered:,} most confident predictions are wrong, too few of them to tell",
        math.ceil(images * more / failed.answered),
    )


@dataclass(frozen=True)
class RiskCoverage:
    """Error among the most confident predictions, by the fraction of images that these are, and its mean.

    Attributes:
        coverage: fractions of the images, (N,), rising to 1.
        risk: error of so many of the most confident, (N,).
        aurc: mean of `risk`, the area under this curve.
    """

    coverage: Floats
    risk: Floats
    aurc: float


def risk_coverage(sureness: Floats, hits: Bools) -> RiskCoverage:
    """Of N images, `sureness` (N,) and `hits` (N,) as above; images that are equally sure share their errors."""
    order = np.argsort(-sureness, kind="stable")
    _, group, sizes = np.unique(-sureness[order], return_inverse=True, return_counts=True)
    wrong = (np.bincount(group, ~hits[order]) / sizes)[group]
    counts = np.arange(1, len(hits) + 1)
    risk = np.cumsum(wrong) / counts
    return RiskCoverage(counts / len(hits), risk, float(risk.mean()))
