"""Tables of docs/untouched.md, from docs/results/untouched.json."""

from collections.abc import Callable
from textwrap import fill
from typing import Any

from tabular import percent, results, table

Row = dict[str, Any]


def untouched_sets() -> str:
    """Images and groups of each split, and how uneven the classes are."""
    head = ("set", "classes", "train / valid / test", "independent groups", "majority class", "images per class")
    return table(head, (_described(name, one) for name, one in results("untouched")["sets"].items()))


def _described(name: str, one: Row) -> list[object]:
    images, groups = (" / ".join(f"{count:,}" for count in one[key].values()) for key in ("images", "groups"))
    sizes = sorted(sum(splits.values()) for splits in one["classes"].values())
    majority = f"{percent(one['majority'])} of test"
    return [f"`{name}`", len(sizes), images, groups, majority, f"{sizes[0]} to {sizes[-1]}"]


def untouched() -> str:
    """The default head and the sweep on validation and test images."""
    names = ("default head, valid", "default head, test", "per class, test", "sweep, valid", "sweep, test")
    return _of_each((*names, "sweep less default, test", "kept by the sweep"), _accuracies)


def _accuracies(row: Row) -> list[object]:
    head, sweep = row["head"], row["sweep"]
    scores = (head["valid"], head["test"], head["test_mean_per_class"], sweep["valid"], sweep["test"])
    kept = "the default head" if sweep["won"] == "default" else f"`{sweep['config']['basis']}`"
    return [*map(_interval, scores), _points(sweep["test_difference"]), kept]


def untouched_folds() -> str:
    """Accuracies out of fold."""
    return _of_each(("images", "groups", "accuracy", "mean per class", "near-duplicates across folds"), _folds)


def _folds(row: Row) -> list[object]:
    found = row["cv"]
    counts = [f"{found[key]:,}" for key in ("images", "groups")]
    return [*counts, _interval(found["accuracy"]), _interval(found["mean_per_class"]), found["across_folds"]]


def untouched_scripts() -> str:
    """The scripts, and the default head less each of them on the same test images."""
    ways = {"head": "script's head", "logistic": "logistic regression", "lda": "LDA"}
    names = [f"{name}, {what}" for name in ways.values() for what in ("valid", "test", "headgraft less it, test")]
    return _of_each(names, lambda row: [cell for way in ways for cell in _script(row["scripts"][way])])


def _script(one: Row) -> list[object]:
    return [_interval(one["valid"]), _interval(one["test"]), _points(one["difference"])]


def untouched_unknown() -> str:
    """What detectors flag."""
    kinds = [f"{kind}: flagged, AUROC" for kind in ("textures", "scenes", "objects")]
    return _of_each(("known images", "known test images flagged", *kinds, "AUROC, classes left out"), _unknown)


def _unknown(row: Row) -> list[object]:
    found = row["unknown"]
    kinds = [f"{_interval(kind)}, {kind['auroc']:.3f}" for kind in found["kinds"].values()]
    return [found["images"], _interval(found["test"]), *kinds, f"{found['auroc_left_out']:.3f}"]


def untouched_data() -> str:
    """Label issues and near-duplicates."""
    names = ("possible label errors", "near-duplicates", "augmented views recognised", "test images without any")
    return _of_each((*names, "default head on these"), _data)


def _data(row: Row) -> list[object]:
    issues, apart = row["label_issues"], row["head"]["unrelated"]
    checked = row["cv"]["images"] - sum(issues["unchecked_classes"].values())
    low, high = apart["interval"]
    pairs = issues["duplicates"]
    scores = _interval({"value": apart["top1"], "low": low, "high": high})
    listed = f"{issues['listed']} of {checked:,} ({percent(issues['listed'] / checked)})"
    return [listed, f"{pairs['pairs']:,} pairs", percent(pairs["detection_rate"]), apart["images"], scores]


def untouched_cells() -> str:
    """Of each class of the smallest set, images and how many are right out of fold."""
    found = results("untouched")
    rows = [row for row in found["results"] if row["set"] == "wbc_original"]
    head = ("class", "train / valid / test", *(f"right out of fold, `{row['backbone']}`" for row in rows))
    lines = []
    for label, splits in found["sets"]["wbc_original"]["classes"].items():
        right = ["{} of {}".format(*row["cv"]["classes"][label]) for row in rows]
        lines.append([label, " / ".join(map(str, splits.values())), *right])
    return table(head, lines)


def untouched_where() -> str:
    """On what it was computed, and when."""
    found = results("untouched")
    precision = ", ".join(sorted({f"{row['backbone']} in {row['precision']}" for row in found["results"]}))
    return fill(f"Run on {found['date']}: {found['hardware']}; {precision}.", 120, break_on_hyphens=False)


def _of_each(names: Any, cells: Callable[[Row], list[object]]) -> str:
    """A table with a line for each set and backbone."""
    rows = sorted(results("untouched")["results"], key=lambda row: [*results("untouched")["sets"]].index(row["set"]))
    return table(("set", "backbone", *names), ([f"`{r['set']}`", f"`{r['backbone']}`", *cells(r)] for r in rows))


def _interval(one: Row) -> str:
    return f"{percent(one['value'])} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def _points(one: Row) -> str:
    return f"{100 * one['value']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


ALL = (
    untouched_sets,
    untouched,
    untouched_folds,
    untouched_scripts,
    untouched_unknown,
    untouched_data,
    untouched_cells,
    untouched_where,
)
