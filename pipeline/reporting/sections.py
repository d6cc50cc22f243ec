"""What each section of the page shows, from what was found: choices of how much, and in which order."""

import shlex
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cache.index import ImageRecord
from pipeline.config import ExtractConfig
from pipeline.console import counted
from pipeline.heads.head import hidden_in_words
from pipeline.reporting import figures
from pipeline.reporting.classes import ClassRow, class_rows
from pipeline.reporting.confusion import Cell, Pair
from pipeline.reporting.costs import PHASES
from pipeline.reporting.findings import MOST_COMPARED, Findings
from pipeline.reporting.label_issues import FOLDS
from pipeline.reporting.next_steps import Found, next_steps
from pipeline.search.leaderboard import ranked
from pipeline.statistics.calibration import BINS
from pipeline.statistics.intervals import METHOD, Interval

PAIRS, PICTURES, LABEL_ISSUES, DUPLICATES, SKIPPED, IN_CELL = 25, 24, 48, 24, 50, 40  # that are shown
_SCORES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


def page_facts(found: Findings, root: Path) -> dict[str, Any]:
    """Everything the templates name but pictures."""
    return {
        **_frame(found),
        **_accuracy(found),
        **_sweep(found),
        **_errors(found),
        **_data_quality(found, root),
        **_calibration(found),
        **_cost(found),
        "next_steps": next_steps(_grounds(found)),
    }


def wanted_pictures(found: Findings) -> Iterator[ImageRecord]:
    """The images that the page shows, the most telling first."""
    images = found.valid.images
    for place in _mistakes(found)[:PICTURES]:
        yield images[place]
    for issue in found.label_issues.found[:LABEL_ISSUES]:
        yield issue.image
    for _, a, b in _shown_pairs(found):
        yield a
        yield b
    for place in _hits(found):
        yield images[place]
    cells = found.confusion.cells.values()
    for cell in sorted(cells, key=lambda cell: cell.truth == cell.predicted):  # mistakes before hits
        yield from (images[place] for place in cell.images[:IN_CELL])


def _frame(found: Findings) -> dict[str, Any]:
    run, config, base = found.run, found.run.record.config, found.cache.manifest.base
    counts = " / ".join(f"{count:,}" for count in found.index.counts().values())
    parts = (
        f"set {found.index.name}: {len(run.classes)} classes, {counts} images for training, validation and test",
        f"{base.backbone} at {base.input_size} pixels in {base.precision}",
        counted(config.passes, "augmented pass"),
        f"basis {run.whole_basis.name}, {hidden_in_words(config.hidden)}",
        f"headgraft {version('headgraft')}, {datetime.now(UTC):%Y-%m-%d}",
    )
    names = {
        "good": "Accuracy",
        "sweep": "Sweep",
        "fails": "Errors",
        "clean": "Data quality",
        "sure": "Calibration",
        "cost": "Cost",
        "next": "Next steps",
    }
    shown = [(key, name) for key, name in names.items() if key != "sweep" or found.sweep]
    title = f"{run.path.absolute().name}: validation accuracy {found.scores['top1'].value:.1%}"
    return {"title": title, "summary": " · ".join(parts), "sections": shown, "name": found.name, "classes": run.classes}


def _accuracy(found: Findings) -> dict[str, Any]:
    epochs = found.run.record.epochs
    return {
        "valid": found.valid,
        "scores": _renamed(found.scores),
        "method": METHOD,
        "known": found.known,
        "test_scores": _renamed(found.test_scores),
        "test_images": len(found.test.images) if found.test else 0,
        "looks": "once" if found.looks == 1 else f"{found.looks} times",
        "curves": figures.learning_curves(epochs) if epochs else "",
    }


def _renamed(scores: dict[str, Interval]) -> dict[str, Interval]:
    return {_SCORES[name]: interval for name, interval in scores.items()}


def _sweep(found: Findings) -> dict[str, Any]:
    if found.sweep is None:
        return {"sweep": None}
    result = found.sweep.result
    return {
        "sweep": result,
        "sweep_heads": ranked(result),
        "sweep_columns": list(result["best"]["config"]),
        "settings_charts": figures.sweep_settings(result["heads"], result["best"]["config"]),
        "race_chart": figures.race(found.sweep.scores),
    }


def _errors(found: Findings) -> dict[str, Any]:
    confused = found.confusion
    at = {label: number for number, label in enumerate(confused.order)}
    counts = np.bincount(found.valid.truth, minlength=found.valid.num_classes)
    drawn = [
        (cell, at[cell.predicted], at[cell.truth], cell.count / counts[cell.truth])
        for cell in confused.cells.values()
        if cell.truth in at and cell.predicted in at
    ]
    rows, pairs = class_rows(found), confused.pairs()[:PAIRS]
    return {
        "matrix": confused,
        "drawn": drawn,
        "cells": _led_to((cell for cell, *_ in drawn), pairs, rows),
        "most_in_cell": IN_CELL,
        "pairs": pairs,
        "mistakes": _mistakes(found)[:PICTURES],
        "hits": _hits(found),
        "per_class": sorted(rows, key=lambda row: (row.recall is None, row.recall, found.name(row.place))),
        "absent": [row.place for row in rows if not row.valid],
    }


