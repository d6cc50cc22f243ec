"""Which score tells images of classes that a head never saw, and images of other things, from known ones.

`make bench-unknown CACHE=features ARGS="--set flowers102 --passes 1 --unknown others"`. A fifth of the classes is left
out of training, a few times over; the others' validation images are known, all images of the left-out classes are near
unknown ones, those of the cache `--unknown` (any set, its labels name the kinds) are others. Each line: area under the
ROC curve for each kind, and the fraction flagged at 1 and 5 % false alarms. Nothing is chosen on test images.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from beside import hardware, say
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.trainset import TrainingSet
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import default_epochs
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.machine.device import available_cpus
from pipeline.search.choice import default_settings
from pipeline.unknown import detector
from pipeline.unknown.detector import Distance, log_odds, scale_of, unlikeness
from pipeline.unknown.fitting import moments_of, pooled_rows

MEMORY = 16 << 30
ALARMS = (0.01, 0.05)
Found = dict[str, dict[str, list[float]]]


def scores_of(
    rows: Tensor, logits: Tensor, trained: Tensor, labels: Tensor, known: Tensor, classes: int
) -> dict[str, Tensor]:
    """Every score tried, (N,) each, of pooled rows (N, R) and logits (N, C); `known` says whose scale counts."""
    moments = moments_of(trained, labels, classes)
    distances = {}
    for directions, shrinkage in ((128, 0.1), (256, 0.1), (128, 0.001), (512, 0.1)):
        detector.DIRECTIONS, detector.SHRINKAGE = directions, shrinkage
        distances[f"{directions} directions, shrinkage {shrinkage}"] = Distance.of(moments)
    chosen = next(iter(distances.values()))
    projected = (rows - chosen.mean) @ chosen.projection
    nearest = torch.cdist(projected, chosen.class_means).square().amin(1)
    neighbours = torch.cdist(rows, trained).topk(10, largest=False).values[:, -1]
    found = {
        "- log-odds of the largest probability": -log_odds(logits),
        "- largest logit": -logits.amax(1),
        "energy": -logits.logsumexp(1),
        "10th nearest neighbour": neighbours,
        "Mahalanobis distance": nearest,
    }
    for name, distance in distances.items():
        of_rows = distance.of_rows(rows)
        found[f"relative Mahalanobis, {name}"] = of_rows
        scale = scale_of(of_rows[known], logits[known])
        for detector.WEIGHT in (1.0, 2.0, 3.0):
            found[f"  and {detector.WEIGHT:g} log-odds, {name}"] = unlikeness(of_rows, logits, scale)
        top = (of_rows, -logits.amax(1))
        found[f"  and largest logit, {name}"] = torch.stack([standardised(one, known) for one in top]).sum(0)
    return found


def standardised(score: Tensor, known: Tensor) -> Tensor:
    """By mean and deviation over the known images."""
    return (score - score[known].mean()) / score[known].std()


def add(found: Found, kinds: np.ndarray, scores: dict[str, Tensor]) -> None:
    """Areas and flagged fractions of one draw; the kind "" is of known images."""
    for name, score in scores.items():
        values = score.double().numpy()
        known = values[kinds == ""]
        for kind in sorted(set(kinds) - {""}):
            some = values[kinds == kind]
            truth = np.repeat([0, 1], [len(known), len(some)])
            area = roc_auc_score(truth, np.concatenate([known, some]))
            flagged = [float((some > np.quantile(known, 1 - alarms)).mean()) for alarms in ALARMS]
            for key, value in zip((kind, f"{kind} 1", f"{kind} 5"), (area, *flagged), strict=True):
                found.setdefault(name, {}).setdefault(key, []).append(value)


def main() -> None:
    """Train, score, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set")
    parser.add_argument("--passes", type=int)
    parser.add_argument("--unknown", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=5)
    asked = parser.parse_args()
    print(hardware(), flush=True)
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(asked.cache, asked.set, asked.passes)
    images, settings = trainset.index.split("train", "valid"), default_settings(trainset)
    rows, pooled = ImageRows.load(trainset, images, settings.basis, MEMORY), pooled_rows(trainset.cache, images)
    others = FeatureCache.open(asked.unknown)
    strangers = others.index().images
    of_others = torch.empty(len(strangers), rows.rows.shape[1])
    for positions, block in others.blocks([(image.key, CLEAN_VIEW) for image in strangers], 256):
        of_others[torch.from_numpy(positions)] = rows.start.apply(block)
    pooled_others = pooled_rows(others, strangers)
    validated = torch.tensor([image.split == "valid" for image in images])
    generator, found, right = np.random.default_rng(0), Found(), []
    for draw in range(asked.draws):
        left_out = generator.permutation(rows.num_classes)[: round(rows.num_classes / 5)]
        unknown = torch.isin(rows.labels, torch.from_numpy(left_out))
        trained, held_out = (~unknown & ~validated).nonzero().flatten(), (unknown | validated).nonzero().flatten()
        basis = rows.basis(trained)
        data = rows.data(basis, trained, held_out)
        steps = steps_of(data, settings, default_epochs(len(trained), settings.batch_size))
        head = fit_side_by_side([data], settings, [steps], [draw])[0]
        rest = Basis("", basis.stages[len(rows.start.stages) :])
        kept = [place for place in range(rows.num_classes) if place not in set(left_out.tolist())]
        with torch.inference_mode():
            logits = torch.cat([head[:-1](some) for some in (data.rows[data.valid_rows], rest.transform(of_others))])
        near = np.where(unknown[held_out].numpy(), "left-out classes", "")
        kinds = np.concatenate([near, [image.label for image in strangers]])
        known = torch.from_numpy(kinds == "")
        truth = rows.labels[held_out][known[: len(held_out)]]
        right.append(float((logits[known].argmax(1) == truth).double().mean()))
        every = torch.cat([pooled[held_out], pooled_others])
        add(
            found,
            kinds,
            scores_of(every, logits[:, kept], pooled[trained], rows.labels[trained], known, rows.num_classes),
        )
    say(f"accuracy on the kept classes {np.mean(right):.2%}")
    report(found)


def report(found: Found) -> None:
    """One line a score, the best on left-out classes first."""
    mean: Callable[[str, str], float] = lambda name, key: float(np.mean(found[name][key]))  # noqa: E731
    kinds = [key for key in next(iter(found.values())) if key[-2:] not in (" 1", " 5")]
    for name in sorted(found, key=lambda name: -mean(name, "left-out classes")):
        shown = [
            f"{kind} {mean(name, kind):.3f} ({mean(name, f'{kind} 1'):.0%}, {mean(name, f'{kind} 5'):.0%})"
            for kind in kinds
        ]
        say(f"{name:58} {', '.join(shown)}")


if __name__ == "__main__":
    main()
