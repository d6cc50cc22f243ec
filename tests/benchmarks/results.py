"""The figures of README.md and docs/results.md, measured and written to docs/results/, from where both are written.

`make results CACHE=features` with a cache of the flowers at 224 pixels: set `flowers102` with an augmented pass and, as
set `official`, the data set's own split. About 20 minutes on two cores, with nothing else running.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beside import BASELINES, ROOT, hardware, run, subset, write_rows

from cache.store import FeatureCache
from pipeline.backbones.backbone import BACKBONES
from pipeline.config import EvaluateConfig, SweepConfig, TrainConfig
from pipeline.console import say
from pipeline.evaluate import evaluate
from pipeline.sweep import sweep
from pipeline.train import train_head

FOLDER = ROOT / "docs" / "results"
SEEDS = range(5)


def measured_speed(scratch: Path, cache: FeatureCache, images: int) -> dict[str, Any]:
    """Beside plain scripts, in one run: images a second of stage one, interleaved; seconds of a head, of a sweep."""
    subset(scratch / "images", images)
    weights = BACKBONES["vgg16"].weights.path
    pairs = []
    for number in range(3):
        plain = run(BASELINES / "extract_plain.py", scratch / "images", weights, scratch / "plain.npz")
        ours = run("cli.py", "extract", scratch / "images", "--cache", scratch / f"cache{number}", "--json")
        whole = ours["computed"] / ours["seconds"]
        pairs.append({"plain": plain["images_per_second"], "steady": ours["images_per_second"], "whole": whole})
        say(str(pairs[-1]))
    for split in ("train", "valid"):
        write_rows(cache, split, scratch / f"{split}.npz", "flowers102")
    grid = ("--hidden", 512, "--dropout", 0.5, "--lr", 1e-4, 1e-3, "--epochs", 20)
    plain = run(BASELINES / "heads_plain.py", scratch / "train.npz", scratch / "valid.npz", *grid)
    where = ("--cache", cache.path, "--set", "flowers102", "--json")
    head = run("cli.py", "train-head", *where, "--run", scratch / "head", "--passes", 0)
    many = run("cli.py", "sweep", *where, "--run", scratch / "sweep", "--passes", 0)
    return {
        "extract": {"images": images, "pairs": pairs},
        "plain_head": {"seconds": plain["seconds_per_head"], "valid": plain["best"]},
        "head": {"seconds": head["seconds"], "valid": head["valid_accuracy"]},
        "sweep": {"heads": len(many["heads"]), "seconds": many["seconds"], "valid": many["best"]["mean"]},
    }


def measured_heads(scratch: Path, cache: Path, name: str, passes: int) -> dict[str, Any]:
    """Heads of the defaults, one a seed."""
    found = []
    for seed in SEEDS:
        config = TrainConfig(cache, scratch / "run", name, passes, seed=seed, overwrite=True)
        trained = train_head(config)
        test = evaluate(EvaluateConfig(config.run)).top1
        first = trained.epochs[0]
        seconds = sum(epoch.seconds for epoch in trained.epochs) / len(trained.epochs)
        found.append({"first": first.valid_accuracy, "valid": trained.valid_accuracy, "test": test, "epoch": seconds})
    return {"passes": passes, "heads": found}


def measured_sweep(scratch: Path, cache: Path, name: str, passes: int, merge: bool) -> dict[str, Any]:
    """The choice of 64 heads, and how the run that is kept scores on test."""
    config = SweepConfig(cache, scratch / "sweep", name, passes, merge=merge, overwrite=True)
    result = sweep(config)
    test = evaluate(EvaluateConfig(config.run))
    best = {key: result.best[key] for key in ("mean", "std", "seeds", "config")}
    valid = result.best["merged"]["valid_accuracy"] if merge else result.best["mean"]
    return {
        "passes": passes,
        "heads": len(result.heads),
        "merged": merge,
        "seconds": result.seconds,
        "valid": valid,
        "test": test.top1,
        "mean_per_class": test.mean_per_class,
        "best": best,
        "baselines": result.baselines,
    }


def measured_split(scratch: Path, cache: FeatureCache, name: str) -> dict[str, Any]:
    """All of one image set, with no augmented pass and with the most it has."""
    index = cache.index(name)
    passes = sorted({0, 1, index.passes} & set(range(index.passes + 1)))
    return {
        "set": name,
        "images": index.counts(),
        "classes": len(index.classes),
        "defaults": [measured_heads(scratch, cache.path, name, number) for number in passes],
        "sweeps": [measured_sweep(scratch, cache.path, name, index.passes, merge) for merge in (False, True)],
    }


def write(name: str, command: str, found: dict[str, Any]) -> None:
    """Keep what was measured, with what repeats it."""
    FOLDER.mkdir(exist_ok=True)
    when = datetime.now(UTC).date().isoformat()
    record = {"command": command, "date": when, "hardware": hardware(), **found}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    say(f"docs/results/{name}.json written")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--images", type=int, default=300, help="of each of the pairs of stage one")
    parser.add_argument("--only", choices=("speed", "accuracy"))
    options = parser.parse_args(arguments)
    cache = FeatureCache.open(options.cache)
    with tempfile.TemporaryDirectory() as text:
        if options.only != "accuracy":
            write("speed", "make results ARGS='--only speed'", measured_speed(Path(text), cache, options.images))
            shutil.rmtree(text)
            Path(text).mkdir()
        if options.only != "speed":
            found = [measured_split(Path(text), cache, name) for name in ("flowers102", "official")]
            write("accuracy", "make results ARGS='--only accuracy'", {"splits": found})


if __name__ == "__main__":
    main()
