"""Conformal prediction: p-values of scores, and sets of classes that hold the true one as often as asked.

Both hold for images drawn as the calibrating ones were, whatever the head. Sources: Bates et al., Testing for Outliers
with Conformal p-values, Annals of Statistics 2023; Sadinle, Lei and Wasserman, Least Ambiguous Set-Valued Classifiers,
JASA 2019; Ding et al., Class-Conditional Conformal Prediction with Many Classes, NeurIPS 2023.
"""

import math

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

_CLUSTERS = 4
_FEWEST = 5  # images of a class whose scores say which cluster it is of
_QUANTILES = (0.5, 0.6, 0.7, 0.8, 0.9)


def p_values(calibrating: Floats, scores: Floats) -> Floats:
    """Fraction of images with a score as high or higher, of `scores` (N,), the image itself counted among these.

    `calibrating` (M,) are the scores of images of the kind that is tested for, in rising order. Of such images, at most
    a fraction p has a p-value of p or less.
    """
    above = len(calibrating) - np.searchsorted(calibrating, scores, side="left")
    found: Floats = (1 + above) / (len(calibrating) + 1)
    return found


def quantile(scores: Floats, coverage: float) -> float:
    """The score that a fraction `coverage` of further images does not exceed; infinite where (N,) are too few."""
    rank = math.ceil((len(scores) + 1) * coverage)
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def set_thresholds(log_probs: Floats, truth: Places, coverage: float, clustering: Bools) -> Floats:
    """The probability from which a class is in the set, (C,), so that sets hold the true class as often as `coverage`.

    Of log-probabilities (N, C) and true classes (N,) of images that did not train the head. Classes that are alike in
    how sure the head is of them share a threshold, so that hard classes are covered more often than by one for all.
    Which are alike is found on the images of `clustering` (N,), thresholds on the others. Classes with too few images,
    and those of too small clusters, share one threshold; where they have too few together, it is that of the cluster
    that the head is least sure of, which is then of them all. Without such a cluster they are in every set.
    """
    scores, classes = 1 - np.exp(log_probs[np.arange(len(truth)), truth]), log_probs.shape[1]
    of_class = _clusters(scores[clustering], truth[clustering], classes)
    rest, of_image = scores[~clustering], of_class[truth[~clustering]]
    for cluster in range(of_class.max() + 1):
        if math.isinf(quantile(rest[of_image == cluster], coverage)):
            of_class[of_class == cluster] = -1
    of_image = of_class[truth[~clustering]]
    if of_class.max() >= 0 and math.isinf(quantile(rest[of_image == -1], coverage)):
        known = of_class[truth[clustering]]
        unsure = {one: float(np.median(scores[clustering][known == one])) for one in np.unique(known[known >= 0])}
        of_class[of_class == -1] = max(unsure, key=unsure.__getitem__)
        of_image = of_class[truth[~clustering]]
    worst = np.empty(classes)
    for cluster in np.unique(of_class):
        worst[of_class == cluster] = quantile(rest[of_image == cluster], coverage)
    least: Floats = np.maximum(1 - worst, 0)
    return least


def _clusters(scores: Floats, truth: Places, classes: int) -> Places:
    """Clusters of classes by the quantiles of their scores, (C,); -1 of a class with too few images."""
    from sklearn.cluster import KMeans

    images, found = np.bincount(truth, minlength=classes), np.full(classes, -1)
    known = np.flatnonzero(images >= _FEWEST)
    if len(known) > _CLUSTERS:
        spread = np.array([np.quantile(scores[truth == one], _QUANTILES) for one in known])
        weights = np.sqrt(images[known])
        found[known] = KMeans(_CLUSTERS, n_init=10, random_state=0).fit_predict(spread, sample_weight=weights)
    return found


def in_sets(log_probs: Floats, least: Floats) -> Bools:
    """Whether each class is in the set, (N, C), by the thresholds (C,); the most probable class always is."""
    found: Bools = np.exp(log_probs) >= least
    found[np.arange(len(log_probs)), log_probs.argmax(1)] = True
    return found
