"""Stage one beside a plain script and beside the processor's limit, in interleaved pairs; prints ratios of medians.

`make bench-extract`; the flowers are looked for in $HEADGRAFT_FLOWERS, the plain script in $HEADGRAFT_BASELINES. The
limit is what a product of two matrices of side 4096 reaches in the same minutes, divided by the arithmetic of one
image; both are computed in what extract chooses here: bfloat16, or float32 where the processor has none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from beside import BASELINES, ROOT, hardware, line, run, subset

from pipeline.backbones.catalog import backbone_spec, preprocessing_of
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.sources import load_tensors
from pipeline.inputs.decode import FULL_RANGE
from pipeline.machine.device import available_cpus, resolve_precision

CPU = torch.device("cpu")
OPERATIONS = 30.7e9  # of VGG16's convolutions at 224 pixels, a multiplication and an addition counted as two
SIDE = 4096


def extracted(images: Path, cache: Path, *options: object) -> dict[str, Any]:
    """The JSON of one extraction."""
    return run("cli.py", "extract", images, "--cache", cache, "--json", *options)


def steady(found: dict[str, Any]) -> float:
    """Seconds of an extraction without start and warm-up."""
    return float(found["computed"] / found["images_per_second"])


def limit() -> float:
    """Images per second that the processor's rate of products allows."""
    torch.set_num_threads(available_cpus())
    dtype = torch.bfloat16 if resolve_precision("auto", CPU) == "bfloat16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return float(2 * SIDE**3 / median(seconds[1:]) / OPERATIONS)


def forward_alone(batches: int = 12) -> float:
    """Images per second of the backbone on pixels that lie ready."""
    tensors = load_tensors("vgg16", None)
    network = load_backbone(
        "vgg16",
        tensors,
        preprocessing_of("vgg16", 224, FULL_RANGE),
        device=CPU,
        precision=resolve_precision("auto", CPU),
    )
    views = [np.full((224, 224, 3), grey, np.uint8) for grey in range(network.batch_size)]
    network(views)
    seconds = []
    for _ in range(batches):
        start = time.perf_counter()
        network(views)
        seconds.append(time.perf_counter() - start)
    return len(views) / median(seconds)


def bench_pairs(scratch: Path, count: int, pairs: int) -> None:
    """Plain, ours, the limit and the forward pass, in turn."""
    images = scratch / "pairs"
    subset(images / "train", count)
    weights = backbone_spec("vgg16").weights.path
    lines = []
    for number in range(pairs):
        plain = run(BASELINES / "extract_plain.py", images / "train", weights, scratch / "plain.npz")
        ours = extracted(images, scratch / f"cache{number}")
        rates = (limit(), forward_alone())
        lines.append((plain["images_per_second"], ours["images_per_second"], count / ours["seconds"], *rates))
        print("  " + ", ".join(f"{value:.2f}" for value in lines[-1]), flush=True)
    plain, ours_steady, whole, most, alone = map(median, zip(*lines, strict=True))
    print(f"{count} flowers, medians of {pairs} pairs, images/s: plain {plain:.2f}, ours {ours_steady:.2f} steady,")
    print(f"  {whole:.2f} with start; limit {most:.2f}, forward alone {alone:.2f}")
    print(f"  ratio {ours_steady / plain:.2f} steady, {whole / plain:.2f} with start; of the limit", end=" ")
    print(f"{ours_steady / most:.0%}, the forward alone {alone / most:.0%}; bound by {ours['bound']}, {ours['phases']}")
    print(f"  warm-up of each start: {ours['warmup_seconds']:.2f} s")


def bench_passes(scratch: Path, count: int, passes: int) -> None:
    """All passes in one run, decoding each file once, between two runs of the clean pass alone."""
    images = scratch / "passes"
    subset(images / "train", count)
    alone = [extracted(images, scratch / "clean0")]
    together = extracted(images, scratch / "all", "--passes", passes)
    alone.append(extracted(images, scratch / "clean1"))
    seconds, decode = (median(map(pick, alone)) for pick in (steady, lambda found: found["phases"]["decode"]))
    runs = passes + 1
    print(f"{count} flowers, {passes} passes: {steady(together):.1f} s, {runs} clean runs {runs * seconds:.1f}")
    print(f"  (ratio {steady(together) / runs / seconds:.3f}); decoding", end=" ")
    print(f"{together['phases']['decode']:.1f} s against {runs * decode:.1f}", end=" ")
    print(f"(ratio {together['phases']['decode'] / runs / decode:.2f})", flush=True)


def bench_growth(scratch: Path, backbone: str) -> None:
    """Memory and time of a whole process by the number of images."""
    counts, peaks, seconds = (500, 1000, 2000, 4000, 8000), [], []
    for count in counts:
        images = subset(scratch / f"growth{count}", count, "*")
        command = ("cli.py", "extract", images, "--cache", scratch / f"cache{count}", "--backbone", backbone, "--json")
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
        peaks.append(usage.ru_maxrss / 1024)
        seconds.append(steady(found))
        print(f"  {count}: {peaks[-1]:.0f} MiB, {seconds[-1]:.1f} s", flush=True)
    print(f"{backbone}: resident memory {peaks[-1] / peaks[0] - 1:+.1%} from {counts[0]} to {counts[-1]} images")
    print(f"  steady seconds by rows: {line(counts, seconds)}")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--only", choices=("pairs", "passes", "growth"), help="one part")
    options = parser.parse_args()
    print(f"{hardware()}, {resolve_precision('auto', CPU)}", flush=True)
    with tempfile.TemporaryDirectory() as text:
        if options.only in (None, "pairs"):
            bench_pairs(Path(text), options.images, options.pairs)
        if options.only in (None, "passes"):
            bench_passes(Path(text), options.images, options.passes)
        if options.only in (None, "growth"):
            bench_growth(Path(text), "alexnet")


if __name__ == "__main__":
    main()
