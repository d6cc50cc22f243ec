"""Whether promises are kept: thresholds over re-divisions, false alarms, sets, and evidence against deletion.

`make bench-abstaining CACHE=features ARGS="--set flowers102 --model model.safetensors"`. Needs the predictions of `cv`
in the cache, and a model exported with `--max-error` or not.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from beside import hardware, say
from scipy.stats import beta
from torch import Tensor

from cache.index import SetIndex
from cache.layout import CLEAN_VIEW, PREDICTION_FOLDER
from cache.store import FeatureCache
from pipeline.cross_validation.predictions import OutOfFold
from pipeline.evidence.attribution import evidence_of
from pipeline.heads.head import Head
from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_model
from pipeline.row_layout import RowLayout
from pipeline.statistics import selective
from pipeline.statistics.conformal import Places, in_sets, quantile, set_thresholds
from pipeline.statistics.selective import Answered, answered_at, fit_threshold
from pipeline.unknown.detector import pooled

DIVISIONS, CONFIDENCE = 200, 0.95
STEPS = (1, 2, 4, 8, 16, 32)  # cells that are deleted


def thresholds(found: OutOfFold) -> None:
    """How often the error among the answered exceeds what was promised, over `DIVISIONS` draws of calibrating images.

    The promise is of the error over all images to come. So calibrating images are drawn with replacement, and judged on
    all images, which are those to come then. Judged on a part that was held out, the error of that part has a chance of
    its own: with two halves, a promise that just holds is exceeded in 12 % of divisions.
    """
    probabilities = np.exp(found.log_probs[0].astype(np.float64))
    sureness, hits = probabilities.max(1), found.hits[0]
    groups = np.unique(found.groups, return_inverse=True)[1]
    every = np.arange(len(hits))

    def drawn(generator: np.random.Generator) -> tuple[Places, Places]:
        return generator.choice(every, len(every)), every

    def divided(share: float, generator: np.random.Generator) -> tuple[Places, Places]:
        some = generator.random(groups.max() + 1)[groups] < share
        return every[some], every[~some]

    ways: dict[str, Callable[[np.random.Generator], tuple[Places, Places]]] = {
        "all images": drawn,
        "nine tenths": partial(divided, 0.1),
        "the other half": partial(divided, 0.5),
    }
    for error in (0.01, 0.02, 0.05):
        for judge, divide in ways.items():
            broken, answered, generator = 0, [], np.random.default_rng(0)
            for _ in range(DIVISIONS):
                fitting, judging = divide(generator)
                fitted = fit_threshold(sureness[fitting], hits[fitting], error, CONFIDENCE)
                if not isinstance(fitted, Answered):
                    answered.append(0.0)
                    continue
                judged = answered_at(sureness[judging], hits[judging], fitted.threshold)
                broken += judged.error > error
                answered.append(judged.answered / len(judging))
            none = answered.count(0.0) / DIVISIONS
            say(
                f"at most {error:.0%} wrong, judged on {judge}: exceeded in {broken / DIVISIONS:.1%} of {DIVISIONS}, "
                f"answered {np.mean(answered):.1%}, no threshold in {none:.1%}"
            )


def starts(found: OutOfFold) -> None:
    """Images answered, on average over 60 draws, by how many errors the first threshold tested may have."""
    sureness, hits = np.exp(found.log_probs[0].astype(np.float64)).max(1), found.hits[0]
    for images, error in ((818, 0.02), (2000, 0.01), (6500, 0.01)):
        shown = []
        for forgiven in (0, 1, 2, 4):
            selective._FORGIVEN, generator, answered = forgiven, np.random.default_rng(1), []
            for _ in range(60):
                some = generator.choice(len(hits), images, replace=False)
                fitted = fit_threshold(sureness[some], hits[some], error, CONFIDENCE)
                answered.append(fitted.answered / images if isinstance(fitted, Answered) else 0.0)
            shown.append(f"{forgiven}: {np.mean(answered):.0%}")
        say(f"{images} images, at most {error:.0%} wrong, answered by errors forgiven {', '.join(shown)}")
    selective._FORGIVEN = 2


def sets(found: OutOfFold) -> None:
    """Coverage and size of sets, thresholds of one or several clusters fitted on a half of the images by groups."""
    groups, truth = np.unique(found.groups, return_inverse=True)[1], found.labels
    log_probs = found.log_probs[0].astype(np.float64)
    scores = 1 - np.exp(log_probs[np.arange(len(truth)), truth])
    for coverage in (0.9, 0.95, 0.99):
        for kind in ("one threshold", "clusters"):
            covered, sizes, worst, generator = [], [], [], np.random.default_rng(0)
            for _ in range(20):
                half = generator.random(groups.max() + 1)[groups] < 0.5
                third = generator.random(int(half.sum())) < 1 / 3
                least = np.full(log_probs.shape[1], 1 - quantile(scores[half], coverage))
                if kind == "clusters":
                    least = set_thresholds(log_probs[half], truth[half], coverage, third)
                inside, labels = in_sets(log_probs[~half], least), truth[~half]
                held = inside[np.arange(len(labels)), labels]
                of_class = np.sort([held[labels == one].mean() for one in np.flatnonzero(np.bincount(labels) >= 15)])
                covered.append(held.mean())
                sizes.append(inside.sum(1).mean())
                worst.append(of_class[: len(of_class) // 10].mean())
            say(
                f"sets for {coverage:.0%}, {kind}: {np.mean(covered):.1%} hold the true class, {np.mean(sizes):.2f} "
                f"classes, {np.mean(worst):.0%} of the worst tenth of the classes"
            )


def test_rows(cache: FeatureCache, index: SetIndex) -> Tensor:
    """Of the test images, (N, D)."""
    images = index.split("test")
    rows = torch.empty(len(images), cache.in_features)
    for positions, block in cache.blocks([(image.key, CLEAN_VIEW) for image in images]):
        rows[torch.from_numpy(positions)] = torch.from_numpy(block.astype(np.float32))
    return rows


def false_alarms(bundle: Bundle, rows: Tensor) -> None:
    """How many known test images a detector flags, with exact 95 % intervals."""
    assert bundle.detector is not None
    p_values = bundle.detector.p_values(pooled(bundle.layout, rows), bundle.head(rows))
    for alarms in (0.01, 0.05):
        flagged, count = int((p_values < alarms).sum()), len(p_values)
        low, high = beta.ppf((0.025, 0.975), (flagged, flagged + 1), (count - flagged + 1, count - flagged))
        say(f"false alarms at {alarms:.0%}: {flagged} of {count}, {flagged / count:.2%} ({low:.2%} to {high:.2%})")


def evidence(bundle: Bundle, rows: Tensor) -> None:
    """Exactness, seconds, deletion of cells in order of evidence and at random, and a head of random weights."""
    mean, layout, head = bundle.mean_row, bundle.layout, bundle.head
    assert mean is not None
    start = time.perf_counter()
    found = evidence_of(head, rows, mean, layout)
    seconds = (time.perf_counter() - start) / len(rows)
    top = head(rows).topk(2).values
    apart = (top[:, 0] - top[:, 1]).double()
    sums = torch.tensor([float(one.cells.sum()) + one.constant for one in found], dtype=torch.float64)
    say(f"evidence: |cells + constant - logit difference| at most {float((sums - apart).abs().max()):.1e}")
    start = time.perf_counter()
    evidence_of(head, rows[:1], mean, layout)
    say(f"{1000 * seconds:.1f} ms an image of {len(rows)}, {1000 * (time.perf_counter() - start):.0f} ms of one alone")
    pairs = torch.tensor([[one.label, one.against] for one in found])
    cells = torch.stack([one.cells.flatten() for one in found])
    orders = {
        "in order of evidence": cells.argsort(1, descending=True),
        "at random": torch.rand(cells.shape).argsort(1),
    }
    for name, order in orders.items():
        left = [float(margins(head, deleted(rows, mean, layout, order[:, :count]), pairs).mean()) for count in STEPS]
        shown = ", ".join(f"{count}: {value:.2f}" for count, value in zip(STEPS, left, strict=True))
        say(f"logit difference {float(apart.mean()):.2f}, of cells deleted {name}: {shown}")
    other = Head.new(head.in_features, head.hidden_units, head.num_classes, generator=torch.Generator().manual_seed(0))
    random = torch.stack([one.cells.flatten() for one in evidence_of(other.eval(), rows, mean, layout, pairs)])
    alike = [float(torch.corrcoef(torch.stack(both))[0, 1]) for both in zip(cells, random, strict=True)]
    say(f"correlation with the maps of a head of random weights: {np.mean(alike):+.3f} on average")


def deleted(rows: Tensor, mean: Tensor, layout: RowLayout, order: Tensor) -> Tensor:
    """Rows whose cells at these places (N, K) are those of the mean image."""
    maps = rows.view(len(rows), layout.channels, layout.positions)
    places = (order + layout.vectors)[:, None, :].expand(-1, layout.channels, -1)
    return maps.scatter(2, places, mean.view(1, *maps.shape[1:]).expand_as(maps).gather(2, places)).flatten(1)


def margins(head: Head, rows: Tensor, pairs: Tensor) -> Tensor:
    """Logit of the first class of each pair less that of the second, (N,)."""
    found: Tensor = head(rows).gather(1, pairs)
    return found[:, 0] - found[:, 1]


@torch.inference_mode()
def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set")
    parser.add_argument("--model", type=Path, required=True)
    asked = parser.parse_args()
    print(hardware(), flush=True)
    torch.set_num_threads(available_cpus())
    cache = FeatureCache.open(asked.cache)
    index, bundle = cache.index(asked.set), load_model(asked.model)
    found = OutOfFold.load(cache.path / PREDICTION_FOLDER / f"{index.name}.npz")
    thresholds(found)
    starts(found)
    sets(found)
    rows = test_rows(cache, index)
    false_alarms(bundle, rows)
    evidence(bundle, rows)


if __name__ == "__main__":
    main()
