"""How well label issues find wrong labels, under four kinds of noise: `make bench-labels CACHE=features`.

5 % of the training and validation labels are changed: `uniform`, to any other class; `similar`, to the class with the
most similar mean; `burst`, images of one class and their nearest all to one wrong class; `imbalanced`, uniform after
the classes are cut to a long tail. Labels of the set are taken as correct, so that its own errors count as mistakes.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from beside import hardware, say

from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.bases.clean_rows import clean_rows, narrow
from pipeline.duplicates.near_duplicates import near_duplicates
from pipeline.labelling.label_issues import label_issues

SHARE = 0.05  # of the labels
BURST = 8  # images
MOST, FEWEST = 100, 6  # images of the largest and the smallest class of the long tail
FIRST = 20  # of the list, for precision

Labels = npt.NDArray[np.int64]
DropoutMask = Callable[[Labels, np.random.Generator], Labels]


class Noises:
    """Kinds of noise for images with features (N, R) and `classes` classes; each takes labels and returns others."""

    def __init__(self, features: npt.NDArray[np.float32], classes: int) -> None:
        scaled = (features - features.mean(0)) / (features.std(0) + 1e-6)
        self._units = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        self._classes = classes

    def uniform(self, labels: Labels, generator: np.random.Generator) -> Labels:
        """Any other class."""
        wrong, changed = _chosen(labels, generator), labels.copy()
        changed[wrong] = (labels[wrong] + generator.integers(1, self._classes, len(wrong))) % self._classes
        return changed

    def similar(self, labels: Labels, generator: np.random.Generator) -> Labels:
        """The class whose mean has the largest cosine."""
        means = np.stack([self._units[labels == one].mean(0) for one in range(self._classes)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        cosines = means @ means.T
        np.fill_diagonal(cosines, -2)
        wrong, changed = _chosen(labels, generator), labels.copy()
        changed[wrong] = cosines.argmax(1)[labels[wrong]]
        return changed

    def burst(self, labels: Labels, generator: np.random.Generator) -> Labels:
        """An image and its nearest of the same class, all one wrong class; as many times as it takes."""
        changed = labels.copy()
        while (changed != labels).sum() < round(SHARE * len(labels)):
            first = generator.choice(np.flatnonzero(changed == labels))
            same = np.flatnonzero((changed == labels) & (labels == labels[first]))
            nearest = same[np.argsort(-(self._units[same] @ self._units[first]), kind="stable")[:BURST]]
            changed[nearest] = (labels[first] + generator.integers(1, self._classes)) % self._classes
        return changed


def _chosen(labels: Labels, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    return generator.choice(len(labels), round(SHARE * len(labels)), replace=False)


def long_tail(labels: Labels, classes: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places of the images that stay: of class after class, in a random order, fewer by the same factor."""
    sizes = np.round(np.geomspace(MOST, FEWEST, classes)).astype(int)[generator.permutation(classes)]
    kept = [generator.permutation(np.flatnonzero(labels == one))[: sizes[one]] for one in range(classes)]
    return np.sort(np.concatenate(kept))


def cases(cache: FeatureCache, index: SetIndex, seed: int) -> dict[str, tuple[SetIndex, set[str]]]:
    """By kind of noise: the set with changed labels, and the paths of the images that have them."""
    rows = clean_rows(cache, index, narrow(cache), "train", "valid")
    features, labels = np.empty((len(rows.images), rows.width), np.float32), rows.labels.numpy()
    for block, places in rows:
        features[places.numpy()] = block.numpy()
    found = {}
    for name in ("uniform", "similar", "burst", "imbalanced"):
        generator = np.random.default_rng(seed)
        kept = np.arange(len(labels))
        if name == "imbalanced":
            kept = long_tail(labels, len(index.classes), generator)
        noises = Noises(features[kept], len(index.classes))
        noise: DropoutMask = noises.uniform if name == "imbalanced" else getattr(noises, name)
        changed = noise(labels[kept], generator)
        images = [rows.images[place] for place in kept.tolist()]
        wrong = {images[place].path for place in np.flatnonzero(changed != labels[kept]).tolist()}
        shown = (replace(one, label=index.classes[new]) for one, new in zip(images, changed.tolist(), strict=True))
        found[name] = replace(index, images=tuple(shown)), wrong
    return found


def scored(listed: Sequence[str], wrong: set[str]) -> dict[str, float]:
    """Of the paths in a list of label issues, the most likely first."""
    right = [path in wrong for path in listed]
    return {
        "wrong": len(wrong),
        "precision_at_wrong": sum(right[: len(wrong)]) / len(wrong),
        f"precision_at_{FIRST}": sum(right[:FIRST]) / FIRST,
        "recall": sum(right) / len(wrong),
        "length": len(listed),
    }


def listed_by(cache: FeatureCache, index: SetIndex) -> list[str]:
    """Paths of the set's label issues, in their order."""
    groups = near_duplicates(cache, index).groups
    return [issue.image.path for issue in label_issues(cache, index, groups).found]


def measured(
    cache: FeatureCache, index: SetIndex, seeds: int, lister: Callable[[FeatureCache, SetIndex], list[str]] = listed_by
) -> dict[str, list[dict[str, float]]]:
    """By kind of noise, the scores of each seed."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        for name, (changed, wrong) in cases(cache, index, seed).items():
            found.setdefault(name, []).append(scored(lister(cache, changed), wrong))
            say(f"{name}, seed {seed}: {found[name][-1]}")
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means and standard deviations over the seeds, as Markdown."""
    names = list(next(iter(found.values()))[0])
    lines = ["| noise | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for kind, scores in found.items():
        cells = [_cell(name, [one[name] for one in scores]) for name in names]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, values: list[float]) -> str:
    if name in ("wrong", "length"):
        return f"{np.mean(values):.0f} ± {np.std(values):.0f}"
    return f"{np.mean(values):.1%} ± {100 * np.std(values):.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--set", dest="name", help="image set")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    cache = FeatureCache.open(options.cache)
    found = measured(cache, cache.index(options.name), options.seeds)
    result: dict[str, Any] = {"backbone": cache.manifest.base.backbone, "hardware": hardware(), "noises": found}
    print(json.dumps(result))
    print(table(found))


if __name__ == "__main__":
    main()
