"""Features of a cache as plain arrays, for scikit-learn and whatever else takes a matrix and labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache import layout
from cache.index import UNLABELLED
from cache.keys import RowKey
from cache.store import FeatureCache
from pipeline.bases.data import ROWS_AT_ONCE
from pipeline.bases.fit import start_basis
from pipeline.basis_name import REGIONS
from pipeline.duplicates.near_duplicates import find_duplicates
from pipeline.errors import ConfigError
from pipeline.row_layout import RowLayout
from pipeline.statistics.groups import join

_SPLITS = ("train", "valid", "test", UNLABELLED)


@dataclass(frozen=True, repr=False)
class Features:
    """Features of the images of a set, a row each; of training images, augmented passes follow the clean views.

    Attributes:
        X: features (N, D), float32.
        y: labels (N,), int64: places in `classes`; -1 of an unlabelled image.
        classes: names of the classes, in the order of a head's outputs.
        paths: paths of the images (N,), from the root of the set, which of a CSV file is its folder.
        digests: SHA-256 of the image files (N,).
        splits: train, valid, test or unlabelled (N,).
        groups: group of each image (N,), for GroupKFold: identical files, images of one group of the set, and with
            `group_near_duplicates` near-duplicates have the same, which is the path of one of them.
        passes: augmented pass of each row (N,), 0 for the clean view.
    """

    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    paths: npt.NDArray[np.str_]
    digests: npt.NDArray[np.str_]
    splits: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    passes: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        rows, features = self.X.shape
        splits = " and ".join(dict.fromkeys(self.splits.tolist()))
        return f"Features(X: {rows} x {features} of {splits}, {len(self.classes)} classes)"


def load_features(
    cache: str | Path,
    split: str = "train",
    set: str | None = None,
    regions: str = "full",
    passes: int = 0,
    group_near_duplicates: bool = False,
) -> Features:
    """Features of one `split` of a set as they are in the cache, with the labels given by hand.

    Args:
        cache: folder of the feature cache.
        split: train, valid, test or unlabelled; several with + between them, as train+valid.
        set: name of the image set; None for the only one.
        regions: full, or means over regions of a feature map: pool (one mean, D = channels; rows without a map stay as
            they are), pyramid (six means); cls or mean of rows of tokens. None of them is fitted, so that no split sees
            another.
        passes: augmented passes of the training images that follow their clean views.
        group_near_duplicates: near-duplicates of the whole set are of one group, too, as `cv` finds them.

    Raises:
        ConfigError: a split that is not known or has no images, or regions that are not known.
        UnknownSet: the cache has no such set, or several and none is named.
        MissingRows: rows of the split are not in the cache.
        DamagedCache: a file of the cache is not what was written.
    """
    splits = split.split("+")
    if unknown := [name for name in splits if name not in _SPLITS]:
        raise ConfigError(f"split is {unknown[0]!r}, expected one of {', '.join(_SPLITS)}, or several as train+valid")
    if regions not in REGIONS:
        raise ConfigError(f"regions is {regions!r}, expected one of {', '.join(REGIONS)}")
    opened = FeatureCache.open(Path(cache))
    index = opened.index(set)
    if not (images := index.split(*splits)):
        there = [name for name, count in index.counts().items() if count]
        raise ConfigError(f"set {index.name!r} has no {split} images, it has {', '.join(there)}")
    groups = find_duplicates(opened, index).groups if group_near_duplicates else join(index.images)
    names: dict[int, str] = {}
    for image in index.images:
        names.setdefault(groups.of[image.digest], image.path)
    trained = [image for image in images if image.split == "train"] if opened.passes(index, passes) else []
    rows = [(image, 0) for image in images] + [(one, number) for number in range(1, 1 + passes) for one in trained]
    place = {name: number for number, name in enumerate(index.classes)}
    return Features(
        X=_read(opened, [(image.key, layout.pass_view(number)) for image, number in rows], regions),
        y=np.array([place.get(image.label, -1) for image, _ in rows], np.int64),
        classes=index.classes,
        paths=np.array([image.path for image, _ in rows], np.str_),
        digests=np.array([image.digest for image, _ in rows], np.str_),
        splits=np.array([image.split for image, _ in rows], np.str_),
        groups=np.array([names[groups.of[image.digest]] for image, _ in rows], np.str_),
        passes=np.array([number for _, number in rows], np.int64),
    )


def _read(cache: FeatureCache, keys: list[RowKey], regions: str) -> npt.NDArray[np.float32]:
    """Rows of `keys` in their order, (N, D), each read once and averaged as it is read."""
    rows = RowLayout.of(cache.row_shape, cache.manifest.base.layer)
    start = start_basis("full" if regions == "pool" and not rows.grid else regions, rows)
    found = np.empty((len(keys), start.out_features(cache.in_features)), np.float32)
    for positions, block in cache.blocks(keys, ROWS_AT_ONCE):
        found[positions] = start.apply(block).numpy()
    return found
