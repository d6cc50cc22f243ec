"""Stage one and a sweep on Ray beside one process: the same rows, the same heads, and at which rate.

`make bench-ray [CACHE=...]`; needs `make setup-ray`. Rates are steady ones, of interleaved pairs; prints their medians.
Rows are compared by a digest of all of them, in the order of their keys.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from beside import ROOT, hardware, run, subset

from cache.keys import unpack_keys
from cache.store import FeatureCache


def extracted(images: Path, cache: Path, *options: object) -> dict[str, Any]:
    """The JSON of one extraction."""
    return run("cli.py", "extract", images, "--cache", cache, "--json", *options)


def digest_of(cache: Path) -> str:
    """Of every key and its row; AssertionError where a row stands in two shards."""
    opened = FeatureCache.open(cache)
    assert sum(len(shard) for shard in opened.shards) == len(opened), "a row is there twice"
    total = hashlib.sha256()
    for start in range(0, len(opened), 1000):
        keys = opened.keys[start : start + 1000]
        total.update(keys.tobytes() + opened.read(unpack_keys(keys)).tobytes())
    return total.hexdigest()


def bench_same(scratch: Path, count: int) -> None:
    """1, 2 and 4 processes at once, and two workers of Ray: digests of all rows, clean and of one pass."""
    images = scratch / "same"
    subset(images / "train", count)
    passes = ("--set", "same", "--passes", "1")
    extracted(images, scratch / "whole", *passes)
    expected = digest_of(scratch / "whole")
    print(f"one process: {expected[:32]}")
    for parts in (1, 2, 4):
        cache = scratch / f"parts{parts}"
        command = [sys.executable, "cli.py", "extract", str(images), "--cache", str(cache), *passes]
        started = [
            subprocess.Popen(
                [*command, "--shard-of", f"{number}/{parts}"],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(1, parts + 1)
        ]
        assert [process.wait() for process in started] == [0] * parts
        extracted(images, cache, *passes, "--finish")
        print(f"--shard-of, {parts} at once: {digest_of(cache)[:32]}")
        assert digest_of(cache) == expected
    extracted(images, scratch / "ray", *passes, "--engine", "ray")
    print(f"--engine ray, two workers: {digest_of(scratch / 'ray')[:32]}", flush=True)
    assert digest_of(scratch / "ray") == expected


def bench_rate(scratch: Path, count: int, pairs: int) -> None:
    """The plain command and Ray, in turn."""
    images = scratch / "rate"
    subset(images / "train", count)
    lines = []
    for number in range(pairs):
        plain = extracted(images, scratch / f"plain{number}")
        ours = extracted(images, scratch / f"ray{number}", "--engine", "ray")
        lines.append(
            (plain["images_per_second"], ours["images_per_second"], count / plain["seconds"], count / ours["seconds"])
        )
        print("  " + ", ".join(f"{value:.2f}" for value in lines[-1]), flush=True)
    plain_steady, ray_steady, plain_all, ray_all = map(median, zip(*lines, strict=True))
    print(f"plain {plain_steady:.2f} images/s, Ray {ray_steady:.2f}: {ray_steady / plain_steady:.1%}")
    print(f"including startup {plain_all:.2f} and {ray_all:.2f}: {ray_all / plain_all:.1%}", flush=True)


def bench_sweep(scratch: Path, cache: Path, name: str | None) -> None:
    """A sweep of the default space by either, head by head."""
    given = ["cli.py", "sweep", "--cache", cache, *(["--set", name] if name else []), "--json"]
    local = run(*given, "--run", scratch / "local")
    there = run(*given, "--run", scratch / "there", "--engine", "ray")
    apart = [abs(a["valid_loss"] - b["valid_loss"]) for a, b in zip(local["heads"], there["heads"], strict=True)]
    same = sum(a == b for a, b in zip(local["heads"], there["heads"], strict=True))
    print(f"sweep: {same} of {len(apart)} heads equal, losses apart by at most {max(apart):.3g}")
    print(f"  to the choice: one process {local['seconds']:.1f} s, Ray {there['seconds']:.1f} s")
    print(f"  chosen alike: {local['best'] == there['best']}", flush=True)


def main() -> None:
    """Run what is asked for, all of it unless said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("same", "rate", "sweep"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--same", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--set")
    options = parser.parse_args()
    print(json.dumps(hardware()))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.only in (None, "rate"):
            bench_rate(scratch, options.count, options.pairs)
        if options.only in (None, "same"):
            bench_same(scratch, options.same)
        if options.cache and options.only in (None, "sweep"):
            bench_sweep(scratch, options.cache, options.set)


if __name__ == "__main__":
    main()
