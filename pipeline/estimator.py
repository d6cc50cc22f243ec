"""The head as a scikit-learn estimator, for pipelines, cross-validation and searches over plain arrays."""

import math
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.heads.group import HeadGroup, Member, Shape
from pipeline.heads.head import head_from_tensors
from pipeline.heads.seeds import order_of

Array = npt.NDArray[np.float32]


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Linear(D, hidden), ReLU, Dropout, Linear(hidden, C), LogSoftmax on rows (N, D), trained as `train_head` does.

    All epochs are trained: there is no validation set to choose one by. Rows are taken as they are: standardise them
    or reduce them in a `Pipeline`. `seed` decides weights, dropout and order.
    """

    def __init__(
        self,
        hidden: int = 512,
        dropout: float = 0.5,
        lr: float = 1e-3,
        epochs: int = 20,
        batch_size: int = 64,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.seed = seed

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train on rows (N, D) and labels (N,) of any kind; ValueError for less than two classes."""
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, places = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"these labels are of 1 class, {self.classes_[0]!r}: expected 2 or more")
        rows, labels = torch.from_numpy(np.asarray(X)), torch.from_numpy(places)
        steps = self.epochs * math.ceil(len(rows) / self.batch_size)
        member = Member(self.lr, self.weight_decay, self.dropout, self.seed)
        group = HeadGroup.new([member], Shape(rows.shape[1], self.hidden, len(self.classes_), steps))
        for epoch in range(1, self.epochs + 1):
            batches = torch.randperm(len(rows), generator=order_of(self.seed, epoch)).split(self.batch_size)
            group.epoch((rows[batch], labels[batch]) for batch in batches)
        self.head_ = head_from_tensors(group.weights(0), self.dropout)
        return self

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

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[np.generic]:
        """The most probable class of each row, (N,)."""
        places = self.predict_log_proba(X).argmax(1)
        found: npt.NDArray[np.generic] = self.classes_[places]
        return found
