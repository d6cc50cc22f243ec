"""What a choice on validation images is worth: corrected by bootstrap, and compared by image, against known truth."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from pipeline.search.selection import Metric, corrected, difference

IMAGES, HEADS = 818, 64
LABELS = np.arange(IMAGES) % 102


def metric_of(name: str = "top1", labels: np.ndarray = LABELS, groups: np.ndarray | None = None) -> Metric:
    """Of independent images, unless in `groups`."""
    return Metric(name, labels, np.arange(len(labels)) if groups is None else groups)


def equally_good(generator: np.random.Generator, heads: int, shared: float, accuracy: float = 0.95) -> np.ndarray:
    """Hits (heads, IMAGES) of heads of the same true accuracy, whose errors correlate."""
    common = math.sqrt(shared) * generator.normal(size=IMAGES)
    own = math.sqrt(1 - shared) * generator.normal(size=(heads, IMAGES))
    hits: np.ndarray = common + own < NormalDist().inv_cdf(accuracy)
    return hits


@pytest.mark.parametrize(("shared", "optimism"), [(0.9, 0.008), (0.0, 0.013)])
def test_the_best_of_equal_heads_looks_better_than_it_is_and_is_corrected(shared: float, optimism: float) -> None:
    """By about a point on 818 images; corrected, by about a third of one at most."""
    generator, metric = np.random.default_rng(0), metric_of()
    plain, after, above = [], [], []
    for _ in range(12):
        hits = equally_good(generator, HEADS, shared)
        plain.append(hits.mean(1).max() - 0.95)
        found = corrected(hits, metric, hits[0])
        assert found is not None
        after.append(found.accuracy - 0.95)
        above.append(found.above)
    assert np.mean(plain) > optimism
    assert abs(np.mean(after)) < 0.0035
    assert abs(np.mean(above)) < 0.003  # no better than the first of these heads


def test_heads_that_halving_stopped_count_too() -> None:
    """The same images stopped them: corrected over all heads there is no gain, over the last of them there is."""
    generator, metric = np.random.default_rng(0), metric_of()
    over_all, over_last = list[float](), list[float]()
    for _ in range(12):
        hits = equally_good(generator, HEADS, 0.5)
        last = np.argsort(hits.mean(1))[-4:]
        for found, some in ((over_all, hits), (over_last, hits[last])):
            result = corrected(some, metric, hits[0])
            assert result is not None
            found.append(result.above)
    assert abs(np.mean(over_all)) < 0.003
    assert np.mean(over_last) > 0.004


def test_a_head_that_is_far_better_needs_no_correction() -> None:
    """It is chosen on every sample."""
    hits = np.zeros((3, IMAGES), bool)
    hits[1] = np.arange(IMAGES) % 10 > 0
    found = corrected(hits, metric_of(), hits[0])
    assert found is not None
    assert found.accuracy == found.above == pytest.approx(hits[1].mean(), abs=0.002)


def test_one_image_leaves_nothing_to_score_on() -> None:
    """Nothing rather than a figure; nor do many files of one content."""
    assert corrected(np.ones((2, 1), bool), metric_of(labels=np.zeros(1, np.int64)), np.ones(1, bool)) is None
    copies = metric_of(labels=np.zeros(9, np.int64), groups=np.zeros(9, np.int64))
    assert corrected(np.ones((2, 9), bool), copies, np.ones(9, bool)) is None


def test_a_mean_per_class_weighs_classes_alike() -> None:
    """One image of a class counts as much as nine of another; a class without images counts nothing."""
    labels = np.array([0] * 9 + [2])
    metric = metric_of("mean-per-class", labels)
    assert metric.of(labels == 0) == pytest.approx(0.5)
    assert metric.of(labels == 2) == pytest.approx(0.5)
    assert metric.weights(np.array([1.0] * 9 + [0.0])).sum() == pytest.approx(1)
    assert metric_of("top1", labels).of(labels == 0) == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["top1", "mean-per-class"])
def test_the_interval_of_a_difference_covers_it(name: str) -> None:
    """Of two heads of 95 and 94 %, in about 95 % of draws; narrower than the 4.3 points of independent images."""
    generator, metric = np.random.default_rng(0), metric_of(name)
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


def test_equal_hits_are_equal_accuracies() -> None:
    """Whichever images they are on: ties go by other things than rounding."""
    generator = np.random.default_rng(0)
    right = np.arange(IMAGES) < 770
    hits = np.stack([generator.permutation(right) for _ in range(200)])
    assert len(set(metric_of().of(hits).tolist())) == 1
    pairs = ((hits[5 * n : 5 * n + 5], hits[5 * n + 5 : 5 * n + 10]) for n in range(0, 38, 2))
    assert {difference(list(a), list(b), metric_of()).value for a, b in pairs} == {0.0}


@pytest.mark.parametrize(("name", "classes"), [("top1", 2), ("mean-per-class", 50), ("mean-per-class", 2)])
def test_no_observed_difference_is_not_a_certain_one(name: str, classes: int) -> None:
    """50 images that both heads get right, or one image in each class: the interval has a width, and covers."""
    labels, generator = np.arange(50) % classes, np.random.default_rng(0)
    metric = metric_of(name, labels)
    same = difference([np.ones(50, bool)], [np.ones(50, bool)], metric)
    assert same.value == 0
    assert same.low < -0.03 < 0.03 < same.high
    covered = 0
    for _ in range(2000):
        first, second = (generator.random(50) < accuracy for accuracy in (0.98, 0.94))
        found = difference([first], [second], metric)
        covered += found.low <= 0.04 <= found.high
    assert covered / 2000 >= 0.93


def test_images_of_a_group_are_one_piece_of_evidence() -> None:
    """Each image four times: the interval of a quarter of the images."""
    generator = np.random.default_rng(0)
    first, second = (generator.random(100) < accuracy for accuracy in (0.9, 0.8))
    labels = np.arange(100) % 2
    alone = difference([first], [second], metric_of(labels=labels))
    four = metric_of(labels=np.repeat(labels, 4), groups=np.repeat(np.arange(100), 4))
    copied = difference([np.repeat(first, 4)], [np.repeat(second, 4)], four)
    assert copied.value == alone.value
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.05)
