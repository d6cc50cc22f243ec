"""The head as a scikit-learn estimator."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from pipeline.estimator import HeadClassifier


def test_it_keeps_every_promise_of_scikit_learn() -> None:
    """Cloning, labels of any kind, refusals, pickling, the same result twice: scikit-learn's own checks."""
    check_estimator(HeadClassifier(hidden=32, epochs=40, lr=1e-2, batch_size=16, dropout=0.1), on_skip=None)


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
    model = HeadClassifier(hidden=16, lr=1e-2, epochs=5, seed=3).fit(X.astype(np.float16), names)
    assert model.classes_.tolist() == ["one", "ten", "two"]
    probabilities = model.predict_proba(X)
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(X)).all()
    assert (model.predict(X) == names).mean() > 0.95
    again = clone(model).fit(X.astype(np.float16), names)
    assert np.array_equal(again.predict_proba(X), probabilities)
