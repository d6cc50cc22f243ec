"""Temperature scaling: one number that makes a head as sure as it is right; it folds into the last layer.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The classes and their order stay as they were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor, tensor
from torch.nn.functional import log_softmax, nll_loss

from cache.index import ImageRecord
from pipeline.statistics.groups import join

BINS = 15
LARGEST = 100.0  # temperature, and one over the smallest
FOLDS = 5  # that a temperature is cross-fitted over
REDRAWS = 200  # of the labels, for the floor of the calibration error


@dataclass(frozen=True)
class Fit:
    """What held-out images say of a head's probabilities.

    Attributes:
        ece: calibration error of the head as it is, 0 to 1.
        floor: what it would be on average if the probabilities were right, see `floor_of`.
        temperature: that of least loss; None where every image is classified correctly.
        scaled_ece: calibration error of temperature-scaled probabilities, each fold by a temperature of the others.
        scaled_floor: its floor.
    """

    ece: float
    floor: float
    temperature: float | None
    scaled_ece: float
    scaled_floor: float


def calibrate(
    log_probs: Tensor,
    labels: Tensor,
    images: Sequence[ImageRecord],
    trained: Sequence[ImageRecord],
    shift: Tensor | None = None,
) -> Fit:
    """Of log-probabilities (N, C) and labels (N,) of `images`, by heads that `trained` were shown to.

    Images that are among these are left out where a temperature is fitted. Folds follow from contents, a group in one.
    Errors are of probabilities with `shift`, as in `at_temperature`.
    """
    seen = {image.digest for image in trained}
    fresh = tensor([image.digest not in seen for image in images])
    folds = tensor([int(name[:8], 16) % FOLDS for name in join(images).names(images)])
    scaled = log_probs.clone()
    for fold in range(FOLDS):
        held_out, others = folds == fold, fresh & (folds != fold)
        temperature = fit_temperature(log_probs[others], labels[others], shift) or 1.0
        scaled[held_out] = at_temperature(log_probs[held_out], temperature, shift)
    before = at_temperature(log_probs, 1.0, shift)
    return Fit(
        ece=error_of(before, labels),
        floor=floor_of(before),
        temperature=fit_temperature(log_probs[fresh], labels[fresh], shift),
        scaled_ece=error_of(scaled, labels),
        scaled_floor=floor_of(scaled),
    )


def fit_temperature(log_probs: Tensor, labels: Tensor, shift: Tensor | None = None) -> float | None:
    """The temperature, 0.01 to 100, at which log-probabilities (N, C) have the least loss on labels (N,).

    Its logarithm has a standard normal prior: log(T)² / 2 is added to the sum of the losses of all images, which
    matters below some 50 images alone. `shift` is as in `at_temperature`. None without images, and where every image is
    classified correctly before it, as the loss then falls all the way to T = 0.
    """
    of_truth = log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
    if bool((of_truth >= log_probs.amax(1)).all()):
        return None
    logits = log_probs.double()

    def loss(power: float) -> float:
        scaled = at_temperature(logits, math.exp(power), shift)
        return float(nll_loss(scaled, labels, reduction="sum")) + power**2 / 2

    bound = math.log(LARGEST)
    return math.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4}).x)


def at_temperature(log_probs: Tensor, temperature: float, shift: Tensor | None = None) -> Tensor:
    """Log-probabilities of the temperature-scaled head, from those of the head: (N, C).

    `shift` (C,) is added after the division: the logarithm of a ratio of class frequencies, by Bayes' rule.
    """
    scaled = log_probs / temperature
    return log_softmax(scaled if shift is None else scaled + shift.to(scaled.dtype), dim=1)


def error_of(log_probs: Tensor, labels: Tensor) -> float:
    """The calibration error of log-probabilities (N, C) against labels (N,)."""
    confidence, predicted = log_probs.exp().max(dim=1)
    return calibration_error(confidence.numpy(), (predicted == labels).numpy())


def floor_of(log_probs: Tensor) -> float:
    """The mean calibration error of log-probabilities (N, C) against labels that are drawn from them, seeded.

    Few images in a bin differ from its probability by chance: no head is measurably better calibrated than this.
    Consistency resampling (Bröcker and Smith, Increasing the Reliability of Reliability Diagrams, Weather and
    Forecasting, 2007).
    """
    confidence = log_probs.exp().amax(dim=1).numpy()
    generator = np.random.default_rng(0)
    drawn = (generator.random(len(confidence)) < confidence for _ in range(REDRAWS))  # whether the label is the top one
    return float(np.mean([calibration_error(confidence, correct) for correct in drawn]))


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error over 15 equal-width bins of confidence: (N,) of each."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
