"""The head of the labels so far, trained in the background: what it predicts, its accuracy, what more labels bring.

Its basis stays the same, so that a head takes a second; a run is trained by `train-head` when the work is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.bases.data import HeadData
from pipeline.config.heads import HeadSettings
from pipeline.heads.fit import default_epochs
from pipeline.heads.head import Head
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.statistics.intervals import Interval, accuracies
from pipeline.statistics.power_law import gain_of

logger = logging.getLogger("headgraft.labelling")

AHEAD = 50  # labels whose gain is forecast
FEWEST_TO_FORECAST = 40  # training labels, and half as many validation images
_SHARES = (0.25, 0.5)  # of the labels, that heads for the forecast are trained on
_DRAWS = 2  # of each share


@dataclass(frozen=True)
class Labels:
    """What a head is trained on: the labels of N images as they were at one moment.

    Attributes:
        labels: places in the classes (N,); below 0 without a label.
        train: places of the training images.
        valid: places of the validation images.
        num_classes: C.
        before: labels of the validation images as they were extracted, by their places.
        verdicts: number of images with a verdict.
    """

    labels: Tensor
    train: Tensor
    valid: Tensor
    num_classes: int
    before: dict[int, int]
    verdicts: int

    @property
    def trainable(self) -> bool:
        """Whether there are two classes to tell apart."""
        return len(self.labels[self.train].unique()) > 1


@dataclass(frozen=True)
class Fit:
    """A head and what it says.

    Attributes:
        made_of: the labels that it was trained on.
        probabilities: of every image (N, C).
        margins: differences of the two largest of each (N,).
        accuracy: of the validation images with its 95 % interval; None without any.
        accuracy_before: that of the validation images as they were extracted, with those excluded since and by their
            labels of then; None where none was changed.
        gain: by how much `AHEAD` more labels are expected to raise it, a fraction; None where that cannot be said.
        seconds: of training and predicting.
    """

    made_of: Labels
    probabilities: Tensor
    margins: Tensor
    accuracy: Interval | None
    accuracy_before: Interval | None
    gain: float | None
    seconds: float


class Retrainer:
    """Trains a head whenever labels have changed, in a thread; `fit` is the last one, None before the first."""

    def __init__(self, rows: Tensor, groups: npt.NDArray[np.int64], labels: Callable[[], Labels]) -> None:
        self._rows, self._groups, self._labels = rows, groups, labels
        self._settings = HeadSettings()
        self._changed, self._stopped, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self.fit: Fit | None = None
        self.running = False
        self.error = ""
        self.seed = 0
        self._thread = threading.Thread(target=self._work, name="retrain", daemon=True)

    def start(self) -> None:
        """Train on the labels there are, and from now on after each change."""
        self.changed()
        self._thread.start()

    def changed(self) -> None:
        """Labels have changed."""
        with self._lock:
            self.running = True
            self._changed.set()

    def stop(self) -> None:
        """End, after the head at hand."""
        self._stopped.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._stopped.is_set():  # asked after the clearing: stopping sets both
                return
            try:
                if (labels := self._labels()).trainable:
                    self.fit = self.trained(labels)
                    self.error = ""
                    if not self._changed.is_set():  # nobody waits for another head
                        self.fit = replace(self.fit, gain=self.forecast(labels))
            except Exception as error:  # whatever it is, the next labels are trained on
                logger.exception("the head was not retrained")
                self.error = f"the head was not retrained: {error or type(error).__name__}"
            with self._lock:
                self.running = self._changed.is_set()

    def trained(self, labels: Labels) -> Fit:
        """A head of these labels; of the forecast, what the last one said."""
        start = time.perf_counter()
        (head,) = self._heads([labels.train], labels)
        with torch.inference_mode():
            log_probs = torch.cat([head(block) for block in self._rows.split(8192)])
        probabilities = log_probs.exp()
        likeliest = probabilities.topk(2, dim=1).values
        known = self._accuracy(log_probs, labels.valid, labels.labels[labels.valid])
        places, before = torch.tensor(list(labels.before)), torch.tensor(list(labels.before.values()))
        changed = len(places) and not torch.equal(labels.labels[places], before)
        return Fit(
            made_of=labels,
            probabilities=probabilities,
            margins=likeliest[:, 0] - likeliest[:, 1],
            accuracy=known,
            accuracy_before=self._accuracy(log_probs, places, before) if changed else None,
            gain=self.fit.gain if self.fit else None,
            seconds=time.perf_counter() - start,
        )

    def _accuracy(self, log_probs: Tensor, places: Tensor, labels: Tensor) -> Interval | None:
        """Of the images at these places (V,), by these labels (V,)."""
        if not len(places):
            return None
        return accuracies(log_probs[places].double().numpy(), labels.numpy(), self._groups[places.numpy()])["top1"]

    def _heads(self, parts: list[Tensor], labels: Labels) -> list[Head]:
        """A head of each of some parts of the training images."""
        none = torch.empty(0, dtype=torch.int64)
        datas = [
            HeadData(self._rows, part[:, None], labels.labels[part], none, none, labels.num_classes) for part in parts
        ]
        settings = self._settings
        steps = [steps_of(d, settings, default_epochs(len(d.train_labels), settings.batch_size)) for d in datas]
        return fit_side_by_side(datas, settings, steps, [self.seed] * len(datas))

    def forecast(self, labels: Labels) -> float | None:
        """What `AHEAD` more labels than those of `fit` would bring; None where there are too few to say.

        By heads of random parts of the labels, and a power law through their errors.
        """
        count = len(labels.train)
        if count < FEWEST_TO_FORECAST or 2 * len(labels.valid) < FEWEST_TO_FORECAST:
            return None
        draw = torch.Generator().manual_seed(0)
        orders = [torch.randperm(count, generator=draw) for _ in range(_DRAWS)]
        sizes = [round(share * count) for share in _SHARES]
        parts = [labels.train[order[:size]] for size in sizes for order in orders]
        if any(len(labels.labels[part].unique()) < 2 for part in parts):
            return None
        rows, truth = self._rows[labels.valid], labels.labels[labels.valid]
        with torch.inference_mode():
            wrong = torch.stack([head(rows).argmax(1) != truth for head in self._heads(parts, labels)]).double()
        assert self.fit is not None
        last = (self.fit.probabilities[labels.valid].argmax(1) != truth).double()
        errors = [*wrong.view(len(sizes), _DRAWS, -1).mean((1, 2)).tolist(), float(last.mean())]
        return gain_of([*sizes, count], errors, AHEAD)
