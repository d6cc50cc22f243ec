"""Kill extractions with SIGKILL at random moments and look at what is left; prints counts as JSON.

    python tests/kill_writers.py FOLDER KILLS

A program of its own, since it forks: the parent never computes, so each child starts at once and is free to.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import conftest
import numpy as np

import cache.writer
from cache.check import verify
from cache.keys import RowKey, pack_keys
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.commands.extract import extract
from pipeline.config.extract import ExtractConfig

IMAGES = 20  # times the 24 of `draw_dataset`


def draw(folder: Path) -> Path:
    """480 small images."""
    for number in range(IMAGES):
        for label in conftest.CLASSES:
            for split, count in conftest.COUNTS.items():
                for copy in range(count):
                    path = folder / split / label / f"{number}_{copy}.png"
                    conftest.draw_image(path, hash((number, label, split, copy)) & 0xFFFF_FFFF, label, (36, 34))
    return folder


def child(data: Path, cache_folder: Path, weights: Path, ledger: Path) -> None:
    """One extraction in small shards; every shard that is durable is written into the ledger."""
    write = cache.writer.ShardWriter._write
    log = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def logged(self: cache.writer.ShardWriter, keys: list[RowKey], rows: list[Float16Array]) -> None:
        write(self, keys, rows)
        os.write(log, "".join(f"{digest.hex()} {view}\n" for digest, view in keys).encode())

    cache.writer.ShardWriter._write = logged  # type: ignore[method-assign]
    conftest.register_tiny()
    shape = {"backbone": "tiny", "weights": str(weights), "image_size": 32, "precision": "float32", "device": "cpu"}
    extract(ExtractConfig(data, cache_folder, passes=1, batch_size=4, threads=1, **shape))  # type: ignore[arg-type]


def run(*given: Path) -> int:
    """Start `child` in a process of its own; its number."""
    number = os.fork()
    if number == 0:
        try:
            child(*given)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    return number


def lost_rows(cache_folder: Path, ledger: Path) -> int:
    """Acknowledged rows that the cache does not serve."""
    acknowledged = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    if not acknowledged:
        return 0
    opened = FeatureCache.open(cache_folder)
    return len(opened.without(pack_keys((bytes.fromhex(digest), view) for digest, view in acknowledged)))


def main(folder: Path, kills: int) -> Counter[str]:
    """`kills` killed extractions, each cache carried on to its end."""
    from safetensors.torch import save_file

    random.seed(0)
    data, weights = draw(folder / "data"), folder / "tiny.safetensors"
    save_file(conftest.tiny_tensors(), weights)
    cache.writer.ROWS_PER_SHARD, cache.writer.MERGE_BELOW = 8, 6
    cache.writer.ShardWriter.__init__.__defaults__ = (8, 20.0)
    found: Counter[str] = Counter()
    reference: dict[RowKey, Float16Array] = {}
    seconds = 1.0  # of an undisturbed extraction; measured by those that end
    while found["kills"] < kills:
        cache_folder, ledger = folder / f"cache_{found['caches']}", folder / f"ledger_{found['caches']}"
        while True:
            started = time.monotonic()
            number = run(data, cache_folder, weights, ledger)
            before = ledger.stat().st_size if ledger.exists() else 0
            if found["caches"] and found["kills"] < kills:
                time.sleep(random.uniform(0, seconds))
                os.kill(number, signal.SIGKILL)
            status = os.waitpid(number, 0)[1]
            if not os.WIFSIGNALED(status):
                found["failed"] += os.WEXITSTATUS(status) != 0
                seconds = time.monotonic() - started
                break
            found["kills"] += 1
            found["kills_while_writing"] += ledger.exists() and ledger.stat().st_size > before
            found["lost_rows"] += lost_rows(cache_folder, ledger)
            if (cache_folder / "manifest.json").exists():
                found["bad_files"] += len(verify(cache_folder).bad)
        found["stray_files"] += len(list(cache_folder.rglob("*.tmp")))
        opened = FeatureCache.open(cache_folder)
        keys = opened.index().row_keys(1)
        rows = dict(zip(keys, opened.read(keys), strict=True))
        reference = reference or rows
        found["wrong_rows"] += sum(not np.array_equal(rows[key], reference[key]) for key in reference)
        found["rows"] += len(opened)
        found["expected_rows"] += len(reference)
        found["caches"] += 1
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
