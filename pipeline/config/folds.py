"""What `headgraft cv` and `headgraft curve` are asked: as in `config`, a field is an option."""

from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path

from pipeline.config.heads import HeadSettings, SweepConfig, TrainConfig, WithHead
from pipeline.config.options import DEVICES, Checked, check_capture, flag, option, option_of, require, required

MOST_FOLDS = 1000
_CHOSEN = [field.name for field in fields(HeadSettings)]


@dataclass(frozen=True)
class FoldsConfig(Checked, WithHead):
    """Heads of `HeadSettings` on parts of the training and validation images of a set."""

    cache: Path = field(metadata=required("Folder of the feature cache."))
    set: str | None = option_of(TrainConfig, "set")
    folds: int = option(5, "Number of folds.", least=2, most=MOST_FOLDS)
    group_by: str | None = option(
        None, "Regular expression on paths: images of the same first capture are one group.", metavar="REGEX"
    )
    group_near_duplicates: bool = option(False, "Near-duplicates are one group, too.")
    _: KW_ONLY
    passes: int | None = option_of(TrainConfig, "passes")
    memory: float | None = option_of(TrainConfig, "memory")
    hidden: int = option_of(TrainConfig, "hidden")
    dropout: float = option_of(TrainConfig, "dropout")
    lr: float = option_of(TrainConfig, "lr")
    epochs: int | None = option_of(TrainConfig, "epochs")
    batch_size: int = option_of(TrainConfig, "batch_size")
    weight_decay: float = option_of(TrainConfig, "weight_decay")
    class_weights: str = option_of(TrainConfig, "class_weights")
    basis: str | None = option_of(TrainConfig, "basis")
    seed: int = option_of(TrainConfig, "seed")
    device: str = option("auto", "Device of the heads.", choices=DEVICES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_by is not None:
            check_capture("--group-by", self.group_by)
        _ = self.settings  # which checks them


@dataclass(frozen=True)
class CvConfig(FoldsConfig):
    """Cross-validation of one head."""

    repeats: int = option(1, "Number of times, each with other folds and another seed.", least=1, most=100)
    heads: int = option(
        0,
        "Choose settings in each fold by a sweep of so many heads over the others; 0 = as given.",
        least=0,
        most=10_000,
    )
    space: Path | None = option_of(SweepConfig, "space")
    choose_by: str = option_of(SweepConfig, "choose_by")
    leave_one_group_out: bool = option(False, "One fold for each group, in place of --folds.")
    against: Path | None = option(None, "Predictions of another cv of the same images: compare with them.")
    predictions: Path | None = option(None, "Path of the predictions.  [default: cv/SET.npz in the cache]")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _CHOSEN if getattr(self, name) != getattr(CvConfig, name)]
        require(
            not (self.heads and given), f"--heads chooses {', '.join(map(flag, given))}: leave that out, or --heads"
        )
        of_search = [name for name in ("space", "choose_by") if getattr(self, name) != getattr(CvConfig, name)]
        require(bool(self.heads) or not of_search, f"{', '.join(map(flag, of_search))} is for --heads: add that")
        alone = self.heads and self.leave_one_group_out
        require(not alone, "--heads is for --folds: leave out --leave-one-group-out, or --heads")
        enough = not self.heads or self.folds > 2
        require(enough, f"--folds is {self.folds}, and --heads sweeps over the others: at least 3")
        apart = not self.leave_one_group_out or (self.folds == CvConfig.folds and self.repeats == 1)
        require(apart, "--leave-one-group-out has as many folds as groups, once: leave out --folds and --repeats")


@dataclass(frozen=True)
class CurveConfig(FoldsConfig):
    """The accuracy of one head by the number of images that it is trained on."""

    svg: Path | None = option(None, "Path of an SVG file to write: error by number of images.")
    overwrite: bool = option(False, "Overwrite an existing file at --svg.")
