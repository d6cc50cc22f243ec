"""Planning, opening, verifying and the start of training by number of images: seconds, memory, how straight they grow.

`make bench-scale`; about 30 minutes and a million small files, which it removes. Rows are tiny, so what is measured is
what each image costs whatever its row's size. Each step runs in a process of its own; files are read from the page
cache. Memory is the highest resident above what the process took after its imports.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import synthetic
import torch
from beside import hardware, run, say, straight

from cache.check import verify
from cache.store import FeatureCache
from cache.writer import merge_small_shards
from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import TrainConfig
from pipeline.extraction.plan import ExtractionPlan, workload_of
from pipeline.heads.fit import fit_head
from pipeline.inputs.images import ImageSet
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes

IMAGES = (250_000, 500_000, 1_000_000)
TINY = 0.001  # GB: fewer than the rows of 20,000 images take


class Laps:
    """Seconds of each part of a step, of the clock and of processors, and the highest memory in bytes until its end."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._before = highest()

    @contextmanager
    def lap(self, part: str) -> Iterator[None]:
        """Time a part."""
        start, used = time.perf_counter(), time.process_time()
        yield
        found = {"part": part, "seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
        self.found.append({**found, "bytes": highest() - self._before})


def highest() -> int:
    """Most resident bytes of this process so far; `getrusage` would count those of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def plan_new(folder: Path, laps: Laps) -> None:
    """Stage one's plan where nothing is cached."""
    with laps.lap("plan: list and hash the files"):
        images = ImageSet.scan(folder / "data")
    with laps.lap("plan: rows missing, of none"):
        work = workload_of(_plan(folder, images), None)
    assert len(work.tasks) == len(images.images)


def plan_again(folder: Path, laps: Laps) -> None:
    """Stage one's plan where all is cached."""
    with laps.lap("plan again: list and hash the files"):
        images = ImageSet.scan(folder / "data")
    with laps.lap("plan again: rows missing, of all"):
        work = workload_of(_plan(folder, images), FeatureCache.open(folder / "cache"))
    assert not work.tasks


def _plan(folder: Path, images: ImageSet) -> ExtractionPlan:
    """As `make_plan` does, but for a backbone: none is needed to find what is missing."""
    config = ExtractConfig(folder / "data", folder / "cache", synthetic.NAME)
    return ExtractionPlan(config, {}, torch.device("cpu"), synthetic.MANIFEST, images, synthetic.NAME)


def open_cache(folder: Path, laps: Laps) -> None:
    """What every reader does first."""
    cache = FeatureCache.open(folder / "cache")
    with laps.lap("open: every shard checked"):
        _ = cache.shards
    with laps.lap("open: table of keys"):
        len(cache)


def finish(folder: Path, laps: Laps) -> None:
    """What stage one ends with."""
    cache = FeatureCache.open(folder / "cache")
    index = cache.index()
    len(cache)
    with laps.lap("finish: small shards merged"):
        merge_small_shards(cache.shards)
    with laps.lap("finish: complete passes counted"):
        cache.complete_passes(index)
    with laps.lap("finish: index written"):
        cache.save_index(index)


def verify_all(folder: Path, laps: Laps) -> None:
    """`cache verify`."""
    with laps.lap("verify"):
        found = verify(folder / "cache")
    assert not found.bad


def load_index(folder: Path, laps: Laps) -> None:
    """One set's index."""
    with laps.lap("index: read and checked"):
        FeatureCache.open(folder / "cache").index()


def train(folder: Path, laps: Laps) -> None:
    """A small head, all rows in memory."""
    _train(folder, laps, "train", None)


def stream(folder: Path, laps: Laps) -> None:
    """The same with hardly any memory for rows."""
    _train(folder, laps, "train, streamed", TINY)


def _train(folder: Path, laps: Laps, name: str, memory: float | None) -> None:
    torch.set_num_threads(available_cpus())
    config = TrainConfig(
        folder / "cache", folder / "run", basis="full", hidden=16, epochs=1, batch_size=256, memory=memory
    )
    with laps.lap(f"{name}: set opened, folder compared"):
        trainset = TrainingSet.open(config.cache, None, config.passes)
    with laps.lap(f"{name}: rows in the basis"):
        _, data = load_data(trainset, config.settings.basis, allowed_bytes(memory))
    with laps.lap(f"{name}: first epoch"):
        fit_head(config, data)


STEPS: dict[str, Callable[[Path, Laps], None]] = {
    step.__name__: step for step in (plan_new, plan_again, open_cache, finish, verify_all, load_index, train, stream)
}


def measure(folder: Path, images: int) -> dict[str, Any]:
    """All steps of the set in `folder`, and bytes of its index."""
    parts = []
    for step in STEPS:
        found = run(__file__, "--step", step, "--folder", folder)["parts"]
        say(f"{images} images, {step}: " + ", ".join(f"{lap['seconds']:.1f} s" for lap in found))
        parts += found
    index = folder / "cache" / "sets" / f"{synthetic.NAME}.json"
    return {"images": images, "index_bytes": index.stat().st_size, "parts": parts}


def by_part(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each part: seconds, processor seconds and bytes by number of images, and how straight both seconds grow."""
    counts = [entry["images"] for entry in found]
    parts: dict[str, dict[str, Any]] = {}
    for laps in zip(*(entry["parts"] for entry in found), strict=True):
        part = {name: [lap[name] for lap in laps] for name in ("seconds", "cpu", "bytes")}
        growth = {f"{name}_growth": growth_of(counts, part[name]) for name in ("seconds", "cpu")}
        parts[laps[0]["part"]] = {**part, **growth}
    return parts


def growth_of(counts: list[int], seconds: list[float]) -> dict[str, float]:
    """R² of the straight line, and the cost of an image of the largest set over that of the smallest."""
    r2 = straight(counts, seconds)[2] if len(counts) > 1 else 1.0
    return {"r2": r2, "ratio": seconds[-1] / counts[-1] / (seconds[0] / counts[0])}


def show(counts: list[int], parts: dict[str, dict[str, Any]]) -> None:
    """A table; after the seconds those of processors, on which other work on the machine tells less."""
    print(f"{'':44} {'  '.join(f'{count:>23,}' for count in counts)}      R²  ratio")
    for name, part in parts.items():
        figures = zip(part["seconds"], part["cpu"], part["bytes"], strict=True)
        cells = [f"{seconds:6.1f} {cpu:6.1f} s {used / 1e6:5.0f} MB" for seconds, cpu, used in figures]
        growth = part["cpu_growth"]
        print(f"{name:44} {'  '.join(cells)}  {growth['r2']:.4f}  {growth['ratio']:5.2f}")


def bench(folder: Path, counts: list[int], file: Path | None) -> None:
    """Every number of images in turn, in one folder that grows."""
    found = []
    for before, count in zip([0, *counts], counts, strict=False):
        synthetic.grow(folder, before, count)
        say(f"{count} images made")
        found.append(measure(folder, count))
    parts = by_part(found)
    print(hardware())
    show(counts, parts)
    print("bytes of the index an image:", ", ".join(f"{e['index_bytes'] / e['images']:.0f}" for e in found))
    if file:
        command = "make bench-scale"
        about = {"command": command, "date": datetime.now(UTC).date().isoformat(), "hardware": hardware()}
        sizes = {"images": counts, "index_bytes": [entry["index_bytes"] for entry in found]}
        file.write_text(json.dumps({**about, **sizes, "parts": parts}, indent=1) + "\n")


def main() -> None:
    """All of it, or one step of a set that is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="numbers of images")
    parser.add_argument("--folder", type=Path, help="where to make them, rather than where temporary files go")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        laps = Laps()
        STEPS[options.step](options.folder, laps)
        print(json.dumps({"parts": laps.found}))
        return
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=options.folder))
    try:
        bench(folder, sorted(options.images), options.json)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
