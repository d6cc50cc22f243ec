"""Near-duplicates: pairs of a set's images whose cached clean features point the same way."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache.errors import CacheError
from cache.index import ImageRecord
from cache.keys import RowKey
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache

_BLOCK = 1024  # rows


@dataclass(frozen=True)
class Pair:
    """Two files, the cosine of their features (1.0 where their bytes are the same), labels and splits."""

    a: str
    b: str
    cosine: float
    identical: bool
    labels: tuple[str, str]
    splits: tuple[str, str]

    def __str__(self) -> str:
        same = "the same file" if self.identical else f"cosine {self.cosine:.4f}"
        labels = f"label {self.labels[0]!r}"
        if self.labels[0] != self.labels[1]:
            labels = f"LABELS {self.labels[0]!r} and {self.labels[1]!r}"
        return f"duplicate      {same}, {labels}: {self.a} and {self.b}"


def near_duplicates(path: Path, name: str | None = None, threshold: float = 0.95) -> list[Pair]:
    """Pairs of files of set `name` with a cosine of at least `threshold`: other labels first, then the nearest.

    Compares all with all, N² D multiplications, with at most two blocks of rows in memory as float32.
    """
    if not -1 <= threshold <= 1:
        raise CacheError(f"--threshold is {threshold}, expected a cosine from -1 to 1")
    cache = FeatureCache.open(path)
    images = cache.index(name).images
    keys = [(image.key, CLEAN_VIEW) for image in images]
    pairs = []
    for first in range(0, len(keys), _BLOCK):
        left = _unit_rows(cache, keys[first : first + _BLOCK])
        for second in range(first, len(keys), _BLOCK):
            right = left if second == first else _unit_rows(cache, keys[second : second + _BLOCK])
            for i, j in np.argwhere(np.asarray(left @ right.T) >= threshold - 1e-6):
                if first + i < second + j:
                    pairs.append(_pair(images[first + i], images[second + j], float(left[i] @ right[j])))
    return sorted(pairs, key=lambda pair: (pair.labels[0] == pair.labels[1], -pair.cosine, pair.a, pair.b))


def _unit_rows(cache: FeatureCache, keys: list[RowKey]) -> npt.NDArray[np.float32]:
    rows = cache.read(keys).astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _pair(a: ImageRecord, b: ImageRecord, cosine: float) -> Pair:
    identical = a.digest == b.digest
    return Pair(a.path, b.path, 1.0 if identical else cosine, identical, (a.label, b.label), (a.split, b.split))
