"""The figures of README.md and docs/results.md, measured and written to docs/results/, from where both are written.

`make results CACHE=features` with a cache of the flowers at 224 pixels: set `flowers102` with an augmented pass and, as
set `official`, the data set's own split. About 35 minutes on two cores, with nothing else running. The
sets that nothing was tuned on have caches of their own, which are made where they are missing.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beside import BASELINES, ROOT, hardware, run, say, subset, write_rows
from untouched import measured_untouched

from cache.projections import projection_files
from cache.store import FeatureCache
from pipeline.backbones.catalog import backbone_spec
from pipeline.commands.evaluate import evaluate
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.heads import SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig
from pipeline.search.results import SweepResult

FOLDER = ROOT / "docs" / "results"
SEEDS = range(5)
DEVELOPED_ON = ("flowers102", "official")


GRID = ("--hidden", 512, 1024, "--dropout", 0.4, 0.5, 0.6, 0.7, "--epochs", 20)
RATES = ("--lr", 5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3, 8e-3)  # with GRID, 64 heads


def measured_speed(scratch: Path, cache: FeatureCache, images: int, name: str) -> dict[str, Any]:
    """Beside a tutorial's and an expert's scripts, in one run, interleaved; wall seconds of whole processes."""
    for split in ("train", "valid"):
        write_rows(cache, split, scratch / f"{split}.npz", name)
    return {
        "extract": measured_extract(scratch, images),
        "head": measured_head(scratch, cache, name),
        "sweep": measured_many(scratch, cache, name),
        "probes": run(BASELINES / "probe_strong.py", *_npz(scratch), "--regions", "pyramid"),
    }


def measured_extract(scratch: Path, images: int) -> dict[str, Any]:
    """Images a second of stage one, from files to features, without and with startup."""
    subset(scratch / "images", images)
    weights, pairs = backbone_spec("vgg16").weights.path, []
    for number in range(3):
        found: dict[str, Any] = {}
        for script in ("plain", "strong"):
            out = run(BASELINES / f"extract_{script}.py", scratch / "images", weights, scratch / "out.npz")
            steady = out["images_per_second"]
            found[script] = {"steady": steady, "whole": out.get("images_per_second_with_warmup", steady)}
        ours = run("cli.py", "extract", scratch / "images", "--cache", scratch / f"cache{number}", "--json")
        found["ours"] = {"steady": ours["images_per_second"], "whole": ours["computed"] / ours["seconds"]}
        pairs.append(found)
        say(str(found))
    return {"images": images, "pairs": pairs}


def measured_head(scratch: Path, cache: FeatureCache, name: str) -> dict[str, Any]:
    """One head of 20 epochs on the clean rows: wall seconds with startup, reading and basis, and what it reaches."""
    strong = (BASELINES / "heads_strong.py", *_npz(scratch), "--regions", "pyramid")
    where = ("--cache", cache.path, "--set", name, "--passes", 0, "--json", "--overwrite", "--run", scratch / "head")
    seconds: dict[str, list[float]] = {"strong": [], "ours": [], "again": []}
    for _ in range(3):
        seconds["strong"].append(_timed(*strong)[1])
        with _without_projections(cache):
            seconds["ours"].append(_timed("cli.py", "train-head", *where)[1])
            seconds["again"].append(_timed("cli.py", "train-head", *where)[1])
        say(str(seconds))
    plain = run(BASELINES / "heads_plain.py", *_npz(scratch), "--hidden", 512, "--lr", 1e-4, 1e-3, "--epochs", 20)
    five = run(*strong, "--seeds", len(SEEDS))
    return {
        "plain": {"seconds": plain["seconds_per_head"], "valid": plain["best"]},
        "strong": {
            "seconds": seconds["strong"],
            "valid": five["mean_last_epoch"],
            "best_epoch": five["mean_best_epoch"],
        },
        "ours": {"seconds": seconds["ours"], "again": seconds["again"]},  # accuracies: those of the defaults
    }


def measured_many(scratch: Path, cache: FeatureCache, name: str) -> dict[str, Any]:
    """64 heads, stopped early or not, on the clean rows: wall seconds of the search, and five seeds of the best."""
    strong = (BASELINES / "heads_strong.py", *_npz(scratch), "--regions", "pyramid", "--lda")
    theirs, seconds = _timed(*strong, "--halving", *GRID, *RATES)
    chosen = theirs["best_setting"]
    options = [text for key in ("hidden", "dropout", "lr") for text in (f"--{key}", chosen[key])]
    five = run(*strong, *options, "--seeds", len(SEEDS))
    where = ("--cache", cache.path, "--set", name, "--passes", 0, "--json", "--run", scratch / "sweep")
    with _without_projections(cache):
        ours, whole = _timed("cli.py", "sweep", *where)
    return {
        "strong": {
            "heads": theirs["heads"],
            "finished": theirs["finished"],
            "seconds": seconds,
            "valid": five["mean_last_epoch"],
        },
        "ours": {
            "heads": len(ours["heads"]),
            "finished": sum(head["finished"] for head in ours["heads"]),
            "seconds": whole - ours["retrain_seconds"] - ours["baselines"]["seconds"],
            "whole_seconds": whole,
            "retrain_seconds": ours["retrain_seconds"],
            "best": ours["best"],
            "baselines": ours["baselines"],
        },
    }


def _npz(scratch: Path) -> tuple[Path, Path]:
    return scratch / "train.npz", scratch / "valid.npz"


def _timed(*command: object) -> tuple[dict[str, Any], float]:
    """What a program prints, and the seconds it takes from start to end."""
    start = time.perf_counter()
    return run(*command), time.perf_counter() - start


@contextmanager
def _without_projections(cache: FeatureCache) -> Iterator[None]:
    """As in a new cache: rows in a basis that were kept are put aside meanwhile."""
    aside = cache.path / "aside"
    aside.mkdir()
    kept = projection_files(cache.path)
    for file in kept:
        file.rename(aside / file.name)
    try:
        yield
    finally:
        for file in projection_files(cache.path):
            file.unlink()
        for file in kept:
            (aside / file.name).rename(file)
        aside.rmdir()


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


def measured_sweep(scratch: Path, cache: Path, name: str, passes: int) -> dict[str, Any]:
    """The choice of 64 heads; test accuracy over its seeds, after the choice."""
    config = SweepConfig(cache, scratch / "sweep", name, passes, overwrite=True)
    result = sweep(config)
    tests = []
    for seed in range(1, 1 + config.seeds):
        again = TrainConfig(
            cache, scratch / "run", name, passes, seed=seed, overwrite=True, **asdict(result.best.config)
        )
        train_head(replace(again, epochs=_epochs(result)))
        tests.append(evaluate(EvaluateConfig(again.run)).top1)
    return {
        "passes": passes,
        "heads": len(result.heads),
        "seconds": result.seconds,
        "retrain_seconds": result.retrain_seconds,
        "best": asdict(result.best),
        "searched": asdict(result.searched),
        "default": asdict(result.default),
        "baselines": asdict(result.baselines),
        "test": tests,
    }


def _epochs(result: SweepResult) -> int:
    return max(head.epochs for head in result.heads)


def measured_split(scratch: Path, cache: FeatureCache, name: str) -> dict[str, Any]:
    """All of one image set, with no augmented pass and with the most it has."""
    index = cache.index(name)
    passes = sorted({0, 1, index.passes} & set(range(index.passes + 1)))
    swept = sorted({0, index.passes})
    return {
        "set": name,
        "images": index.counts(),
        "classes": len(index.classes),
        "defaults": [measured_heads(scratch, cache.path, name, number) for number in passes],
        "sweeps": [measured_sweep(scratch, cache.path, name, number) for number in swept],
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
    parser.add_argument("--only", choices=("speed", "accuracy", "untouched"))
    parser.add_argument("--caches", type=Path, help="folder of the untouched sets' caches [default: CACHE-untouched]")
    options = parser.parse_args(arguments)
    parts = [options.only] if options.only else ["speed", "accuracy", "untouched"]
    for part in parts:
        with tempfile.TemporaryDirectory() as text:
            write(part, f"make results ARGS='--only {part}'", measured(part, Path(text), options))


def measured(part: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One of the files of docs/results/."""
    if part == "untouched":
        return measured_untouched(options.caches or Path(f"{options.cache}-untouched"), scratch)
    cache = FeatureCache.open(options.cache)
    if part == "speed":
        return measured_speed(scratch, cache, options.images, DEVELOPED_ON[0])
    return {"splits": [measured_split(scratch, cache, name) for name in DEVELOPED_ON]}


if __name__ == "__main__":
    main()
