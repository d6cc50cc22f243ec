"""Results of a sweep for people and programs: a table, a CSV file, a JSON file."""

import csv
import io
import json
from typing import Any

from pipeline.console import counted
from pipeline.run import RESULTS_FILE, TABLE_FILE

_SHOWN = 10  # heads in the table
_WINNERS = {"default": "the default head is the best", "search": "the best"}


def result_files(result: dict[str, Any]) -> dict[str, bytes]:
    """sweep.json, what the command prints as JSON; heads.csv, a line for each head, the chosen one first."""
    text = io.StringIO()
    rows = [{"rank": rank, **_flat(head)} for rank, head in enumerate(ranked(result), 1)]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return {RESULTS_FILE: json.dumps(result, indent=1).encode(), TABLE_FILE: text.getvalue().encode()}


def ranked(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The chosen head, then those that trained longest, among them those that validated best."""
    chosen = result["best"]["config"]
    return sorted(result["heads"], key=lambda h: (h["config"] != chosen, -h["epochs"], -h["valid_accuracy"]))


def _flat(head: dict[str, Any]) -> dict[str, Any]:
    return {**head["config"], **{name: head[name] for name in ("epochs", "finished", "valid_accuracy", "valid_loss")}}


def table(result: dict[str, Any], width: int = 120) -> str:
    """The chosen head and those after it, and below them the choice beside the baselines."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    names = list(result["best"]["config"])
    for name in (*names, "epochs", "valid"):
        grid.add_column(name.replace("_", " "), justify="left" if name == "basis" else "right")
    for head in ranked(result)[:_SHOWN]:
        values = [f"{head['config'][name]}" for name in names]
        grid.add_row(*values, str(head["epochs"]), f"{head['valid_accuracy']:.2%}")
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return text.getvalue().rstrip() + "\n" + _summary(result)


def baselines_in_words(known: dict[str, Any]) -> str:
    """Validation accuracies, separated by commas."""
    logistic = f", logistic regression {known['logistic']:.2%}" if known["logistic"] is not None else ""
    return f"shrunken discriminants {known['discriminant']:.2%}{logistic}, majority class {known['majority']:.2%}"


def _summary(result: dict[str, Any]) -> str:
    best, known, apart = result["best"], result["baselines"], result["best"]["difference"]
    finished = sum(head["finished"] for head in result["heads"])
    return (
        f"{result['run']}: {_WINNERS[best['won']]} of {counted(len(result['heads']), 'head')}, {finished} of them "
        f"trained to the end; validation accuracy {best['mean']:.2%} ± {best['std']:.2%} (mean and std over "
        f"{counted(best['seeds'], 'seed')}), {best['merged']['valid_accuracy']:.2%} as one merged head of "
        f"{best['merged']['hidden']} hidden units\n"
        f"best of the search less default head: {100 * apart['value']:+.2f} points, 95 % interval over images "
        f"{100 * apart['low']:+.2f} to {100 * apart['high']:+.2f}; corrected for choosing among all heads on the same "
        f"images, the best reaches {best['corrected']:.2%}\n"
        f"baselines in basis {known['basis']}: {baselines_in_words(known)}; "
        f"{result['seconds']:.1f} s to the choice, bases {result['basis_seconds']:.1f} s of them, "
        f"{result['retrain_seconds']:.1f} s to retrain"
    )
