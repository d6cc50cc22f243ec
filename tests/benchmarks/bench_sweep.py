"""A sweep of 64 heads beside plain scripts, on the same rows, in one run; prints the ratios.

`make bench-sweep CACHE=features ARGS="--set flowers102"` with two augmented passes in the cache. The plain script is
looked for in $HEADGRAFT_BASELINES. The chosen head is scored on test once for each seed, after the choice.
"""

import argparse
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from beside import BASELINES, hardware, run, write_rows
from linear import bench_linear

from cache.projections import projection_files
from cache.store import FeatureCache

SEEDS = 5


def bench_sweep(
    cache: Path, folder: Path, name: str | None, passes: int, epochs: int, space: Path | None
) -> dict[str, Any]:
    """Seconds to the choice, bases fitted and projected included: projections that were kept are put aside."""
    place = folder / "aside"
    place.mkdir(parents=True)
    kept = projection_files(cache)
    for file in kept:
        shutil.move(file, place / file.name)
    chosen = ("--set", name) if name else ()
    searched = ("--space", space) if space else ()
    options = ("--heads", 64, "--epochs", epochs, "--passes", passes, "--merge", *chosen, *searched)
    start = time.perf_counter()
    found = run("cli.py", "sweep", "--cache", cache, "--run", folder / "sweep", *options, "--json")
    whole = time.perf_counter() - start - found["retrain_seconds"]
    for file in kept:
        shutil.move(place / file.name, cache / "projections" / file.name)
    finished = sum(head["finished"] for head in found["heads"])
    trained = sum(head["epochs"] for head in found["heads"])
    print(f"sweep: {len(found['heads'])} heads, {finished} to the end, {trained} epochs of heads, {passes} passes")
    seconds, bases = found["seconds"], found["basis_seconds"]
    print(f"  {seconds:.1f} s to the choice, bases {bases:.1f} of them; {whole:.1f} s with start and baselines")
    print(f"  {found['retrain_seconds']:.1f} s for {found['best']['seeds']} seeds of the choice: {found['best']}")
    print(f"  baselines: {found['baselines']}")
    return {**found, "whole": whole, "finished": finished}


def bench_plain(cache: Path, folder: Path, name: str | None, ours: dict[str, Any]) -> None:
    """Heads one after another on all clean training rows."""
    opened = FeatureCache.open(cache)
    for split in ("train", "valid"):
        write_rows(opened, split, folder / f"{split}.npz", name)
    grid = ("--hidden", 512, "--dropout", 0.5, "--lr", 1e-4, 1e-3, "--epochs", 20)
    plain = run(BASELINES / "heads_plain.py", folder / "train.npz", folder / "valid.npz", *grid)
    each = plain["seconds_per_head"]
    print(f"plain: {each:.1f} s a head, best valid {plain['best']:.2%}")
    print(f"  ratio {each / (ours['whole'] / len(ours['heads'])):.0f} per head tried", end=", ")
    print(f"{each / (ours['whole'] / ours['finished']):.1f} per head trained to the end")
    print(f"  valid {ours['best']['mean']:.2%} (mean of seeds) against {plain['best']:.2%} (best of epochs and heads)")


def bench_logistic(cache: Path, name: str | None) -> None:
    """scikit-learn's LogisticRegression on the clean rows, standardised by their largest value."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    opened = FeatureCache.open(cache)
    (train, labels), (valid, truth) = (opened.arrays(split, name) for split in ("train", "valid"))
    start = time.perf_counter()
    scale = np.float32(train.max())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=10.0, max_iter=50).fit(train.astype(np.float32) / scale, labels)
    seconds = time.perf_counter() - start
    accuracy = float((model.predict(valid.astype(np.float32) / scale) == truth).mean())
    print(f"LogisticRegression(C=10, max_iter=50) on {train.shape}: {seconds:.1f} s, valid {accuracy:.2%}")


def score_choice(cache: Path, folder: Path, name: str | None, passes: int, epochs: int) -> None:
    """Test accuracy of the chosen settings, each of the seeds that the sweep trained."""
    record = json.loads((folder / "sweep" / "sweep.json").read_text())
    settings = [(f"--{key.replace('_', '-')}", value) for key, value in record["best"]["config"].items()]
    options = [part for pair in settings for part in pair] + (["--set", name] if name else [])
    common = ("--cache", cache, "--passes", passes, "--epochs", epochs, *options, "--json")
    tests = []
    for seed in range(1, SEEDS + 1):
        run("cli.py", "train-head", "--run", folder / f"seed{seed}", "--seed", seed, *common)
        tests.append(run("cli.py", "evaluate", folder / f"seed{seed}", "--json")["top1"])
    merged = run("cli.py", "evaluate", folder / "sweep", "--json")["top1"]
    print(f"  test {np.mean(tests):.2%} ({min(tests):.2%} to {max(tests):.2%}), {SEEDS} seeds of the choice", end="; ")
    print(f"merged {merged:.2%}", flush=True)


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set", help="its image set")
    parser.add_argument("--passes", type=int, nargs="+", default=[2], help="augmented passes, one sweep for each")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--space", type=Path, help="what to search, rather than the default space")
    parser.add_argument("--only-ours", action="store_true", help="leave the plain scripts and the lines out")
    options = parser.parse_args()
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as text:
        for passes in options.passes:
            folder = Path(text) / f"passes{passes}"
            ours = bench_sweep(options.cache, folder, options.set, passes, options.epochs, options.space)
            score_choice(options.cache, folder, options.set, passes, options.epochs)
        if not options.only_ours:
            bench_linear(options.cache, options.set, passes)
            bench_plain(options.cache, folder, options.set, ours)
            bench_logistic(options.cache, options.set)


if __name__ == "__main__":
    main()
