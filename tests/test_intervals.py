"""Intervals of accuracies: what they cover over many draws of images whose true accuracy is known."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from pipeline.statistics.intervals import Interval, accuracies

DRAWS = 2000


def found(hits: npt.NDArray[np.bool_], truth: npt.NDArray[np.int64], groups: object = None) -> dict[str, Interval]:
    """Of images of which `hits` are taken for their class, others for the next one."""
    classes = max(int(truth.max()) + 1, 2)
    log_probs = np.full((len(truth), classes), -9.0)
    log_probs[np.arange(len(truth)), np.where(hits, truth, (truth + 1) % classes)] = -0.01
    return accuracies(log_probs, truth, groups)  # type: ignore[arg-type]  # None, or numbers


def coverage(images: Sequence[int], accuracy: Sequence[float]) -> tuple[float, float]:
    """Of top-1 and mean per class, over draws of `images` of each class, whose true accuracies are `accuracy`."""
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(images)), images)
    each = np.array(accuracy)
    covered = np.zeros(2)
    for _ in range(DRAWS):
        one = found(generator.random(len(truth)) < each[truth], truth)
        for place, (name, true) in enumerate((("top1", each[truth].mean()), ("mean_per_class", each.mean()))):
            covered[place] += one[name].low <= true <= one[name].high
    return float(covered[0]) / DRAWS, float(covered[1]) / DRAWS


@pytest.mark.parametrize(
    ("images", "accuracy"),
    [
        ([20] * 2, [0.99] * 2),
        ([1] * 100, [0.9] * 100),
        ([1] * 50 + [20] * 50, [0.9] * 100),
        ([2] * 100, [0.9] * 100),
        ([8] * 102, [0.95] * 102),
    ],
    ids=["2 x 20", "100 x 1", "half 1, half 20", "100 x 2", "102 x 8"],
)
def test_a_95_percent_interval_covers_95_percent(images: list[int], accuracy: list[float]) -> None:
    """Classes of few images and of many, accuracies near 100 %."""
    for covered in coverage(images, accuracy):
        assert 0.93 <= covered <= 0.97


def test_of_50_images_at_99_percent_more_is_covered_and_must_be() -> None:
    """Hits are whole numbers: what covers 93 % of draws has 48 to 50 hits, which are 98.6 %."""
    chances = binom.pmf(np.arange(51), 50, 0.99)
    sums = [chances[[50, 49]].sum() + chances[list(rest)].sum() for rest in ((), (47,), (47, 46), (48,))]
    assert [round(float(one), 3) for one in sums] == [0.911, 0.923, 0.924, 0.986]
    assert all(0.97 < covered < 0.995 for covered in coverage([5] * 10, [0.99] * 10))


def test_classes_of_few_images_that_are_harder_widen_the_interval() -> None:
    """The variance of the mean per class is theirs; that of all images together would cover 89 %."""
    _, covered = coverage([1] * 50 + [20] * 50, [0.6] * 50 + [0.99] * 50)
    assert 0.93 <= covered <= 0.97


@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.sampled_from([0.0, 0.5, 0.99, 1.0]))
def test_a_value_is_within_its_interval_and_at_most_1(labels: list[int], accuracy: float) -> None:
    """Weights of images add up to 1 only but for rounding; where every image is right, the value is exactly 1."""
    hits = np.random.default_rng(len(labels)).random(len(labels)) < accuracy
    for one in found(hits, np.array(labels)).values():
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert one.value == 1 or not hits.all()


@pytest.mark.parametrize("right", [0, 1, 7, 48, 49, 50])
def test_independent_images_have_the_modified_jeffreys_interval(right: int) -> None:
    """As published: near 0 and 1 the bounds of Clopper and Pearson, or none."""
    hits = np.arange(50) < right
    one = found(hits, np.zeros(50, dtype=np.int64))["top1"]
    low, high = beta.ppf((0.025, 0.975), right + 0.5, 50 - right + 0.5)
    low = {0: 0.0, 1: 0.0, 50: 0.025 ** (1 / 50)}.get(right, low)
    high = {0: 1 - 0.025 ** (1 / 50), 49: 1.0, 50: 1.0}.get(right, high)
    assert (one.value, one.low, one.high) == pytest.approx((right / 50, low, high))


def test_copies_of_images_add_nothing() -> None:
    """Each image ten times, in one group, right or wrong together: the interval of the images."""
    hits, truth = np.arange(60) < 54, np.arange(60) % 6
    copied = found(hits.repeat(10), truth.repeat(10), np.arange(60).repeat(10))
    for name, one in found(hits, truth).items():
        assert (copied[name].low, copied[name].high) == pytest.approx((one.low, one.high), abs=2e-3)
    assert found(hits.repeat(10), truth.repeat(10))["top1"].low > found(hits, truth)["top1"].low + 0.03


def test_groups_that_are_all_right_count_as_images() -> None:
    """Without an error nothing says that images of a group are independent: 20 cameras of 50 images are 20."""
    truth, groups = np.zeros(1000, dtype=np.int64), np.arange(20).repeat(50)
    assert found(np.ones(1000, dtype=bool), truth, groups)["top1"].low == pytest.approx(0.025 ** (1 / 20))
    assert found(np.ones(1000, dtype=bool), truth)["top1"].low > 0.99


@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_an_interval_covers_whatever_groups_have_in_common(alike: float) -> None:
    """Images of a group are right together by chance, more often, or always."""
    generator = np.random.default_rng(0)
    groups, covered = np.arange(100).repeat(5), 0
    for _ in range(DRAWS):
        chance = np.full(100, 0.9)
        if alike == 1:
            chance = (generator.random(100) < 0.9).astype(float)
        elif alike:
            chance = generator.beta(0.9 * (1 / alike - 1), 0.1 * (1 / alike - 1), 100)
        one = found(generator.random(500) < chance[groups], np.zeros(500, dtype=np.int64), groups)["top1"]
        covered += one.low <= 0.9 <= one.high
    assert 0.93 <= covered / DRAWS <= 0.99


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_groups_of_unequal_sizes_are_covered_and_cost_no_more_than_they_must(alike: float) -> None:
    """Most images alone, and one group of 28: intervals are about as wide as those of as many independent images."""
    generator, covered, widths = np.random.default_rng(0), 0, []
    groups = np.arange(1000).repeat([1] * 890 + [2] * 70 + [4] * 24 + [10] * 15 + [28])
    truth = np.zeros(len(groups), dtype=np.int64)
    for _ in range(DRAWS):
        chance = np.full(1000, 0.95) if alike == 0 else (generator.random(1000) < 0.95).astype(float)
        one = found(generator.random(len(groups)) < chance[groups], truth, groups)["top1"]
        covered += one.low <= 0.95 <= one.high
        widths.append(one.high - one.low)
    sizes = np.bincount(groups)
    images = len(groups) if alike == 0 else len(groups) ** 2 / float((sizes**2).sum())
    assert 0.92 <= covered / DRAWS <= 0.98
    assert np.mean(widths) < 1.15 * 2 * 1.96 * np.sqrt(0.95 * 0.05 / images)


def test_top_5_counts_classes_before_the_true_one() -> None:
    """Also where their probabilities are too small for a number of 32 bits; none with five classes."""
    log_probs = np.array([[0.0, -200.0, -210.0, -220.0, -230.0, -240.0, -250.0]] * 2)
    one = accuracies(log_probs, np.array([4, 5]))["top5"]
    assert one.value == 0.5
    assert "top5" not in accuracies(log_probs[:, :5], np.array([4, 3]))
