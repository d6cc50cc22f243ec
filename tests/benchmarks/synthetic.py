"""A data set of tiny files and a cache of tiny rows, as many as asked for: real files, real digests, no images."""

import hashlib
from pathlib import Path

import numpy as np

from cache.keys import RowKey, pack_keys
from cache.layout import CLEAN_VIEW, SHARD_FOLDER
from cache.manifest import Base, Manifest
from cache.shard import ShardHeader, write_shard
from cache.store import FeatureCache
from cache.writer import ROWS_PER_SHARD
from pipeline.inputs.images import ImageSet

NAME = "images"
CLASSES = 1000
SHAPE = (8, 1, 1)
BASE = Base("tiny", "avgpool", "0" * 64, SHAPE, 32, 37, "bilinear-antialias", (0, 0, 0), (1, 1, 1), "rgb-1", "float32")
MANIFEST = Manifest(BASE)
SPLITS = ("train",) * 8 + ("valid", "test")


def grow(folder: Path, start: int, stop: int) -> None:
    """Have `folder` hold the images below number `stop` and their rows, where those below `start` are there already."""
    _write_images(folder / "data", range(start, stop))
    cache = FeatureCache.create(folder / "cache", MANIFEST)
    _write_shards(cache.path, range(start, stop))
    cache.save_index(ImageSet.scan(folder / "data").index(NAME))


def _write_images(data: Path, numbers: range) -> None:
    for number in numbers:
        path = data / _place(number)
        if number < len(SPLITS) * CLASSES:  # the first of its class and split
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_contents(number))


def _place(number: int) -> str:
    """Splits in turn, each with all classes."""
    label = number // len(SPLITS) % CLASSES
    return f"{SPLITS[number % len(SPLITS)]}/class_{label:04}/image_{number:09}.jpg"


def _contents(number: int) -> bytes:
    """A few bytes that no other image has."""
    return f"image {number}".encode("ascii")


def _write_shards(cache: Path, numbers: range) -> None:
    """Rows in the order of their digests, as stage one writes them."""
    digests = sorted(hashlib.sha256(_contents(number)).digest() for number in numbers)
    random = np.random.default_rng(numbers.start)
    for first in range(0, len(digests), ROWS_PER_SHARD):
        keys: list[RowKey] = [(digest, CLEAN_VIEW) for digest in digests[first : first + ROWS_PER_SHARD]]
        rows = random.random((len(keys), *SHAPE)).astype(np.float16).reshape(len(keys), -1)
        write_shard(cache / SHARD_FOLDER, ShardHeader(BASE.digest, SHAPE), pack_keys(keys), rows)
