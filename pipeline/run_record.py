"""run.json: what a head was trained from, with which settings, and how that went."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from cache.records import Count, Digest, Seconds, convert
from cache.result import Result
from pipeline.config.heads import HeadSettings, scored_by
from pipeline.console import counted
from pipeline.heads.fit import Epoch

RUN_FORMAT: Literal[1] = 1
_OF_EARLIER_VERSIONS = ("kept_epoch",)  # fields that they wrote; in `config`: "dense"


@dataclass(frozen=True, kw_only=True)
class RunConfig(HeadSettings):
    """Settings of the head, and the rows it was trained on.

    Attributes:
        set: as it was asked for; None for the only one.
        passes: augmented passes.
        epochs: that it was trained for.
        seed: of weights, shuffling and dropout.
        memory: GB for features; None for half of what was free.
    """

    set: str | None = None
    passes: Count
    epochs: Annotated[int, Meta(ge=1, le=1 << 31)]
    seed: int
    memory: float | None = None


@dataclass(frozen=True)
class ReducedBy:
    """The basis that the rows of the cache were reduced by."""

    basis: str
    digest: Digest


@dataclass(kw_only=True)
class TrainResult(Result):
    """What training a head came to; the fields of the command's JSON.

    Attributes:
        run: path of the run, as it was asked for.
        set: name of the image set.
        basis: name of the basis.
        precision: that features were computed in.
        leaks: images `{across_splits, two_labels}`; of a reduced cache also `in_reduction`: validation and test images
            that the reduction was fitted on, without their labels.
        epochs: one after the other; none of a merged head.
        valid_accuracy: after the last epoch, a fraction.
        valid_loss: after the last epoch.
        classes_without_validation: number of classes that have no validation image, for which no head is chosen.
        refit: whether the head was then retrained on training and validation images; the figures are of the head
            before.
        seconds: of the command.
    """

    run: str
    set: str
    basis: str
    precision: str
    leaks: dict[str, Count]
    epochs: list[Epoch]
    valid_accuracy: float
    valid_loss: float
    classes_without_validation: Count = 0
    refit: bool = False
    seconds: Seconds

    def in_words(self) -> str:
        """One line."""
        accuracy = f"validation accuracy {self.valid_accuracy:.2%} after {counted(len(self.epochs), 'epoch')}"
        retrained = (
            "; then retrained with the validation images, so that test images alone can score it" if self.refit else ""
        )
        return f"{self.run}: {accuracy}{retrained}, {self.seconds:.1f} s"


@dataclass(kw_only=True)
class RunRecord(TrainResult):
    """The fields of run.json.

    Attributes:
        cache: absolute path of the cache.
        base_digest: of the manifest's base.
        augmentation_digest: of the recipe of the augmented passes; "" without any.
        set_digest: of the image set as it was.
        classes: in the order of the head's outputs.
        config: settings of the head.
        versions: of libraries.
        scored: evaluations.
        products: dtype that the head multiplied in; "" where that is not known.
        reduction: of a reduced cache.
        folds: number of folds that a sweep chose over; its figures are then of out-of-fold predictions of training and
            validation images. 0 for validation.
        merged: number of heads that were merged into this one.
        sweep: what a sweep says of its choice.
        files: SHA-256 of the files beside it.
    """

    cache: str
    base_digest: Digest
    augmentation_digest: str
    set_digest: Digest
    classes: list[str]
    config: RunConfig
    versions: dict[str, str]
    scored: list[dict[str, Any]]
    products: str = ""
    reduction: ReducedBy | None = None
    folds: Count = 0
    merged: Annotated[int, Meta(ge=1, le=100)] = 1
    sweep: dict[str, Any] | None = None
    files: dict[str, Digest] = field(default_factory=dict)
    format: Literal[1] = RUN_FORMAT

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Of parsed JSON; ValueError, or ConfigError of a setting, for what no training writes."""
        kept = {name: value for name, value in stored.items() if name not in _OF_EARLIER_VERSIONS}
        config = kept.get("config")
        if isinstance(config, dict):
            kept["config"] = {name: value for name, value in config.items() if name != "dense"}
        found = convert(kept, cls)
        if not all(isinstance(one.get("split"), str) for one in found.scored):
            raise ValueError("an evaluation without its split")
        return found

    @property
    def held_out_splits(self) -> tuple[str, ...]:
        """Splits whose images were not seen by the heads that its figures are of."""
        return ("train", "valid") if self.folds else ("valid",)

    @property
    def trained_splits(self) -> tuple[str, ...]:
        """Splits that the head was trained on."""
        return ("train", "valid") if self.refit else ("train",)

    @property
    def scored_by(self) -> str:
        """What kind of accuracy its figures are."""
        return scored_by(self.folds)

    @property
    def test_evaluations(self) -> int:
        """How often the test images were evaluated."""
        return sum(one["split"] == "test" for one in self.scored)

    def as_json(self) -> dict[str, Any]:
        """Without what there is not."""
        return {name: value for name, value in asdict(self).items() if value is not None}
