"""Results of a sweep for people and programs: a table, a CSV file, a JSON file."""

import csv
import io
import json
from typing import Any

from pipeline.console import counted
from pipeline.heads.head import hidden_in_words
from pipeline.run_folder import RESULTS_FILE, TABLE_FILE

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
    """Validation accuracies (top-1), separated by commas; without those that could not be fitted."""
    names = {"discriminant": "shrunken discriminants", "logistic": "logistic regression", "majority": "majority class"}
    return ", ".join(f"{name} {known[key]:.2%}" for key, name in names.items() if known[key] is not None)


def _summary(result: dict[str, Any]) -> str:
    best, known, apart = result["best"], result["baselines"], result["best"]["difference"]
    finished = sum(head["finished"] for head in result["heads"])
    lines = [
        f"{result['run']}: {_WINNERS[best['won']]} of {counted(len(result['heads']), 'head')}, {finished} of them "
        f"trained to the end; validation accuracy ({result['choose_by']}) {best['mean']:.2%} ± {best['std']:.2%} "
        f"(mean and std over {counted(best['seeds'], 'seed')}), {best['merged']['valid_accuracy']:.2%} as one merged "
        f"head with {hidden_in_words(best['merged']['hidden'])}",
        f"best of the search less default head, same images and seeds: {100 * apart['value']:+.2f} points "
        f"({100 * apart['low']:+.2f} to {100 * apart['high']:+.2f}, 95 % over images)",
    ]
    if apart["corrected"] is not None:
        lines[-1] += (
            f"; on images that did not choose it: {100 * apart['corrected']:+.2f} points, "
            f"accuracy {result['searched']['corrected']:.2%}"
        )
    lines += [
        f"baselines, top-1, in basis {known['basis']}: {baselines_in_words(known)}",
        f"search {result['seconds']:.1f} s, bases {result['basis_seconds']:.1f} s of them; retraining with "
        f"{counted(best['seeds'], 'seed')} {result['retrain_seconds']:.1f} s; baselines {known['seconds']:.1f} s",
    ]
    return "\n".join(lines)
