"""Tables of what `make results` measured, as Markdown, from the files in docs/results/."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def results(name: str) -> dict[str, Any]:
    """A file of docs/results/."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _range(values: list[float]) -> str:
    return f"{_percent(mean(values))} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def _split(one: dict[str, Any]) -> str:
    return " / ".join(f"{count:,}" for count in one["images"].values())


def defaults() -> str:
    """Heads of the defaults: split, passes, accuracies over seeds, seconds an epoch."""
    head = ("train / valid / test", "augmented passes", "epoch 1, valid", "best, valid", "test", "an epoch")
    return _table(head, (_seeds(split, row) for split in results("accuracy")["splits"] for row in split["defaults"]))


def _seeds(split: dict[str, Any], row: dict[str, Any]) -> list[object]:
    first, valid, test, epoch = ([head[key] for head in row["heads"]] for key in ("first", "valid", "test", "epoch"))
    scores = [_percent(mean(first)), _percent(mean(valid)), _range(test)]
    return [_split(split), row["passes"], *scores, f"{mean(epoch):.1f} s"]


def sweeps() -> str:
    """Sweeps: the choice, alone and merged, beside ridge regression."""
    head = (
        "train / valid / test",
        "passes",
        "to the choice",
        "kept",
        "validation",
        "test",
        "mean per class",
        "ridge, valid",
    )
    return _table(head, (_choice(split, row) for split in results("accuracy")["splits"] for row in split["sweeps"]))


def _choice(split: dict[str, Any], row: dict[str, Any]) -> list[object]:
    seeds, std = row["best"]["seeds"], 100 * row["best"]["std"]
    kept = f"{seeds} seeds as one head" if row["merged"] else f"the best of {seeds} seeds"
    valid = _percent(row["valid"]) if row["merged"] else f"{_percent(row['valid'])} ± {std:.1f}"
    took = f"{row['heads']} heads in {row['seconds']:.0f} s"
    scores = [_percent(value) for value in (row["test"], row["mean_per_class"], row["baselines"]["ridge"])]
    return [_split(split), row["passes"], took, kept, valid, *scores]


def speed() -> str:
    """Beside plain scripts, from one run."""
    return _table(("", "a plain script", "headgraft", "ratio"), (_features(), *_heads()))


def _features() -> list[object]:
    found = results("speed")["extract"]
    plain, steady, whole = (median(pair[key] for pair in found["pairs"]) for key in ("plain", "steady", "whole"))
    return [
        f"features of {found['images']} flowers, images/s",
        f"{plain:.2f}",
        f"{steady:.2f}, with the start {whole:.2f}",
        f"{steady / plain:.1f} times, with the start {whole / plain:.1f}",
    ]


def _heads() -> list[list[object]]:
    found = results("speed")
    plain, head, many = found["plain_head"], found["head"], found["sweep"]
    each = many["seconds"] / many["heads"]
    return [
        [
            "a head of 20 epochs, with start and basis",
            f"{plain['seconds']:.0f} s, {_percent(plain['valid'])} of validation",
            f"{head['seconds']:.1f} s, {_percent(head['valid'])}",
            f"{plain['seconds'] / head['seconds']:.1f} times",
        ],
        [
            f"a head tried, in a sweep of {many['heads']} that stops most of them early",
            f"{plain['seconds']:.0f} s",
            f"{each:.2f} s",
            f"{plain['seconds'] / each:.0f} times",
        ],
    ]


def where() -> str:
    """On what it was measured, and when."""
    found = results("speed")
    return f"Measured on {found['date']}: {found['hardware']}."


TABLES: dict[str, Callable[[], str]] = {one.__name__: one for one in (defaults, sweeps, speed, where)}
