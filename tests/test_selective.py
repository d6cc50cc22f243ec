"""Thresholds that promise an error, and the risk-coverage curve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.scoring import AnsweredScores
from pipeline.statistics.selective import (
    Answered,
    Unsupported,
    answered_at,
    fewest_answered,
    fit_threshold,
    holds,
    risk_coverage,
)


@pytest.mark.parametrize(
    ("max_error", "wrong", "images"), [(0.05, 0, 59), (0.02, 0, 149), (0.01, 0, 299), (0.01, 1, 473)]
)
def test_so_many_answers_are_needed(max_error: float, wrong: int, images: int) -> None:
    """The smallest number that the exact binomial test passes."""
    assert fewest_answered(max_error, 0.95, wrong) == images
    assert holds(images, wrong, max_error, 0.95)
    assert not holds(images - 1, wrong, max_error, 0.95)


def drawn(images: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and hits of a calibrated head that is right 96 % of the time."""
    sureness = generator.beta(8, 0.35, images)
    return sureness, generator.random(images) < sureness


@pytest.mark.parametrize("max_error", [0.01, 0.02, 0.05])
def test_the_promise_is_kept(max_error: float) -> None:
    """Of 300 draws of calibrating images, the true error exceeds what was promised in 5 % or fewer, but for chance."""
    generator, broken, answered = np.random.default_rng(0), 0, []
    every, hits = drawn(400_000, generator)
    for _ in range(300):
        found = fit_threshold(*drawn(1500, generator), max_error, 0.95)
        if isinstance(found, Answered):
            of_all = answered_at(every, hits, found.threshold)
            broken += of_all.error > max_error
            answered.append(of_all.answered / len(every))
    assert broken / 300 <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5
    assert len(answered) > 200
    assert np.mean(answered) > 0.3


def test_too_few_images_promise_nothing() -> None:
    """With how many would do."""
    found = fit_threshold(np.full(150, 0.99), np.ones(150, dtype=bool), 0.01, 0.95)
    assert isinstance(found, Unsupported)
    assert found.images_needed == 299
    assert "299 answered images" in found.reason
    assert isinstance(fit_threshold(np.full(299, 0.99), np.ones(299, dtype=bool), 0.01, 0.95), Answered)


def test_a_head_that_is_wrong_where_it_is_sure_promises_nothing() -> None:
    """More images would not help, and none are asked for; of an error just below what is allowed, more would."""
    hits = np.arange(2000) % 10 > 0
    found = fit_threshold(np.full(2000, 0.9), hits, 0.05, 0.95)
    assert isinstance(found, Unsupported)
    assert found.images_needed is None
    nearly = fit_threshold(np.full(400, 0.9), np.arange(400) % 25 > 0, 0.05, 0.95)
    assert isinstance(nearly, Unsupported)
    assert nearly.images_needed is not None
    assert nearly.images_needed > 400
    enough = nearly.images_needed
    assert isinstance(fit_threshold(np.full(enough, 0.9), np.arange(enough) % 25 > 0, 0.05, 0.95), Answered)


def test_images_that_are_not_to_be_answered_are_not() -> None:
    """Their sureness is 0: no threshold takes them, though all others are right."""
    sureness = np.concatenate([np.zeros(500), np.full(1000, 0.9)])
    found = fit_threshold(sureness, sureness > 0, 0.01, 0.95)
    assert isinstance(found, Answered)
    assert (found.answered, found.wrong) == (1000, 0)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=30))
def test_the_curve_is_the_error_of_the_most_confident(images: list[tuple[float, bool]]) -> None:
    """At each probability that images have: the error of those with as much or more."""
    sureness, hits = np.array([one[0] for one in images]), np.array([one[1] for one in images])
    curve = risk_coverage(sureness, hits)
    for threshold in set(sureness.tolist()):
        at = answered_at(sureness, hits, threshold)
        assert curve.risk[at.answered - 1] == pytest.approx(at.error)
        assert curve.coverage[at.answered - 1] == pytest.approx(at.answered / len(images))
    assert curve.aurc == pytest.approx(curve.risk.mean())
    assert curve.risk[-1] == pytest.approx(1 - hits.mean())


@pytest.mark.parametrize(
    ("error", "interval", "said"),
    [
        (0.02, (0.0, 0.09), "promised: at most 5%, kept on these images"),
        (0.06, (0.04, 0.09), "promised: at most 5%, which the interval includes"),
        (0.12, (0.07, 0.2), "promised: at most 5%, not kept"),
    ],
)
def test_an_evaluation_says_whether_the_promise_was_kept(
    error: float, interval: tuple[float, float], said: str
) -> None:
    """By the interval, since a few images more wrong do not break it."""
    assert said in AnsweredScores(0.9, error, interval, 0.05).in_words()
    assert "promised" not in AnsweredScores(0.9, error, interval).in_words()
