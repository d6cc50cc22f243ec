"""What a sweep found: the records of sweep.json, written and read by the same types."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cache.files import read_regular
from cache.records import Count, Seconds, convert
from cache.result import Result
from pipeline.config.heads import METRICS, HeadSettings
from pipeline.run_folder import RESULTS_FILE
from pipeline.search.baselines import Baselines
from pipeline.search.selection import Difference, Finite

Positive = Annotated[int, Meta(ge=1, le=1 << 31)]


@dataclass(frozen=True)
class HeadResult:
    """A head of the search.

    Attributes:
        config: settings of the head.
        epochs: that it was trained for.
        finished: whether these are all epochs.
        valid_accuracy: by the metric of the sweep.
        valid_loss: None where it is NaN or infinite.
    """

    config: HeadSettings
    epochs: Positive
    finished: bool
    valid_accuracy: Finite
    valid_loss: Finite | None


@dataclass(frozen=True)
class Retrained:
    """Settings that were retrained with several seeds. Accuracies are validation accuracies by the sweep's metric.

    Attributes:
        config: settings of the heads.
        mean: of the accuracies over seeds.
        std: standard deviation over seeds, 0 with one seed.
        seeds: how many.
        valid_accuracy: in the search; None where a time limit left these settings untried.
        corrected: accuracy on images that did not choose these settings, by bootstrap; None for the default head,
            which nothing chose, and where too few images are left.
    """

    config: HeadSettings
    mean: Finite
    std: Finite
    seeds: Positive
    valid_accuracy: Finite | None = None
    corrected: Finite | None = None


@dataclass(frozen=True)
class Merged:
    """The heads of all seeds as one head.

    Attributes:
        hidden: hidden units.
        valid_accuracy: validation accuracy.
    """

    hidden: Count
    valid_accuracy: Finite


@dataclass(frozen=True, kw_only=True)
class Best(Retrained):
    """The settings that are kept, those of the search or the default ones, and how far these are apart.

    Attributes:
        won: which of them is kept.
        difference: of `searched` less `default` on the same images.
        merged: all seeds of what is kept as one head.
    """

    won: Literal["default", "search"]
    difference: Difference
    merged: Merged


@dataclass(frozen=True)
class SweepResult(Result):
    """What `sweep` did, also in sweep.json; accuracies are those of `choose_by`.

    Attributes:
        run: path of the run, as it was asked for.
        set: name of the image set.
        passes: augmented passes trained on.
        choose_by: validation metric that decided.
        leaks: as of train-head.
        heads: in the order of their numbers.
        best: the one of `searched` and `default` that is kept.
        searched: the best head of the search.
        default: the default head of `train-head`.
        baselines: in the basis of `best`; top-1 accuracies.
        classes_without_validation: as of train-head.
        seconds: to the end of the search, those of `basis_seconds` among them.
        basis_seconds: spent on bases.
        retrain_seconds: spent on retraining with several seeds.
        folds: number of folds that the choice was made over, of training and validation images; 0 for validation.
    """

    run: str
    set: str
    passes: Count
    choose_by: Annotated[str, Meta(pattern=f"^({'|'.join(METRICS)})$")]
    leaks: dict[str, Count]
    heads: Annotated[list[HeadResult], Meta(min_length=1)]
    best: Best
    searched: Retrained
    default: Retrained
    baselines: Baselines
    classes_without_validation: Count
    seconds: Seconds
    basis_seconds: Seconds
    retrain_seconds: Seconds
    folds: Count = 0

    def in_words(self) -> str:
        """A table of the best heads, and the choice beside the baselines."""
        from pipeline.search.leaderboard import table  # which draws this record

        return table(self)

    @classmethod
    def load(cls, run: Path) -> "SweepResult":
        """Of the run folder; OSError, ValueError, or ConfigError of a setting, where it is not what a sweep wrote."""
        stored = json.loads(read_regular(run / RESULTS_FILE))
        if isinstance(stored, dict):
            stored.pop("dense", None)  # of earlier versions
        return convert(stored, cls)
