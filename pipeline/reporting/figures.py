"""Charts as SVG: those of a report, whose colours follow the page's, light or dark, and one that is a file."""

import math
import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from pipeline.config.heads import HeadSettings
from pipeline.heads.fit import Epoch
from pipeline.reporting.predictions import Predictions
from pipeline.search.results import HeadResult
from pipeline.statistics.calibration import BINS
from pipeline.statistics.intervals import Interval, interval
from pipeline.statistics.power_law import Point, PowerLaw
from pipeline.statistics.selective import RiskCoverage

# Stand-ins that the page's style sheet gives their colours: matplotlib knows no variables.
INK, SOFT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
_IN_PAGE = {INK: "var(--ink)", SOFT: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
_IN_FILE = {INK: "#1d2733", SOFT: "#d6d3ca", FIRST: "#0072b2", SECOND: "#d55e00"}  # those of the page when light

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
_LEAST_RANGE = 0.1  # of an axis of accuracies: a narrower one makes a cliff of a few images
_LEAST_IMAGES = 10  # that such an axis spans
_SETTINGS = {"lr": "Learning rate", "hidden": "Hidden units", "basis": "Basis"}
_PERCENT, _PLAIN = PercentFormatter(1, decimals=None, symbol="\u00a0%"), StrMethodFormatter("{x:g}")


@mpl.rc_context(_STYLE)
def learning_curves(epochs: Sequence[Epoch], images: int) -> list[Markup]:
    """Losses, and the accuracy of so many validation images, by epoch."""
    numbers = [epoch.epoch for epoch in epochs]
    losses, accuracy = _chart("Loss", False, xlabel="epoch"), _chart("Validation accuracy", xlabel="epoch")
    losses.plot(numbers, [epoch.train_loss for epoch in epochs], color=FIRST, marker=".", label="training")
    losses.plot(numbers, [epoch.valid_loss for epoch in epochs], color=SECOND, marker=".", label="validation")
    losses.set_ylim(0, None)
    losses.legend()
    found = [epoch.valid_accuracy for epoch in epochs]
    accuracy.plot(numbers, found, color=SECOND, marker=".", clip_on=False)
    _accuracy_axis(accuracy, found, images)
    for axes in (losses, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return [_svg(losses), _svg(accuracy)]


@mpl.rc_context(_STYLE)
def sweep_settings(heads: Sequence[HeadResult], chosen: HeadSettings, images: int) -> list[Markup]:
    """Accuracy of each head on so many images by settings that vary; the choice is ringed."""
    epochs, accuracy = np.array([head.epochs for head in heads]), np.array([head.valid_accuracy for head in heads])
    ended, ringed = epochs == epochs.max(), np.array([head.config == chosen for head in heads])
    charts: list[Markup] = []
    for name, title in _SETTINGS.items():
        values = [getattr(head.config, name) for head in heads]
        if len(set(values)) == 1:
            continue
        axes = _chart(title, ylabel="accuracy")
        places = _places(axes, name, values)
        for some, colour, label in ((~ended, FIRST, "stopped"), (ended, SECOND, "trained to the end")):
            axes.scatter(places[some], accuracy[some], 18, color=colour, clip_on=False, linewidths=0, label=label)
        axes.scatter(
            places[ringed], accuracy[ringed], 90, facecolors="none", edgecolors=INK, clip_on=False, label="chosen"
        )
        _accuracy_axis(axes, accuracy, images)
        if not charts:
            axes.legend(fontsize=8)
        charts.append(_svg(axes))
    return charts


def _places(axes: Axes, name: str, values: Sequence[Any]) -> np.ndarray:
    """Where heads stand on the axis of a setting: numbers in their scale, names side by side and a little apart."""
    if name == "lr":
        _log_scale(axes)
        return np.asarray(values, dtype=float)
    known = sorted(set(values))
    axes.set_xticks(range(len(known)), [str(value).replace("+", "\n+") for value in known], fontsize=8)
    axes.set_xlim(-0.5, len(known) - 0.5)
    apart = (np.arange(len(values)) * 0.618034) % 1 - 0.5  # the golden ratio: even, and the same each time
    places: np.ndarray = np.array([known.index(value) for value in values]) + 0.5 * apart
    return places


def _log_scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_PLAIN)


@mpl.rc_context(_STYLE)
def race(scores: dict[int, dict[int, float]], images: int) -> Markup:
    """Accuracy of each head on so many images where heads were stopped: {head: {epochs: accuracy}}."""
    rungs = sorted({epochs for head in scores.values() for epochs in head})
    axes = _chart("Heads as they were stopped", xlabel="epoch", ylabel="accuracy")
    axes.set_xticks(rungs)
    for head in scores.values():
        epochs, ended = sorted(head), rungs[-1] in head
        colour, alpha = (SECOND, 1.0) if ended else (FIRST, 0.5)
        axes.plot(epochs, [head[e] for e in epochs], color=colour, alpha=alpha, marker=".", lw=1, clip_on=False)
    _accuracy_axis(axes, [accuracy for head in scores.values() for accuracy in head.values()], images)
    return _svg(axes)


@mpl.rc_context(_STYLE)
def reliability(found: Predictions) -> list[Markup]:
    """How often predictions are right, with 95 % intervals, by their probability, and how many there are of each."""
    bins = np.minimum((found.confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    middles, there = (np.arange(BINS) + 0.5) / BINS, counts > 0
    in_bins = [found.hits[bins == place] for place in np.flatnonzero(there)]
    right = [interval(hits, np.full(len(hits), 1 / len(hits)), np.arange(len(hits))) for hits in in_bins]
    reach = [[one.value - one.low for one in right], [one.high - one.value for one in right]]
    label = "probability of the prediction"
    hits, images = _chart("Accuracy by confidence", xlabel=label), _chart("Images by confidence", False, xlabel=label)
    hits.plot((0, 1), (0, 1), color=INK, lw=0.8, ls="--")
    values = [one.value for one in right]
    hits.bar(middles[there], values, 0.9 / BINS, color=FIRST, yerr=reach, error_kw={"ecolor": INK, "lw": 1})
    hits.set(xlim=(0, 1), ylim=(0, 1))
    bars, most = images.bar(middles, counts, 0.9 / BINS, color=FIRST), counts.max()
    numbers = [f"{count:,}" if count else "" for count in counts]
    images.bar_label(bars, numbers, padding=2, fontsize=7, rotation=90 if most > 999 else 0)
    images.set(xlim=(0, 1), yscale="symlog", ylim=(0, 4 * most))
    images.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (hits, images):
        axes.xaxis.set_major_formatter(_PERCENT)
    return [_svg(hits), _svg(images)]


@mpl.rc_context(_STYLE)
def accuracy_by_time(names: Sequence[str], seconds: Sequence[float], accuracies: Sequence[Interval]) -> Markup:
    """An SVG file: validation accuracies, with their 95 % intervals, by seconds for 1,000 images."""
    axes = _chart("Validation accuracy, 95 % interval", wide=True, xlabel="seconds for 1,000 images")
    least, most = min(seconds), max(seconds)
    _log_scale(axes)
    axes.set_xlim(least / 2, most * 2)  # a labelled number of the axis is always within
    for name, place, found in zip(names, seconds, accuracies, strict=True):
        reach = [[found.value - found.low], [found.high - found.value]]
        axes.errorbar(place, found.value, reach, color=SECOND, marker="o", capsize=3)
        side, aligned = (-6, "right") if place**2 > least * most else (6, "left")  # towards the middle
        axes.annotate(
            name,
            (place, found.value),
            (side, 0),
            textcoords="offset points",
            ha=aligned,
            va="center",
            fontsize=8,
            parse_math=False,
        )
    _accuracy_axis(axes, [bound for found in accuracies for bound in (found.low, found.high)])
    return _svg(axes, in_page=False)


@mpl.rc_context(_STYLE)
def error_by_images(points: Sequence[Point], law: PowerLaw, forecast: Sequence[Point], in_page: bool = False) -> Markup:
    """Errors with 95 % intervals by number of training images, the law, and what it forecasts: a file, or in a page."""
    axes = _chart("Error, 95 % interval", wide=not in_page, xlabel="images trained on, dashed: forecast")
    images = [point.images for point in (*points, *forecast)]
    for some, colour in ((points, FIRST), (forecast, SECOND)):
        errors = [point.error for point in some]
        reach = [[max(0.0, p.error - p.low) for p in some], [max(0.0, p.high - p.error) for p in some]]
        axes.errorbar([p.images for p in some], errors, reach, color=colour, marker="o", capsize=3, linestyle="none")
    most = points[-1].images
    inside, beyond = np.geomspace(min(images), most, 50), np.geomspace(most, max(images), 50)
    axes.plot(inside, law.at(inside), color=FIRST)
    axes.plot(beyond, law.at(beyond), color=SECOND, linestyle="dashed")
    _log_scale(axes)
    axes.set_ylim(bottom=0)
    return _svg(axes, in_page)


@mpl.rc_context(_STYLE)
def risk_coverage(curve: RiskCoverage) -> Markup:
    """Error among the most confident images, by the fraction of the images that these are."""
    axes = _chart("Error among the answered", xlabel="fraction of the images answered")
    axes.plot(curve.coverage, curve.risk, color=SECOND)
    top = max(1.05 * curve.risk.max(), _least_range(len(curve.risk)) / 2)
    axes.set(xlim=(0, 1), ylim=(0, min(1, top)))
    axes.xaxis.set_major_formatter(_PERCENT)
    return _svg(axes)


@mpl.rc_context(_STYLE)
def p_value_curve(p_values: np.ndarray) -> Markup:
    """An SVG file: fraction of images with a p-value of at most so much; the diagonal is of images like training's."""
    axes = _chart("Images with a p-value of at most p", xlabel="p (above the diagonal: drift)")
    rising = np.sort(p_values)
    axes.plot((0, 1), (0, 1), color=INK, lw=0.8, ls="--", label="like the training images")
    heights = [0, *np.arange(1, len(rising) + 1) / len(rising), 1]
    axes.step([0, *rising, 1], heights, color=SECOND, where="post", label="these images")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    return _svg(axes, in_page=False)


def _least_range(images: float) -> float:
    """Of an axis of accuracies of so many images, so that one image is a tenth of it at most."""
    return min(1.0, max(_LEAST_RANGE, _LEAST_IMAGES / images))


def _accuracy_axis(axes: Axes, accuracies: Sequence[float] | np.ndarray, images: float = math.inf) -> None:
    """From 0 to 100 % at most; not so narrow that one of `images` looks like a cliff."""
    low, high = min(accuracies), max(accuracies)
    span = min(1.0, max(_least_range(images), 1.1 * (high - low)))
    start = min(max((low + high - span) / 2, 0.0), 1 - span)
    axes.set_ylim(start, start + span)


def _chart(title: str, percent: bool = True, wide: bool = False, **settings: Any) -> Axes:
    """An empty chart; `settings` are those of `Axes.set`."""
    axes: Axes = Figure(figsize=(_WIDTH * (2 if wide else 1), _HEIGHT), layout="constrained").subplots()
    axes.set(title=title, **settings)
    if percent:
        axes.yaxis.set_major_formatter(_PERCENT)
    return axes


def _svg(axes: Axes, in_page: bool = True) -> Markup:
    """The drawing alone, in the page's colours or its own, no wider than there is room; the same each time."""
    figure, title = axes.get_figure(root=True), axes.get_title()
    assert figure is not None
    for patch in (figure.patch, axes.patch):
        patch.set_alpha(0 if in_page else 1)
    axes.set_axisbelow(True)
    target = StringIO()
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in (_IN_PAGE if in_page else _IN_FILE).items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every drawing, and nothing refers to them
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)  # its style would be the whole page's
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return Markup(text)  # noqa: S704  # matplotlib's own, which escapes what it is given
