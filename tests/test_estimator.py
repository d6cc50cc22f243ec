"""The head as a scikit-learn estimator."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.estimator import HeadClassifier

CHECKED = HeadClassifier(hidden=32, epochs=40, lr=1e-2, batch_size=16, dropout=0.1)
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "repeated rows fall into other batches than one weighted row"
}


@parametrize_with_checks([CHECKED], expected_failed_checks=lambda _: EXPECTED_FAILURES)  # type: ignore[untyped-decorator]
def test_it_keeps_the_promises_of_scikit_learn(estimator: HeadClassifier, check: Any) -> None:
    """Cloning, labels of any kind, weights, refusals, pickling, the same result twice: scikit-learn's own checks."""
    check(estimator)


def digits(classes: int = 3, rows: int = 90) -> tuple[Any, Any]:
    """Handwriting in few rows, scaled to 0..1."""
    X, y = load_digits(n_class=classes, return_X_y=True)
    return X[:rows].astype(np.float32) / 16, y[:rows]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", -3, "1 or more"),
        ("epochs", 0, "1 or more"),
        ("epochs", 2.5, "an integer"),
        ("epochs", None, "an integer"),
        ("lr", float("nan"), "above 0"),
        ("lr", float("inf"), "above 0"),
        ("lr", "fast", "a number"),
        ("dropout", 1, "under 1"),
        ("dropout", -0.1, "0 or more"),
        ("hidden", -1, "0 or more"),
        ("hidden", None, "an integer"),
        ("batch_size", 0, "1 or more"),
        ("batch_size", 1 << 30, "at most"),
        ("weight_decay", -1e-3, "0 or more"),
        ("weight_decay", float("nan"), "0 or more"),
    ],
)
def test_a_parameter_out_of_bounds_is_refused_by_name(name: str, value: object, expected: str) -> None:
    """In `fit`, as scikit-learn wants it, with the bounds that train-head has."""
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}, expected .*{expected}"):
        HeadClassifier(**{name: value}).fit(*digits())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, "one", 0.5])
def test_a_random_state_that_is_none_is_refused(value: object) -> None:
    """By scikit-learn's own words."""
    with pytest.raises(ValueError, match=r"[Ss]eed"):
        HeadClassifier(random_state=value).fit(*digits())  # type: ignore[arg-type]


def test_a_random_state_is_an_integer_or_a_generator_or_none() -> None:
    """An integer repeats a fit, a generator draws on, None is of NumPy's own."""
    X, y = digits()

    def fitted(state: Any) -> Any:
        return HeadClassifier(hidden=4, epochs=1, random_state=state).fit(X, y).predict_proba(X)

    assert np.array_equal(fitted(7), fitted(np.int64(7)))
    assert not np.array_equal(fitted(7), fitted(8))
    generator = np.random.RandomState(7)
    first, second = fitted(generator), fitted(generator)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, fitted(np.random.RandomState(7)))
    np.random.seed(3)
    drawn = fitted(None)
    np.random.seed(3)
    assert np.array_equal(drawn, fitted(None))


def test_a_weight_of_two_is_the_row_twice_and_of_zero_the_row_left_out() -> None:
    """In one batch without dropout, where the order of rows does not matter; to the rounding of sums."""
    X, y = digits()
    settings: dict[str, Any] = {"hidden": 8, "dropout": 0.0, "batch_size": 200, "epochs": 5, "lr": 1e-2}
    counts = np.arange(len(y)) % 3
    weighted = HeadClassifier(**settings).fit(X, y, sample_weight=counts).predict_proba(X)
    repeated = HeadClassifier(**settings).fit(X.repeat(counts, 0), y.repeat(counts)).predict_proba(X)
    plain = HeadClassifier(**settings).fit(X, y).predict_proba(X)
    assert np.abs(weighted - repeated).max() < 1e-4
    assert np.abs(weighted - plain).max() > 1e-3
    left = HeadClassifier(hidden=8).fit(X[counts > 0], y[counts > 0]).predict_proba(X)
    assert np.array_equal(HeadClassifier(hidden=8).fit(X, y, sample_weight=counts > 0).predict_proba(X), left)


