"""What a sweep found: the records of sweep.json, written and read by the same types; a table and a CSV file of them."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from cache.files import read_regular
from cache.records import Count, Seconds, convert
from cache.result import Result
from pipeline.config.heads import METRIC_NAMES, METRICS, HeadSettings, scored_by
from pipeline.console import counted
from pipeline.heads.head import hidden_in_words
from pipeline.run_folder import RESULTS_FILE, TABLE_FILE
from pipeline.search.baselines import Baselines
from pipeline.search.selection import Difference, Finite
from pipeline.search.space import SETTINGS

_SHOWN = 10  # heads in the table
_WINNERS = {"default": "no better head found: the default head is the best", "search": "the best"}

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

    @property
    def metric(self) -> str:
        """What `choose_by` is called."""
        return METRIC_NAMES[self.choose_by]

    def in_words(self) -> str:
        """A table of the best heads, and the choice beside the baselines."""
        return table(self)

    @classmethod
    def load(cls, run: Path) -> "SweepResult":
        """Of the run folder; OSError, ValueError, or ConfigError of a setting, where it is not what a sweep wrote."""
        stored = json.loads(read_regular(run / RESULTS_FILE))
        if isinstance(stored, dict):
            stored.pop("dense", None)  # of earlier versions
        return convert(stored, cls)


def result_files(result: SweepResult) -> dict[str, bytes]:
    """sweep.json, what the command prints as JSON; heads.csv, a line for each head, the chosen one first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    others = ("epochs", "finished", "valid_accuracy", "valid_loss")
    writer.writerow(("rank", *SETTINGS, *others))
    for rank, head in enumerate(ranked(result), 1):
        writer.writerow((rank, *asdict(head.config).values(), *(getattr(head, name) for name in others)))
    return {RESULTS_FILE: json.dumps(asdict(result), indent=1).encode(), TABLE_FILE: text.getvalue().encode()}


def ranked(result: SweepResult) -> list[HeadResult]:
    """The chosen head, then those that trained longest, among them those of the highest validation accuracy."""
    chosen = result.best.config
    return sorted(result.heads, key=lambda head: (head.config != chosen, -head.epochs, -head.valid_accuracy))


def table(result: SweepResult, width: int = 120) -> str:
    """The chosen head and those after it, and below them the choice beside the baselines."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in (*SETTINGS, "epochs", scored_by(result.folds)):
        grid.add_column(name.replace("_", " "), justify="left" if name == "basis" else "right")
    for head in ranked(result)[:_SHOWN]:
        grid.add_row(*map(str, asdict(head.config).values()), str(head.epochs), f"{head.valid_accuracy:.2%}")
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return text.getvalue().rstrip() + "\n" + _summary(result)


def _summary(result: SweepResult) -> str:
    best, known = result.best, result.baselines
    finished = sum(head.finished for head in result.heads)
    seeds = counted(best.seeds, "seed")
    baselines = {
        "shrunken discriminants": known.discriminant,
        "logistic regression": known.logistic,
        "majority class": known.majority,
    }
    fitted = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in baselines.items() if accuracy is not None)
    won, spread = _WINNERS[best.won] if len(result.heads) > 1 else "the default head", ""
    if best.seeds > 1:
        merged = f"{best.merged.valid_accuracy:.2%} as one merged head with {hidden_in_words(best.merged.hidden)}"
        spread = f" ± {best.std:.2%} (mean and std over {seeds}), {merged}"
    return (
        f"{result.run}: {won} of {counted(len(result.heads), 'head')}, {finished} of them "
        f"trained to the end; {scored_by(result.folds)} {result.metric} {best.mean:.2%}{spread}\n"
        f"{_difference(result)}"
        f"baselines, top-1, in basis {known.basis}: {fitted}\n"
        f"search {result.seconds:.1f} s, bases {result.basis_seconds:.1f} s of them; retraining with "
        f"{seeds} {result.retrain_seconds:.1f} s; baselines {known.seconds:.1f} s"
    )


def _difference(result: SweepResult) -> str:
    """The best of the search beside the default head, and what to quote of it if it is kept: lines that end."""
    apart, lines = result.best.difference, ""
    if result.searched.config != result.default.config:
        lines += (
            f"best of the search less default head, same images and seeds: {100 * apart.value:+.2f} points "
            f"({100 * apart.low:+.2f} to {100 * apart.high:+.2f}, 95 % over images)"
        )
        lines += ", so it is not clearly better\n" if apart.low <= 0 < apart.value else "\n"
    if result.best.won == "search" and result.searched.corrected is not None:
        corrected = f"{result.metric} {result.searched.corrected:.2%}"
        lines += f"corrected for the choice, by bootstrap: {corrected}, the one to quote\n"
    return lines
