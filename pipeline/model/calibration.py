"""Temperature scaling: one number that makes a head as sure as it is right; it folds into the last layer.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The classes and their order stay as they were.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from pipeline.heads.head import head_from_tensors

BINS = 15
LARGEST = 4.0  # temperature, and one over the smallest: beyond, the images do not say


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float | None:
    """The temperature at which log-probabilities (N, C) have the least loss on labels (N,).

    None where that is none within a factor of `LARGEST`: where all images are right, nothing speaks against being surer
    still.
    """
    logits = log_probs.double()

    def loss(power: float) -> float:
        return float(nll_loss(log_softmax(logits / math.exp(power), dim=1), labels))

    bound = math.log(LARGEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x) if abs(found.x) < 0.99 * bound else None


def cooled(head: nn.Sequential, temperature: float) -> nn.Sequential:
    """The head with its logits over `temperature`, in its last layer."""
    tensors = dict(head.state_dict())
    for name in ("3.weight", "3.bias"):
        tensors[name] = (tensors[name].double() / temperature).float()
    return head_from_tensors(tensors)


def at_temperature(log_probs: Tensor, temperature: float) -> Tensor:
    """What the cooled head gives, from what the head gave: (N, C)."""
    return log_softmax(log_probs / temperature, dim=1)


def error_of(log_probs: Tensor, labels: Tensor) -> float:
    """The calibration error of log-probabilities (N, C) against labels (N,)."""
    confidence, predicted = log_probs.exp().max(dim=1)
    return calibration_error(confidence.numpy(), (predicted == labels).numpy())


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error over 15 equal-width bins of confidence: (N,) of each."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))
