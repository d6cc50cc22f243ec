"""Results of a sweep for people and programs: a table, a CSV file, a JSON file."""

import csv
import io
import json
from dataclasses import asdict

from pipeline.config.heads import scored_by
from pipeline.console import counted
from pipeline.heads.head import hidden_in_words
from pipeline.run_folder import RESULTS_FILE, TABLE_FILE
from pipeline.search.results import HeadResult, SweepResult
from pipeline.search.space import SETTINGS

_SHOWN = 10  # heads in the table
_WINNERS = {"default": "the default head is the best", "search": "the best"}


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
    best, known, apart = result.best, result.baselines, result.best.difference
    finished = sum(head.finished for head in result.heads)
    seeds = counted(best.seeds, "seed")
    baselines = {
        "shrunken discriminants": known.discriminant,
        "logistic regression": known.logistic,
        "majority class": known.majority,
    }
    fitted = ", ".join(f"{name} {accuracy:.2%}" for name, accuracy in baselines.items() if accuracy is not None)
    others = spread = ""
    if best.seeds > 1:
        merged = f"{best.merged.valid_accuracy:.2%} as one merged head with {hidden_in_words(best.merged.hidden)}"
        spread = f" ± {best.std:.2%} (mean and std over {seeds}), {merged}"
    if apart.corrected is not None:
        others = (
            f"\ncorrected for the choice, by bootstrap: accuracy {result.searched.corrected:.2%}, the one to quote; "
        )
        others += f"{100 * apart.corrected:+.2f} points from the default head"
    return (
        f"{result.run}: {_WINNERS[best.won]} of {counted(len(result.heads), 'head')}, {finished} of them "
        f"trained to the end; {scored_by(result.folds)} accuracy ({result.choose_by}) {best.mean:.2%}{spread}\n"
        f"best of the search less default head, same images and seeds: {100 * apart.value:+.2f} points "
        f"({100 * apart.low:+.2f} to {100 * apart.high:+.2f}, 95 % over images){others}\n"
        f"baselines, top-1, in basis {known.basis}: {fitted}\n"
        f"search {result.seconds:.1f} s, bases {result.basis_seconds:.1f} s of them; retraining with "
        f"{seeds} {result.retrain_seconds:.1f} s; baselines {known.seconds:.1f} s"
    )