def test_weights_of_classes_and_rows_multiply() -> None:
    """ "balanced" is the inverse frequency; a dict names labels as they are given; only ratios count."""
    X, y = digits()
    names = np.array(["zero", "one", "two"])[y]
    kept = (y > 0) | (np.arange(len(y)) % 3 == 0)
    X, names = X[kept], names[kept]
    _, places, counts = np.unique(names, return_inverse=True, return_counts=True)

    def fitted(class_weight: Any = None, sample_weight: Any = None) -> Any:
        model = HeadClassifier(hidden=8, epochs=3, class_weight=class_weight).fit(X, names, sample_weight)
        return model.predict_log_proba(X)

    balanced = fitted("balanced")
    assert np.abs(balanced - fitted(sample_weight=(1 / counts)[places])).max() < 1e-4
    assert np.abs(balanced - fitted({"zero": 1 / counts[2], "one": 1 / counts[0], "two": 1 / counts[1]})).max() < 1e-4
    assert np.abs(balanced - fitted("balanced", np.full(len(names), 1e-300))).max() < 1e-4
    assert np.abs(balanced - fitted()).max() > 1e-2


@pytest.mark.parametrize(
    ("class_weight", "sample_weight"),
    [
        ("even", None),
        ({0: -1.0}, None),
        ({0: float("nan")}, None),
        ({7: 1.0}, None),
        (None, np.full(90, -1.0)),
        (None, np.full(90, np.nan)),
        (None, np.zeros(90)),
        (None, np.ones(89)),
        (None, np.where(digits()[1] == 0, 1, 0)),
    ],
)
def test_weights_that_are_none_are_refused(class_weight: Any, sample_weight: Any) -> None:
    """Negative, not finite, of another length, of no class; zero for all rows, or for all but one class."""
    with pytest.raises(ValueError, match=r"weight|class"):
        HeadClassifier(class_weight=class_weight).fit(*digits(), sample_weight=sample_weight)


def test_the_decision_is_one_number_for_two_classes_and_one_a_class_for_more() -> None:
    """Above 0 is the second class; of more classes the largest; shapes as those of scikit-learn's own classifiers."""
    for classes in (2, 3):
        X, y = digits(classes)
        model = HeadClassifier(hidden=8, lr=1e-2).fit(X, y)
        other = LogisticRegression().fit(X, y)
        decision, p = model.decision_function(X), model.predict_proba(X)
        assert decision.shape == other.decision_function(X).shape
        chosen = (decision > 0).astype(int) if classes == 2 else decision.argmax(1)
        assert np.array_equal(model.classes_[chosen], model.predict(X))
        if classes == 2:
            assert 1 / (1 + np.exp(-decision)) == pytest.approx(p[:, 1], abs=1e-5)
        assert (model.n_features_in_, model.classes_.tolist()) == (64, list(range(classes)))


def test_training_that_diverges_is_said() -> None:
    """Rather than to predict NaN."""
    X, y = digits()
    with pytest.raises(ValueError, match=r"lower lr, now 1e\+30"):
        HeadClassifier(hidden=8, lr=1e30).fit(X * 1e20, y)


def test_it_learns_in_a_pipeline_under_cross_validation() -> None:
    """Real handwriting, each fold by other writers."""
    X, y = load_digits(return_X_y=True)
    scores = cross_val_score(make_pipeline(StandardScaler(), HeadClassifier(hidden=64, lr=1e-2)), X, y, cv=3)
    assert scores.min() > 0.92
    assert scores.mean() > 0.94


def test_probabilities_add_up_and_follow_the_classes() -> None:
    """Labels that are texts, in their sorted order; float16 rows as a cache gives them."""
    X, y = load_digits(n_class=3, return_X_y=True)
    names = np.array(["ten", "one", "two"])[y]
    model = HeadClassifier(hidden=16, lr=1e-2, epochs=5, random_state=3).fit(X.astype(np.float16), names)
    assert model.classes_.tolist() == ["one", "ten", "two"]
    probabilities = model.predict_proba(X)
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(X)).all()
    assert (model.predict(X) == names).mean() > 0.95
    again = clone(model).fit(X.astype(np.float16), names)
    assert np.array_equal(again.predict_proba(X), probabilities)


def test_a_weight_counts_at_every_batch_size() -> None:
    """Also where a batch is one row, whose share of its own batch is always the same."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 4)).astype(np.float32)
    labels = (generator.random(60) < 0.5).astype(int)
    heavy = np.where(labels == 1, 20.0, 1.0)
    for batch_size in (1, 8, 60):
        head = HeadClassifier(hidden=8, epochs=30, lr=1e-2, batch_size=batch_size, dropout=0.0)
        plain = head.fit(rows, labels).predict_proba(rows)[:, 1].mean()
        assert head.fit(rows, labels, sample_weight=heavy).predict_proba(rows)[:, 1].mean() > plain + 0.1
