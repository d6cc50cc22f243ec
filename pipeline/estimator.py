"""The head as a scikit-learn estimator, for pipelines, cross-validation and searches over plain arrays."""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from pipeline.config.heads import HeadSettings, TrainConfig
from pipeline.config.options import LARGEST_SEED, check_option
from pipeline.errors import ConfigError
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng

Array = npt.NDArray[np.float32]


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Linear(D, hidden), ReLU, Dropout, Linear(hidden, C), LogSoftmax on rows (N, D), trained as `train_head` does.

    Unlike there, numbers of epochs and rows per step are the same for any number of rows, and products are in float32.
    Rows are taken as they are: standardise them or reduce them in a `Pipeline`.

    Attributes:
        hidden: hidden units; 0 for logistic regression, whose dropout has nothing to leave out.
        dropout: dropout probability, 0 or more and under 1.
        lr: learning rate of AdamW at the start; it falls to 0 as a cosine.
        epochs: passes over the rows.
        batch_size: rows per step.
        weight_decay: of AdamW.
        class_weight: None, "balanced" for inverse class frequencies, or a dict of label: weight.
        random_state: of weights, dropout and order. An int repeats a fit; a RandomState or None is drawn from.
    """

    def __init__(
        self,
        hidden: int = 512,
        dropout: float = 0.5,
        lr: float = 1e-3,
        epochs: int = 20,
        batch_size: int = 64,
        weight_decay: float = 0.0,
        class_weight: Mapping[object, float] | str | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> Self:
        """Train on rows (N, D) and labels (N,) of any kind, weighted by `sample_weight` (N,) times `class_weight`.

        A row of weight 0 is left out. ValueError for a parameter out of bounds, for less than two classes, and where
        training diverges.
        """
        self._check_parameters()
        seed = self._seed()
        rows, targets = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(targets)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        weights = self._row_weights(rows, targets, sample_weight)
        if weights is not None:
            kept = weights > 0
            rows, labels, weights = rows[kept], labels[kept], weights[kept] / weights[kept].mean()
        if len(found := np.unique(labels)) < 2:
            raise ValueError(f"the rows to train on are of {len(found)} class, expected 2 classes or more")
        self.head_ = self._train(rows, labels, weights, seed)
        return self

    def _check_parameters(self) -> None:
        """ValueError for what `train_head` refuses too, under the parameter's name."""
        try:
            names = ("hidden", "dropout", "lr", "batch_size", "weight_decay")
            HeadSettings(**{name: getattr(self, name) for name in names})
            check_option(TrainConfig, "epochs", self.epochs, int)
        except ConfigError as error:
            option, rest = str(error).split(" ", 1)
            raise ValueError(f"{option.removeprefix('--').replace('-', '_')} {rest}") from None

    def _seed(self) -> int:
        """That of `train_head` where `random_state` is an int, else drawn."""
        generator = check_random_state(self.random_state)
        drawn = self.random_state if isinstance(self.random_state, Integral) else generator.randint(LARGEST_SEED)
        return int(drawn)

    def _row_weights(
        self, rows: Array, targets: npt.NDArray[np.generic], sample_weight: npt.ArrayLike | None
    ) -> npt.NDArray[np.float64] | None:
        """(N,), the largest 1, so that sums stay finite; None where all rows weigh the same."""
        if sample_weight is None and self.class_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        weights = weights * compute_sample_weight(self.class_weight, targets)
        if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
            raise ValueError("sample_weight or class_weight is negative, not finite or 0 for all rows")
        scaled: npt.NDArray[np.float64] = weights / weights.max()
        return scaled

    def _train(
        self, X: Array, places: npt.NDArray[np.intp], weights: npt.NDArray[np.float64] | None, seed: int
    ) -> Head:
        """A head trained on rows (N, D), labels (N,) as places in `classes_`, and weights (N,)."""
        rows, labels = torch.from_numpy(X), torch.from_numpy(places)
        weighed = None if weights is None else torch.from_numpy(weights)
        steps = self.epochs * math.ceil(len(rows) / self.batch_size)
        member = HeadHyperparameters(self.lr, self.weight_decay, self.dropout, seed)
        shape = HeadShape(rows.shape[1], self.hidden, len(self.classes_), steps)
        group = HeadGroup([HeadState.new(member, shape)], shape)
        for epoch in range(1, self.epochs + 1):
            for batch in torch.randperm(len(rows), generator=shuffle_rng(seed, epoch)).split(self.batch_size):
                group.step(rows[batch], labels[batch], None if weighed is None else weighed[batch])
        if not group.finite().all():
            raise ValueError(f"the weights became NaN or infinite: lower lr, now {self.lr}, or standardise the rows")
        return Head.from_tensors(group.weights(0), self.dropout)

    def predict_log_proba(self, X: npt.ArrayLike) -> Array:
        """Log-probabilities (N, C), classes in the order of `classes_`."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        with torch.inference_mode():
            found: Array = torch.cat([self.head_(part) for part in torch.from_numpy(rows).split(1024)]).numpy()
        return found

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Probabilities (N, C), classes in the order of `classes_`."""
        found: Array = np.exp(self.predict_log_proba(X))
        return found

    def decision_function(self, X: npt.ArrayLike) -> Array:
        """Log-odds of `classes_[1]`, (N,), where there are two classes, else log-probabilities (N, C)."""
        found = self.predict_log_proba(X)
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.generic]:
        """The most probable class of each row, (N,)."""
        places = self.predict_log_proba(X).argmax(1)
        found: npt.NDArray[np.generic] = self.classes_[places]
        return found
