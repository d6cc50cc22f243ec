"""p-values and prediction sets: what they promise, on data drawn for it."""

import math

import numpy as np
import pytest

from pipeline.statistics.conformal import in_sets, p_values, quantile, set_thresholds
from pipeline.unknown.drift import FEWEST, drift_of


def test_p_values_count_the_scores_as_high_or_higher() -> None:
    """And the image itself, so that none is 0."""
    found = p_values(np.array([1.0, 2.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 2.5, 4.0]))
    assert found.tolist() == [1.0, 1.0, 0.8, 0.4, 0.2]


def test_p_values_of_the_same_kind_are_even() -> None:
    """Of 400 sets of 99 calibrating scores, p is at most 0.1 one time in ten."""
    generator = np.random.default_rng(0)
    hits = [float(p_values(np.sort(generator.random(99)), generator.random(1))[0]) <= 0.1 for _ in range(4000)]
    assert np.mean(hits) == pytest.approx(0.1, abs=0.015)


def test_a_quantile_needs_enough_images() -> None:
    """19 for 95 %, the highest of them; fewer promise nothing."""
    assert quantile(np.arange(19.0), 0.95) == 18
    assert quantile(np.arange(18.0), 0.95) == math.inf
    assert quantile(np.arange(99.0), 0.95) == 94


def labelled(images: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of ten classes, five of which are hard to tell apart from others, and the true classes."""
    truth = generator.integers(0, 10, images)
    logits = generator.normal(size=(images, 10))
    logits[np.arange(images), truth] += np.where(truth < 5, 1.5, 6.0)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True)), truth


def test_sets_hold_the_true_class_as_often_as_asked() -> None:
    """Over all images and over those of the hard classes, which one threshold for all would leave uncovered."""
    generator = np.random.default_rng(0)
    log_probs, truth = labelled(3000, generator)
    least = set_thresholds(log_probs, truth, 0.9, np.arange(3000) % 3 == 0)
    fresh, labels = labelled(30_000, generator)
    inside = in_sets(fresh, least)
    assert inside.any(1).all()
    covered = inside[np.arange(len(labels)), labels]
    assert covered.mean() >= 0.89
    assert covered[labels < 5].mean() >= 0.87
    alone = quantile(1 - np.exp(log_probs[np.arange(3000), truth]), 0.9)
    of_hard = (np.exp(fresh) >= 1 - alone)[np.arange(len(labels)), labels][labels < 5].mean()
    assert of_hard < 0.84


def test_classes_with_few_images_have_the_threshold_of_all() -> None:
    """Of two images a class nothing can be said, and of fewer than 19 in all a set has every class."""
    log_probs, truth = labelled(20, np.random.default_rng(0))
    least = set_thresholds(log_probs, truth, 0.9, np.arange(20) % 2 == 0)
    assert len(np.unique(least)) == 1
    assert set_thresholds(log_probs[:8], truth[:8], 0.9, np.arange(8) % 2 == 0).tolist() == [0.0] * 10


def test_a_class_with_few_images_shares_the_threshold_of_the_least_sure_classes() -> None:
    """Alone it would be in every set; so it is covered as well as the hard classes are, together with them."""
    log_probs, truth = labelled(3000, np.random.default_rng(0))
    kept = (truth != 9) | (np.cumsum(truth == 9) <= 4)
    log_probs, truth = log_probs[kept], truth[kept]
    least = set_thresholds(log_probs, truth, 0.9, np.arange(len(truth)) % 3 == 0)
    assert least[9] == least[:9].min() > 0


def test_drift_is_the_fraction_of_images_that_are_unlike() -> None:
    """Within its interval; of images like the training ones it may be none, and of few nothing is said."""
    generator = np.random.default_rng(0)
    mixed = np.concatenate([generator.random(700), 0.05 * generator.random(300)])
    found = drift_of(mixed, 0.01, 5000)
    assert found is not None
    assert found.interval[0] <= 0.3 <= found.interval[1]
    assert found.unlike == pytest.approx(0.3, abs=0.06)
    assert found.expected == 0.01
    same = drift_of(generator.random(1000), 0.01, 5000)
    assert same is not None
    assert same.interval[0] < 0.03
    assert drift_of(mixed[: FEWEST - 1], 0.01, 5000) is None


def test_drift_is_seldom_seen_where_there_is_none() -> None:
    """The known images of a model have a chance of their own, however many images are predicted: 2.5 % of models."""
    generator, seen = np.random.default_rng(0), 0
    for _ in range(400):
        known = np.sort(generator.random(300))
        found = drift_of(p_values(known, generator.random(5000)), 0.01, 300)
        assert found is not None
        seen += found.interval[0] > 0
    assert seen / 400 <= 0.05


def test_rare_classes_share_a_threshold_of_their_own() -> None:
    """Sets cover as often as asked, though a third of the images are of classes with a few images, which are hard."""
    generator = np.random.default_rng(0)
    weights = np.array([0.7 / 5] * 5 + [0.3 / 50] * 50)

    def drawn(images: int) -> tuple[np.ndarray, np.ndarray]:
        truth = generator.choice(55, images, p=weights)
        logits = generator.normal(size=(images, 55))
        logits[np.arange(images), truth] += np.where(truth < 5, 7.0, 2.5)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True)), truth

    log_probs, truth = drawn(1500)
    least = set_thresholds(log_probs, truth, 0.9, np.arange(1500) % 3 == 0)
    fresh, labels = drawn(20_000)
    covered = in_sets(fresh, least)[np.arange(20_000), labels]
    assert covered.mean() >= 0.88
    assert covered[labels >= 5].mean() >= 0.85
