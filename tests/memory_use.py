"""How much anonymous memory training takes on a cache that does not fit into it; prints JSON.

    python tests/memory_use.py FOLDER IMAGES GIGABYTES

Makes a cache of IMAGES rows of (512, 7, 7) in FOLDER and trains a head on it with `--memory GIGABYTES`.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cache.index import ImageRecord, SetIndex
from cache.keys import RowKey
from cache.layout import CLEAN_VIEW
from cache.manifest import Base, Manifest
from cache.shard import ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter

SHAPE = (512, 7, 7)
CLASSES = 10
# What glibc starts with, and here keeps: otherwise each larger block that is freed raises it, up to 32 MB, and smaller
# ones then stay with the process. How much stays differs by tens of MB from run to run, and is more in longer ones.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
BASE = Base(
    "vgg16", "avgpool", "0" * 64, SHAPE, 224, 256, "bilinear-antialias", (0, 0, 0), (1, 1, 1), "rgb-1", "float32"
)


def make(folder: Path, images: int) -> FeatureCache:
    """A cache of `images` rows of ten classes, every tenth for validation."""
    cache = FeatureCache.create(folder, Manifest(BASE))
    random = np.random.default_rng(0)
    centres = random.random((CLASSES, int(np.prod(SHAPE))), dtype=np.float32)
    noise = random.random((64, int(np.prod(SHAPE))), dtype=np.float32)
    records = [record(number) for number in range(images)]
    with ShardWriter(folder, ShardHeader(BASE.digest, SHAPE)) as writer:
        for number, image in enumerate(sorted(records, key=lambda image: image.digest)):
            keys: list[RowKey] = [(image.key, CLEAN_VIEW)]
            row = centres[int(image.label)] + 2 * noise[number % 64] * np.float32(random.random() + 0.5)
            writer.add(keys, row[None].astype(np.float16))
    cache.save_index(SetIndex("images", "/images", "/images", 0, tuple(map(str, range(CLASSES))), tuple(records)))
    return FeatureCache.open(folder)


def record(number: int) -> ImageRecord:
    """An image of that number."""
    split = "valid" if number % 10 == 9 else "train"
    label = str(number // 10 % CLASSES)
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return ImageRecord(f"{split}/{label}/image_{number:07}.jpg", digest, label, split, 50_000, 0)


def train(cache: FeatureCache, run: Path, memory: str) -> tuple[int, str]:
    """Train in a process of its own; its highest anonymous memory in bytes, and what it printed.

    Freed blocks are given back at once, so that the memory is what the program holds, not what its allocator keeps.
    """
    command = [sys.executable, "-m", "cli", "train-head", "--cache", str(cache.path), "--run", str(run)]
    options = ["--memory", memory, "--epochs", "2", "--overwrite", "--json"]
    environment, highest = {**os.environ, **FREED_AT_ONCE}, 0
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            time.sleep(0.002)  # the highest moments are short
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"training ended with status {process.returncode}")
    return highest, printed


def anonymous(process: int) -> int:
    """Bytes of `process` that no file backs."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(folder: Path, images: int, memory: str) -> dict[str, float]:
    """Rows, bytes on disk, the highest anonymous memory, the accuracy and the seconds."""
    cache = make(folder / f"cache_{images}", images)
    highest, printed = train(cache, folder / f"run_{images}", memory)
    result = json.loads(printed)
    found = {"rows": len(cache), "bytes": cache.bytes, "anonymous": highest}
    return {**found, "valid_accuracy": result["valid_accuracy"], "seconds": result["seconds"]}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
