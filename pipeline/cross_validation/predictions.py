"""Out-of-fold predictions as a file of plain arrays, for whatever builds on them, and two of them compared."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from scipy.stats import t as student

from cache.files import read_regular, write_atomically
from cache.records import fault
from pipeline.config.heads import HeadSettings
from pipeline.console import counted
from pipeline.errors import ConfigError, RunError
from pipeline.statistics.intervals import Interval, accuracies, of_each_class

SEARCHED = ("choose_by", "space", "passes", "group_near_duplicates")  # that make two searches the same procedure
_ARRAYS = ("paths", "digests", "labels", "classes", "log_probs", "folds", "groups")
_KINDS = "UUiUfii"  # of their numbers


@dataclass(frozen=True)
class ClassRecall:
    """How many images of a class are predicted as it.

    Attributes:
        label: of the class.
        images: of the class.
        recall: fraction of them, a mean over repeats.
        low: lower bound of its 95 % interval over images, or groups of them.
        high: upper bound of that interval.
    """

    label: str
    images: int
    recall: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.label} {self.recall:.1%} of {self.images} ({self.low:.0%} to {self.high:.0%})"


@dataclass(frozen=True)
class OutOfFold:
    """What heads predict of N images that they were not trained on, in R repeats.

    Attributes:
        paths: of the images, (N,).
        digests: SHA-256 of the images, (N,).
        labels: places in `classes`, (N,).
        classes: names, (C,).
        log_probs: (R, N, C) float32.
        folds: the fold of each image, (R, N).
        groups: images with the same number are no independent evidence, (N,).
        backbone: of the cache.
        settings: of the heads; None where each fold chose its own.
        search: by which it did, `SEARCHED` by name; None of given settings.
    """

    paths: npt.NDArray[np.str_]
    digests: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]
    classes: npt.NDArray[np.str_]
    log_probs: npt.NDArray[np.float32]
    folds: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    backbone: str
    settings: HeadSettings | None
    search: Mapping[str, Any] | None = None

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether each head is right, (R, N)."""
        found: npt.NDArray[np.bool_] = self.log_probs.argmax(2) == self.labels
        return found

    def accuracies(self) -> dict[str, Interval]:
        """Of all repeats, with intervals over groups: an image and its repeats are of one group."""
        repeats, images = self.folds.shape
        flat = self.log_probs.reshape(repeats * images, -1).astype(np.float64)
        return accuracies(flat, np.tile(self.labels, repeats), np.tile(self.groups, repeats))

    def of_each_class(self) -> list[ClassRecall]:
        """Of the classes that have images, those of the least recall first."""
        repeats, images = len(self.folds), np.bincount(self.labels)
        found = of_each_class(self.hits.ravel(), np.tile(self.labels, repeats), np.tile(self.groups, repeats))
        each = [
            ClassRecall(str(self.classes[place]), int(images[place]), one.value, one.low, one.high)
            for place, one in found.items()
        ]
        return sorted(each, key=lambda one: (one.recall, -one.images))

    def confused(self) -> list[tuple[str, str, float]]:
        """Label, prediction and images, a mean over repeats, of classes taken for another; the most images first."""
        repeats, predicted = len(self.folds), self.log_probs.argmax(2).ravel()
        pairs = np.stack([np.tile(self.labels, repeats), predicted])[:, ~self.hits.ravel()]
        (labels, taken), counts = np.unique(pairs, axis=1, return_counts=True)
        names, order = self.classes.tolist(), np.argsort(-counts, kind="stable")
        return [(names[labels[n]], names[taken[n]], float(counts[n] / repeats)) for n in order]

    def of_each_fold(self) -> list[tuple[int, int, int, float]]:
        """Repeat and fold, from 0, images and accuracy."""
        hits, each = self.hits, [(repeat, fold) for repeat, row in enumerate(self.folds) for fold in np.unique(row)]
        inside = [self.folds[repeat] == fold for repeat, fold in each]
        return [
            (repeat, int(fold), int(some.sum()), float(hits[repeat][some].mean()))
            for (repeat, fold), some in zip(each, inside, strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all; of one repeat, `log_probs` is (N, C) and `folds` (N,)."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if len(self.folds) == 1:
            arrays |= {name: arrays[name][0] for name in ("log_probs", "folds")}
        settings = asdict(self.settings) if self.settings else None
        made_by = {"backbone": self.backbone, "settings": settings, "search": self.search}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, made_by=np.array(json.dumps(made_by)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, advice: str = "name another file") -> "OutOfFold":
        """Read what `save` wrote; RunError, with `advice`, for another file."""
        try:
            data = io.BytesIO(read_regular(path))
            if not is_zipfile(data):
                raise ValueError("not an .npz file")
            with np.load(data, allow_pickle=False) as stored:
                arrays = dict(stored.items())
            made_by = json.loads(str(arrays.pop("made_by")))
            if arrays["folds"].ndim == 1:
                arrays |= {name: arrays[name][None] for name in ("log_probs", "folds")}
            count, classes = len(arrays["paths"]), len(arrays["classes"])
            found = [(name, array.dtype.kind, array.shape) for name, array in arrays.items()]
            rows = len(arrays["folds"])
            shapes = [(count,), (count,), (count,), (classes,), (rows, count, classes), (rows, count), (count,)]
            if sorted(found) != sorted(zip(_ARRAYS, _KINDS, shapes, strict=True)) or not rows * count * classes:
                raise ValueError(f"arrays {found}")
            if not 0 <= arrays["labels"].min() <= arrays["labels"].max() < classes:
                raise ValueError("labels of other classes")
            settings = made_by["settings"]
            settings = None if settings is None else HeadSettings(**settings)
            search = None if settings else dict(made_by.get("search") or {})
            return cls(**arrays, backbone=str(made_by["backbone"]), settings=settings, search=search)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, EOFError, ConfigError) as error:
            raise RunError(
                f"{path} holds no predictions of headgraft cv ({fault(error)}), expected what that wrote: {advice}"
            ) from error


@dataclass(frozen=True)
class PairedComparison:
    """How much more accurate these heads are than others, of the same images in the same folds.

    Attributes:
        value: difference of the accuracies, a fraction.
        low: lower bound of its 95 % interval over training and test images.
        high: upper bound of that interval.
        p_value: of no difference, by the same test.
        mean_per_class: `[value, low, high]` of the difference of the mean accuracies per class.
        only_these: images of the first repeat that these heads alone are right about.
        only_others: images that the others alone are right about.
        mcnemar_p: of no difference between these two numbers, on these images.
    """

    value: float
    low: float
    high: float
    p_value: float
    mean_per_class: tuple[float, float, float]
    only_these: int
    only_others: int
    mcnemar_p: float

    def in_words(self) -> str:
        """One line."""
        low, value, high = (f"{100 * bound:+.2f}" for bound in (self.low, self.value, self.high))
        of_classes, least, most = (f"{100 * bound:+.2f}" for bound in self.mean_per_class)
        clear = "" if self.low > 0 or self.high < 0 else ", no clear difference"
        return (
            f"less --against: {value} points ({low} to {high}, corrected resampled t, p = {self.p_value:.2g}{clear}); "
            f"mean per class {of_classes} ({least} to {most}); right here alone: {counted(self.only_these, 'image')}, "
            f"there alone: {self.only_others} (McNemar, p = {self.mcnemar_p:.2g})"
        )


def compared(these: OutOfFold, others: OutOfFold) -> PairedComparison:
    """Two procedures on the same folds, which `refuse_other_images` has seen to.

    The interval is the corrected resampled t-test's (Nadeau and Bengio, Inference for the generalization error, Machine
    Learning 52, 2003): folds share training images, so that their differences vary less than those of other data sets
    would. McNemar's test, exact, is of the images at hand alone.
    """
    apart = these.hits.astype(float) - others.hits
    value, reach, p_value = _resampled_t(apart, these.folds)
    # A mean over images with these weights is one over classes.
    images = np.bincount(these.labels)
    of_classes, around, _ = _resampled_t(
        apart * (len(these.labels) / np.count_nonzero(images) / images)[these.labels], these.folds
    )
    first, second = these.hits[0], others.hits[0]
    alone, other = int((first & ~second).sum()), int((second & ~first).sum())
    mcnemar = float(binomtest(alone, alone + other).pvalue) if alone + other else 1.0
    by_class = (of_classes, of_classes - around, of_classes + around)
    return PairedComparison(value, value - reach, value + reach, p_value, by_class, alone, other, mcnemar)


def _resampled_t(apart: npt.NDArray[np.float64], folds: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean difference (R, N), how far its 95 % interval reaches, and the p-value of none, over folds (R, N)."""
    value, numbers = float(apart.mean()), range(int(folds.max()) + 1)
    differences = [row[these == one].mean() for row, these in zip(apart, folds, strict=True) for one in numbers]
    tested = 1 / (len(numbers) - 1)  # images tested for each one trained on
    error = math.sqrt((1 / len(differences) + tested) * np.var(differences, ddof=1))
    reach = float(student.ppf(0.975, len(differences) - 1)) * error
    p_value = 2 * float(student.sf(abs(value) / error, len(differences) - 1)) if error else float(value == 0)
    return value, reach, p_value


def refuse_other_images(
    others: OutOfFold,
    digests: npt.NDArray[np.str_],
    labels: npt.NDArray[np.str_],
    folds: Sequence[npt.NDArray[np.int64]],
) -> None:
    """RunError where these predictions are of other images or labels (N,), the names of classes, or folds (R, N)."""
    same = {
        "images": np.array_equal(digests, others.digests),
        "labels": np.array_equal(labels, others.classes[others.labels]),
        "folds": np.array_equal(np.stack(folds), others.folds),
    }
    if wrong := [name for name, equal in same.items() if not equal]:
        raise RunError(
            f"the predictions of --against are of other {wrong[0]}, expected the same: run both with the same set, "
            "--folds, --repeats and groups"
        )