def _led_to(drawn: Iterable[Cell], pairs: Iterable[Pair], rows: Iterable[ClassRow]) -> list[Cell]:
    """The cells that something on the page leads to: of a thousand classes there are more than a page holds."""
    cells = [*drawn, *(cell for pair in pairs for cell in (pair.cell, pair.other) if cell)]
    cells += [cell for row in rows for cell in (row.hits, row.taken) if cell]
    return list({cell.key: cell for cell in cells}.values())


def _mistakes(found: Findings) -> list[int]:
    """Places of the misclassified images, the most confident first."""
    order = np.argsort(-found.valid.confidence, kind="stable")
    return [int(place) for place in order if not found.valid.hits[place]]


def _hits(found: Findings) -> list[int]:
    """Places of the correctly classified images, the least confident first."""
    order = np.argsort(found.valid.confidence, kind="stable")
    return [int(place) for place in order if found.valid.hits[place]][:PICTURES]


def _data_quality(found: Findings, root: Path) -> dict[str, Any]:
    rows, index, issues = class_rows(found), found.index, found.label_issues
    return {
        "label_issues": issues.found[:LABEL_ISSUES],
        "all_label_issues": len(issues.found),
        "more_label_issues": len(issues.found) - LABEL_ISSUES,
        "checked": issues.checked,
        "unchecked": issues.unchecked,
        "folds": FOLDS,
        "leaks": found.leaks,
        "threshold": found.duplicates.threshold,
        "compared": found.compared,
        "most_compared": f"{MOST_COMPARED:,}",
        "duplicates": found.duplicates.pairs,
        "across": found.across,
        "shown_pairs": _shown_pairs(found),
        "label_name": lambda label: found.name(found.run.classes.index(label)),
        "skipped": index.skipped[:SKIPPED],
        "more_skipped": len(index.skipped) - SKIPPED,
        "counts": index.counts(),
        "class_counts": sorted(rows, key=lambda row: (row.train, row.place)),
        "fewest": min(row.train for row in rows),
        "most": max(row.train for row in rows),
        "root": str(root),
        "refusal": found.refusal,
    }


def _shown_pairs(found: Findings) -> list[tuple[Any, ImageRecord, ImageRecord]]:
    """Near-duplicates with their images, those across splits or labels first."""
    records = {image.path: image for image in found.index.images}
    across, inside = found.across, set(found.duplicates.pairs) - set(found.across)
    pairs = [*across, *(pair for pair in found.duplicates.pairs if pair in inside)][:DUPLICATES]
    return [(pair, records[pair.a], records[pair.b]) for pair in pairs]


def _calibration(found: Findings) -> dict[str, Any]:
    return {
        "bins": BINS,
        "calibration": found.calibration,
        "reliability_charts": figures.reliability(found.valid),
    }


def _cost(found: Findings) -> dict[str, Any]:
    took, paid = found.stage_one, found.payback
    a_view = took.seconds / took.computed if took.computed else 0.0
    return {
        "stage_one": took,
        "phases": PHASES,
        "devices": ", ".join(sorted({entry.device for entry in took.extractions})),
        "bytes": found.cache.bytes,
        "rows": len(found.cache),
        "row_bytes": f"{2 * found.cache.in_features:,}",
        "head_cost": _head_cost(found),
        "payback": paid,
        "spent": paid.views * a_view,
        "saved": paid.views_a_head * a_view,
    }


def _head_cost(found: Findings) -> str:
    if found.sweep is None:
        return f"One head in {found.run.record.seconds:.1f} s, with its basis."
    result = found.sweep.result
    heads = len(result["heads"])
    each = result["seconds"] / heads
    return (
        f"{counted(heads, 'head')} in {result['seconds']:.1f} s until the choice, {each:.2f} s each, of them "
        f"{result['basis_seconds']:.1f} s for bases; {result['retrain_seconds']:.1f} s to retrain the choice."
    )


def _grounds(found: Findings) -> Found:
    return Found(
        run=found.run.path,
        cache=found.cache.path,
        set=found.index.name,
        data=found.index.data,
        settings=_settings(found),
        passes=found.run.record.config.passes,
        train_images=len(found.index.split("train")),
        classes=len(found.run.classes),
        top1=found.scores["top1"].value,
        baseline=found.known.best,
        calibrates=found.calibration.scaled_ece < found.calibration.ece > found.calibration.floor,
        label_issues=len(found.label_issues.found),
        leaks=found.leaks["across_splits"] + found.leaks["two_labels"],
        across=sum(not pair.identical for pair in found.across),
        swept=found.sweep is not None,
        tested=found.test is not None,
    )


def _settings(found: Findings) -> str:
    """Options of `extract` that this cache needs: without them it would be refused, or split otherwise."""
    base, recipe = found.cache.manifest.base, found.cache.manifest.augmentation
    files = [made.get("weights") for made in found.cache.provenance(found.index.row_keys(0))]
    asked = {
        "backbone": base.backbone,
        "weights": next((name for name in files if isinstance(name, str)), None),
        "image_size": base.input_size,
        "seed": recipe.seed if recipe else ExtractConfig.seed,
        "split_seed": found.index.split_seed,
        "skip_bad": bool(found.index.skipped),
    }
    changed = {name: value for name, value in asked.items() if value != getattr(ExtractConfig, name)}
    options = ((f"--{name.replace('_', '-')}", value) for name, value in changed.items())
    return "".join(
        f" {option}" if value is True else f" {option} {shlex.quote(str(value))}" for option, value in options
    )
