"""The charts of a report, as SVG whose colours follow the page's, light or dark."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.config import HeadSettings
from pipeline.heads.fit import Epoch
from pipeline.reporting.predictions import Predictions
from pipeline.search.results import HeadResult
from pipeline.statistics.calibration import BINS

# Stand-ins that the page's style sheet gives their colours: matplotlib knows no variables.
INK, SOFT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {INK: "ink", SOFT: "line", FIRST: "first", SECOND: "second"}

_STYLE: Any = {  # matplotlib types every name of a setting
    "svg.fonttype": "none",  # letters stay text: smaller, and in the page's type
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "grid.color": SOFT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
_WIDTH, _HEIGHT = 3.6, 2.7  # inches, of one chart
_SETTINGS = {"lr": "Learning rate", "hidden": "Hidden units", "basis": "Basis"}
_PERCENT = PercentFormatter(1, decimals=None)


def learning_curves(epochs: Sequence[Epoch]) -> list[Markup]:
    """Losses, and validation accuracy, by epoch."""
    numbers = [epoch.epoch for epoch in epochs]
    with mpl.rc_context(_STYLE):
        left, right = _chart("Loss"), _chart("Validation accuracy")
        left.plot(numbers, [epoch.train_loss for epoch in epochs], color=FIRST, marker=".", label="training")
        left.plot(numbers, [epoch.valid_loss for epoch in epochs], color=SECOND, marker=".", label="validation")
        left.set(xlabel="epoch", ylim=(0, None))
        left.legend()
        accuracy = [epoch.valid_accuracy for epoch in epochs]
        right.plot(numbers, accuracy, color=SECOND, marker=".")
        right.set(xlabel="epoch")
        right.yaxis.set_major_formatter(_PERCENT)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return [_svg(left), _svg(right)]


def sweep_settings(heads: Sequence[HeadResult], chosen: HeadSettings) -> list[Markup]:
    """Validation accuracy of each head against learning rate, hidden units and basis; the choice is ringed."""
    longest = max(head.epochs for head in heads)
    with mpl.rc_context(_STYLE):
        charts = {name: _chart(title) for name, title in _SETTINGS.items()}
        for name, axes in charts.items():
            places = _places(axes, name, [getattr(head.config, name) for head in heads])
            for finished, colour, label in ((False, FIRST, "stopped"), (True, SECOND, "trained to the end")):
                some = [n for n, head in enumerate(heads) if (head.epochs == longest) == finished]
                accuracy = [heads[n].valid_accuracy for n in some]
                axes.scatter(places[some], accuracy, 18, color=colour, alpha=0.75, linewidths=0, label=label)
            ringed = [n for n, head in enumerate(heads) if head.config == chosen]
            accuracy = [heads[n].valid_accuracy for n in ringed]
            axes.scatter(places[ringed], accuracy, 90, facecolors="none", edgecolors=INK, label="chosen")
            axes.yaxis.set_major_formatter(_PERCENT)
            axes.set_ylabel("validation accuracy")
        charts["lr"].legend(fontsize=8)
        return [_svg(axes) for axes in charts.values()]


def _places(axes: Axes, name: str, values: Sequence[Any]) -> np.ndarray:
    """Where heads stand on the axis of a setting: numbers in their scale, names side by side and a little apart."""
    if name == "lr":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return np.asarray(values, dtype=float)
    known = sorted(set(values))
    axes.set_xticks(range(len(known)), [str(value).replace("+", "\n+") for value in known], fontsize=8)
    axes.set_xlim(-0.5, len(known) - 0.5)
    apart = (np.arange(len(values)) * 0.618034) % 1 - 0.5  # the golden ratio: even, and the same each time
    places: np.ndarray = np.array([known.index(value) for value in values]) + 0.5 * apart
    return places


def race(scores: dict[int, dict[int, float]]) -> Markup:
    """Validation accuracy of each head at the epochs where heads were stopped: {head: {epochs: accuracy}}."""
    longest = max(epochs for head in scores.values() for epochs in head)
    with mpl.rc_context(_STYLE):
        axes = _chart("Heads as they were stopped", wide=True)
        for head in scores.values():
            epochs = sorted(head)
            last = epochs[-1] == longest
            colour = SECOND if last else FIRST
            axes.plot(epochs, [head[e] for e in epochs], color=colour, alpha=1 if last else 0.5, marker=".", lw=1)
        axes.set(xlabel="epoch", ylabel="validation accuracy")
        axes.set_xticks(sorted({epochs for head in scores.values() for epochs in head}))
        axes.yaxis.set_major_formatter(_PERCENT)
        return _svg(axes)


def reliability(found: Predictions) -> list[Markup]:
    """How often predictions are right, by how probable they were said to be, and how many there are of each."""
    bins = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    right = np.bincount(bins, weights=found.hits, minlength=BINS)
    middles = (np.arange(BINS) + 0.5) / BINS
    there = counts > 0
    with mpl.rc_context(_STYLE):
        left, right_side = _chart("Right, by confidence"), _chart("Images, by confidence")
        left.plot((0, 1), (0, 1), color=INK, lw=0.8, ls="--")
        left.bar(middles[there], right[there] / counts[there], 0.9 / BINS, color=SECOND)
        left.set(xlabel="probability of the prediction", xlim=(0, 1), ylim=(0, 1))
        left.yaxis.set_major_formatter(_PERCENT)
        right_side.bar(middles, counts, 0.9 / BINS, color=FIRST)
        right_side.set(xlabel="probability of the prediction", xlim=(0, 1))
        right_side.set_yscale("symlog")
        right_side.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return [_svg(left), _svg(right_side)]


def _chart(title: str, wide: bool = False) -> Axes:
    axes: Axes = Figure(figsize=(_WIDTH * (2 if wide else 1), _HEIGHT), layout="constrained").subplots()
    axes.set_title(title)
    return axes


def _svg(axes: Axes) -> Markup:
    """The drawing alone, in the page's colours, no wider than there is room; the same each time."""
    figure, title = axes.get_figure(root=True), axes.get_title()
    assert figure is not None
    for patch in (figure.patch, axes.patch):
        patch.set_alpha(0)
    axes.set_axisbelow(True)
    target = StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, name in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{name})")
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every drawing, and nothing refers to them
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)  # its style would be the whole page's
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return Markup(text)  # noqa: S704  # matplotlib's own, which escapes what it is given
