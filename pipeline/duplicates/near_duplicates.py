"""Near-duplicates: images of a set that show the same picture, by features that a mirror or a shift hardly changes.

Features are means over regions that are symmetric from left to right, standardised, whitened by the covariance of
channels, and of unit length. No label takes part. The threshold is calibrated on the cache itself, on labelled images:
unlabelled ones are compared, and change neither the features nor the threshold.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.index import ImageRecord, SetIndex
from cache.keys import RowKey
from cache.layout import CLEAN_VIEW, pass_view
from cache.store import FeatureCache
from pipeline.bases.basis import Basis, Mix, Regions, Scale
from pipeline.bases.reduced import sees_labels
from pipeline.config.heads import WIDEST
from pipeline.console import counted
from pipeline.duplicates.threshold import MOST_FALSE, Threshold, false_alarms
from pipeline.errors import ConfigError
from pipeline.row_layout import RowLayout
from pipeline.statistics.groups import Groups, join

MOST_COMPARED = 30_000  # images, each with each: some minutes
NEAREST = 10  # pairs that are kept of each image: a thousand frames of one scene have half a million
MOST_CALIBRATED = 8192  # images that the threshold is calibrated on
_DETECTED = 2048  # augmented views that the detection rate is measured on
_HELD = 32_768  # images whose features are in memory at once, a multiple of _BLOCK
_BLOCK = 1024
_PAIR = np.dtype([("a", "i8"), ("b", "i8"), ("cosine", "f4")])  # places of two images
_SHRINKAGE = 0.1  # times the mean variance of a channel

Pairs = npt.NDArray[Any]  # (P,) of _PAIR
Link = tuple[float, ImageRecord, ImageRecord]  # the cosine of two files


@dataclass(frozen=True)
class Pair:
    """Two files, the cosine of their features (1.0 where their bytes are the same), labels ("" for none) and splits."""

    a: str
    b: str
    cosine: float
    identical: bool
    labels: tuple[str, str]
    splits: tuple[str, str]

    @property
    def labels_differ(self) -> bool:
        """Whether both have a label, and another one."""
        return len({*self.labels} - {""}) > 1

    def __str__(self) -> str:
        same = "the same file" if self.identical else f"cosine {self.cosine:.4f}"
        labels = f"label {self.labels[0]!r}"
        if self.labels_differ:
            labels = f"LABELS {self.labels[0]!r} and {self.labels[1]!r}"
        elif not all(self.labels):
            labels = " and ".join(f"label {label!r}" if label else "unlabelled" for label in self.labels)
        return f"duplicate      {same}, {labels}: {self.a} and {self.b}"


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates of a set.

    Attributes:
        pairs: identical files, and of each image at most the `NEAREST` others; different labels first, then by cosine.
        threshold: what counts as a near-duplicate, with its rates.
        groups: images joined by these pairs.
    """

    pairs: list[Pair]
    threshold: Threshold
    groups: Groups

    def in_words(self) -> str:
        """A line on the threshold, and one for each pair."""
        found = f"near-duplicates {counted(len(self.pairs), 'pair')}; {self.threshold}"
        return "\n".join([found, *map(str, self.pairs)])


