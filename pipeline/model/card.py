"""The card of a model file, its JSON as a typed record: what the model reads, how it was made, how good it is."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta

from cache.index import SkippedImage
from cache.manifest import Manifest
from cache.records import Count, Digest
from pipeline.inputs.preprocessing import Preprocessing

BUNDLE_FORMAT: Literal[1] = 1
PRECISIONS = ("float32", "bfloat16", "float16")

Fraction = Annotated[float, Meta(ge=0, le=1.000001)]  # a sum that was rounded may be over 1
Pair = tuple[Fraction, Fraction]
Temperature = Annotated[float, Meta(gt=0, le=1e6)]


@dataclass(frozen=True)
class Calibration:
    """What the card says of temperatures.

    Attributes:
        temperature: folded into the last layer.
        ece: calibration error by split, (before, after); on validation, each fold after a temperature of the others.
            `out_of_fold` is of a choice over folds, `valid_flip` is of the validation images by --tta flip.
        floor: what each would be on average if the probabilities were right.
        flip_temperature: for --tta flip; None where it was not asked for.
    """

    temperature: Temperature = 1.0
    ece: dict[str, Pair] = field(default_factory=dict)
    floor: dict[str, Pair] = field(default_factory=dict)
    flip_temperature: Temperature | None = None


@dataclass(frozen=True)
class Rejection:
    """The threshold below which the model does not answer, and what it promises.

    Attributes:
        max_error: fraction of its answers that may be wrong.
        confidence: that at most these are, over images to fit the threshold on.
        threshold: of the probability of the most probable class.
        images: that the threshold was fitted on: one of each group, by heads that were not trained on them.
        answered: images of these that the model would answer.
        wrong: images of these that it would be wrong about.
        digest: of these images, SHA-256.
    """

    max_error: Fraction
    confidence: Fraction
    threshold: Fraction
    images: Count
    answered: Count
    wrong: Count
    digest: Digest


@dataclass(frozen=True)
class Unknown:
    """What the detector of unknown images is worth.

    Attributes:
        score: what it adds up.
        false_alarms: fraction of known images that is said to be unknown.
        images: known images that its p-values are fractions of.
        auroc_left_out: mean probability that an image of a class that was kept from a head is more unlike than one of
            the others, over parts of the classes; None of fewer than three classes.
    """

    score: str
    false_alarms: Fraction
    images: Count
    auroc_left_out: Fraction | None = None


@dataclass(frozen=True)
class PredictionSets:
    """Sets of classes that hold the true one.

    Attributes:
        coverage: fraction of images whose set does.
        images: that the thresholds were fitted on.
        least: probability from which each class is in the set, in the order of the classes.
        mean_size: classes in a set, over the images that the thresholds were not fitted on.
        covered: fraction of these whose set holds the true class; None of a model that was exported without it.
    """

    coverage: Fraction
    images: Count
    least: list[Fraction]
    mean_size: float
    covered: Fraction | None = None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as run.json has it: `Scores`, and `when` in UTC. Earlier ones have none of the optional fields."""

    split: str
    images: Count
    top1: Fraction
    top5: Fraction | None
    mean_per_class: Fraction
    when: str
    intervals: dict[str, Pair] = field(default_factory=dict)
    classes: Count | None = None
    ece: Fraction | None = None
    ece_floor: Fraction | None = None
    out_of_fold: bool = False


@dataclass(frozen=True)
class TrainedScores:
    """Validation accuracy after the last epoch, and the evaluations that the run records."""

    valid_accuracy: Fraction | None = None
    scored: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluations(self) -> list[Evaluation]:
        """Those of `scored`; ValueError for one that is none."""
        return [msgspec.convert(one, Evaluation) for one in self.scored]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The fields of the card. What has a default is not needed to predict: a model without it is a model.

    Attributes:
        backbone: name of the network.
        classes: in the order of the head's outputs.
        names: display names by class, as far as there are any.
        preprocessing: of image files, for other programs; `of` has checked that it is that of the manifest.
        manifest: of the cache.
        set_digest: of the image set.
        split_seed: of the image set.
        group_by: of the image set; "" for none.
        skipped: files of the set that could not be decoded.
        weights: digest and licence of the backbone's weights, and their name or that of their file.
        requires: library that builds the backbone, and its version at export; {} for torchvision's.
        arguments: that the library builds the backbone with.
        golden: numbers of the backbone's rows of fixed views; () of models that were exported without them.
        without_backbone: whether the file holds the head alone.
        basis: name of the basis that was folded into the first layer.
        set: name of the image set.
        images: their number by split.
        training: settings of the head.
        refit: whether the head was trained on training and validation images; the validation accuracy is then of a head
            that was not.
        folds: number of folds that it was chosen over; the validation accuracy is then that of out-of-fold predictions.
        class_prior: class frequencies that probabilities were corrected for.
        rejection: when the model does not answer; None where it always does, but for `unknown`.
        unknown: of images of none of the classes; None of a model that does not look for these.
        sets: of classes; None of a model without these.
        versions: of libraries.
        digest: of the tensors and the other fields; "" of models that were exported without one.
    """

    backbone: str
    classes: tuple[str, ...]
    names: dict[str, str]
    preprocessing: dict[str, Any]
    manifest: Manifest
    set_digest: Digest
    split_seed: int
    skipped: list[SkippedImage]
    weights: dict[str, str] = field(default_factory=dict)
    requires: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    golden: tuple[float, ...] = ()
    without_backbone: bool = False
    basis: str = ""
    set: str = ""
    group_by: str = ""
    images: dict[str, Count] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    refit: bool = False
    folds: Count = 0
    scores: TrainedScores = TrainedScores()
    calibration: Calibration = Calibration()
    class_prior: str = "none"
    rejection: Rejection | None = None
    unknown: Unknown | None = None
    sets: PredictionSets | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    format: Literal[1] = BUNDLE_FORMAT

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Of parsed JSON; ValueError for what no export writes. Fields that a later version added are passed over."""
        card = msgspec.convert(stored, cls)
        base = Manifest.parse(stored["manifest"]).base
        if wrong := Preprocessing.of(base).fault(card.preprocessing):
            raise ValueError(f"preprocessing by another {wrong}, which this program does not know")
        if base.backbone != card.backbone or base.precision not in PRECISIONS:
            raise ValueError(f"{card.backbone[:20]!r} in {base.precision[:20]!r}, unlike its manifest or this program")
        if card.calibration.ece and "temperature" not in stored["calibration"]:
            raise ValueError("calibration errors without the temperature")
        if card.sets and len(card.sets.least) != len(card.classes):
            raise ValueError(f"thresholds of {len(card.sets.least)} classes for {len(card.classes)}")
        if len(set(card.classes)) != len(card.classes):
            raise ValueError("a class twice")
        _ = card.scores.evaluations
        return card
