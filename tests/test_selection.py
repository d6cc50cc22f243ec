"""What a choice on validation images is worth: corrected by bootstrap, and compared by image, against known truth."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.search.selection import Metric, corrected, difference

IMAGES, HEADS = 818, 64
LABELS = np.arange(IMAGES) % 102


def equally_good(generator: np.random.Generator, heads: int, shared: float, accuracy: float = 0.95) -> np.ndarray:
    """Hits (heads, IMAGES) of heads of the same true accuracy, whose errors correlate."""
    common = math.sqrt(shared) * generator.normal(size=IMAGES)
    own = math.sqrt(1 - shared) * generator.normal(size=(heads, IMAGES))
    hits: np.ndarray = common + own < NormalDist().inv_cdf(accuracy)
    return hits


@pytest.mark.parametrize(("shared", "optimism"), [(0.9, 0.008), (0.0, 0.013)])
def test_the_best_of_equal_heads_looks_better_than_it_is_and_is_corrected(shared: float, optimism: float) -> None:
    """By about a point on 818 images; corrected, by less than a quarter of one."""
    generator, metric = np.random.default_rng(0), Metric("top1", LABELS)
    plain, after = [], []
    for _ in range(12):
        hits = equally_good(generator, HEADS, shared)
        plain.append(hits.mean(1).max() - 0.95)
        after.append(corrected(hits, metric) - 0.95)
    assert np.mean(plain) > optimism
    assert abs(np.mean(after)) < 0.0035


def test_a_head_that_is_far_better_needs_no_correction() -> None:
    """It is chosen on every sample."""
    hits = np.zeros((3, IMAGES), bool)
    hits[1] = np.arange(IMAGES) % 10 > 0
    assert corrected(hits, Metric("top1", LABELS)) == pytest.approx(hits[1].mean(), abs=0.002)


def test_one_image_leaves_nothing_to_score_on() -> None:
    """NaN rather than a figure."""
    assert math.isnan(corrected(np.ones((2, 1), bool), Metric("top1", np.zeros(1, np.int64))))


def test_a_mean_per_class_weighs_classes_alike() -> None:
    """One image of a class counts as much as nine of another; a class without images counts nothing."""
    labels = np.array([0] * 9 + [2])
    metric = Metric("mean-per-class", labels)
    assert metric.of(labels == 0) == pytest.approx(0.5)
    assert metric.of(labels == 2) == pytest.approx(0.5)
    assert metric.weights(np.array([1.0] * 9 + [0.0])).sum() == pytest.approx(1)
    assert Metric("top1", labels).of(labels == 0) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["top1", "mean-per-class"])
def test_the_interval_of_a_difference_covers_it(name: str) -> None:
    """Of two heads of 95 and 94 %, in about 95 % of draws; narrower than the 4.3 points of independent images."""
    generator, metric = np.random.default_rng(0), Metric(name, LABELS)
    covered, widths = 0, []
    for _ in range(300):
        common = math.sqrt(0.9) * generator.normal(size=IMAGES)
        first, second = (
            common + math.sqrt(0.1) * generator.normal(size=IMAGES) < NormalDist().inv_cdf(accuracy)
            for accuracy in (0.95, 0.94)
        )
        found = difference([first], [second], metric)
        covered += found.low <= 0.01 <= found.high
        widths.append(found.high - found.low)
    assert 0.91 <= covered / 300 <= 0.98
    assert np.mean(widths) < 0.03


def test_a_head_differs_from_itself_by_nothing() -> None:
    """Value and interval are 0."""
    hits = equally_good(np.random.default_rng(0), 2, 0.5)
    found = difference(list(hits), list(hits), Metric("top1", LABELS))
    assert (found.value, found.low, found.high) == (0, 0, 0)