def near_duplicates(cache: FeatureCache, index: SetIndex, threshold: float | None = None) -> NearDuplicates:
    """Compare all images of the set with each other; `threshold` is a cosine, calibrated where it is None.

    N² R multiplications, R being 4 channels of a map; at most `_HELD` rows (R,) are in memory.
    Raises ConfigError for a threshold that is not a cosine, MissingRows where clean rows are missing.
    """
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"--threshold is {threshold}, expected a cosine from -1 to 1")
    contents = sorted({image.digest: image for image in index.images}.values(), key=lambda image: image.digest)
    labelled = [image for image in contents if image.label]
    if len(contents) < 2:
        return identical_files(index)
    sample = (labelled or contents)[:MOST_CALIBRATED]  # those of the lowest digests: a random choice
    basis, units = _fitted(cache, sample)
    alarms = false_alarms(units, torch.from_numpy(index.labels(sample))) if labelled else None
    of_class = Counter(image.label for image in labelled)
    pairs_of_set = (len(labelled) ** 2 - sum(count**2 for count in of_class.values())) // 2  # of different classes
    cosine = threshold if threshold is not None or alarms is None else alarms.cosine(MOST_FALSE / pairs_of_set)
    if cosine is None:
        return identical_files(index)
    # Labels that took part in a reduction have set classes apart: pairs of different images are more alike elsewhere.
    rate = alarms.rate(cosine) if alarms and not sees_labels(cache) else None
    expected = rate * pairs_of_set if rate is not None else None
    chosen = Threshold(cosine, rate, expected, _detection_rate(cache, index, basis, cosine))
    pairs = _close(_reader(cache, contents, basis, units), len(contents), cosine)
    return _found(index, [*_identical(index.images), *_files(index.images, contents, pairs)], chosen)


def find_duplicates(cache: FeatureCache, index: SetIndex) -> NearDuplicates:
    """Near-duplicates of a set, at the calibrated threshold; of more than `MOST_COMPARED` images identical files alone.

    Whatever gives an accuracy of a run an interval takes its groups from here, so that it is the same everywhere.
    """
    return near_duplicates(cache, index) if len(index.images) <= MOST_COMPARED else identical_files(index)


def identical_files(index: SetIndex) -> NearDuplicates:
    """Files with identical bytes alone, for sets too large to compare all images."""
    return _found(index, list(_identical(index.images)), Threshold())


def _found(index: SetIndex, links: Sequence[Link], threshold: Threshold) -> NearDuplicates:
    pairs = [
        Pair(a.path, b.path, cosine, a.digest == b.digest, (a.label, b.label), (a.split, b.split))
        for cosine, a, b in links
    ]
    pairs.sort(key=lambda pair: (not pair.labels_differ, -pair.cosine, pair.a, pair.b))
    near = [(cosine, a.digest, b.digest) for cosine, a, b in links if a.digest != b.digest]
    return NearDuplicates(pairs, threshold, join(index.images, near))


def _identical(images: Sequence[ImageRecord]) -> Iterator[Link]:
    """Each file with those of the same bytes that follow it, at most `NEAREST` of them."""
    ordered = sorted(images, key=lambda image: (image.digest, image.path))
    for _, same in groupby(ordered, key=lambda image: image.digest):
        copies = list(same)
        for number, image in enumerate(copies):
            yield from ((1.0, image, other) for other in copies[number + 1 : number + 1 + NEAREST])


def _regions(layout: RowLayout) -> Basis:
    """Means over the map, its upper and lower half and its centre, each with its mirror image; other rows as is."""
    if layout.grid is None:
        return Basis("", ())
    weights = torch.from_numpy(layout.region_weights("pyramid"))
    mirrored = weights.clone()
    on_map = weights[layout.vectors :].view(*layout.grid, -1)  # (height, width, K)
    mirrored[layout.vectors :] = (on_map + on_map.flip(1)).flatten(0, 1) / 2
    return Basis("", (Regions(torch.unique(mirrored, dim=1)),))  # left and right quadrants have become the same


def _fitted(cache: FeatureCache, images: Sequence[ImageRecord]) -> tuple[Basis, Tensor]:
    """The features, fitted on the clean views of `images`, and these in them (N, R), each of length 1."""
    layout = RowLayout.of(cache.row_shape, cache.manifest.base.layer)
    start, channels = _regions(layout), layout.channels
    rows = _rows(cache, [(image.key, CLEAN_VIEW) for image in images], start)
    deviation = rows.std(0, correction=0)
    scale = Scale(rows.mean(0), deviation + 0.1 * deviation.mean() + 1e-6)  # nearly constant features stay small
    rows = scale.apply(rows)
    basis = Basis("", (*start.stages, scale))
    if channels <= WIDEST:
        vectors = rows.view(-1, channels)
        covariance = (vectors.T @ vectors / len(vectors)).double()
        covariance.diagonal().add_(_SHRINKAGE * covariance.diagonal().mean() + 1e-6)
        mix = Mix(torch.linalg.inv(torch.linalg.cholesky(covariance)).T.float().contiguous())
        basis, rows = Basis("", (*basis.stages, mix)), mix.apply(rows)
    return basis, normalize(rows, dim=1)


def _rows(cache: FeatureCache, keys: Sequence[RowKey], basis: Basis) -> Tensor:
    """Rows of `keys` in a basis, (N, R)."""
    rows = torch.empty(len(keys), basis.out_features(cache.in_features))
    for positions, block in cache.blocks(keys):
        rows[torch.from_numpy(positions)] = basis.apply(block)
    return rows


Read = Callable[[slice], Tensor]  # of some images, features of length 1 (n, R)


def _reader(cache: FeatureCache, images: Sequence[ImageRecord], basis: Basis, first: Tensor) -> Read:
    """Of `images`, the first of which are in memory."""
    if len(images) == len(first):
        return lambda some: first[some]
    keys = [(image.key, CLEAN_VIEW) for image in images]
    return lambda some: normalize(_rows(cache, keys[some], basis), dim=1)


def _detection_rate(cache: FeatureCache, index: SetIndex, basis: Basis, cosine: float) -> float | None:
    """Fraction of augmented views that are recognised by their image; None where there are none."""
    images = sorted(index.split("train"), key=lambda image: image.digest)[:_DETECTED]
    if not images or not cache.complete_passes(index):
        return None
    clean, seen = (
        normalize(_rows(cache, [(image.key, view) for image in images], basis), dim=1)
        for view in (CLEAN_VIEW, pass_view(1))
    )
    return float(((clean * seen).sum(1) >= cosine).double().mean())


def _close(read: Read, count: int, least: float) -> Pairs:
    """Pairs of `count` images with at least this cosine, of each image the `NEAREST`."""
    found = np.empty(0, _PAIR)
    for first in range(0, count, _HELD):
        held = read(slice(first, first + _HELD))
        for start in range(first, count, _BLOCK):
            inside = start < first + len(held)
            right = held[start - first :][:_BLOCK] if inside else read(slice(start, start + _BLOCK))
            for place in range(first, min(start + 1, first + len(held)), _BLOCK):
                cosines = held[place - first :][:_BLOCK] @ right.T
                rows, columns = (cosines >= least - 1e-6).nonzero(as_tuple=True)
                some = np.empty(len(rows), _PAIR)
                some["a"], some["b"], some["cosine"] = place + rows, start + columns, cosines[rows, columns]
                found = np.concatenate([found, some[some["a"] < some["b"]]])
            found = _nearest(found)
    return found


def _nearest(pairs: Pairs) -> Pairs:
    """Those that are among the `NEAREST` of one of their images or of both."""
    ends, numbers = np.concatenate([pairs["a"], pairs["b"]]), np.tile(np.arange(len(pairs)), 2)
    order = np.lexsort((-pairs["cosine"][numbers], ends))
    first = np.searchsorted(ends[order], ends[order])  # of the same image
    near: Pairs = pairs[np.unique(numbers[order][np.arange(len(order)) - first < NEAREST])]
    return near


def _files(images: Sequence[ImageRecord], contents: Sequence[ImageRecord], pairs: Pairs) -> Iterator[Link]:
    """The pairs of `contents` as pairs of files, of each content at most `NEAREST`."""
    files: dict[str, list[ImageRecord]] = {}
    for image in images:
        files.setdefault(image.digest, []).append(image)
    for a, b, cosine in pairs.tolist():
        ends = (files[contents[place].digest][:NEAREST] for place in (a, b))
        for pair in product(*ends):
            first, second = sorted(pair, key=lambda image: image.path)
            yield cosine, first, second
