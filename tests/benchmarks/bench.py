"""Stage one and stage two beside plain scripts, on the same images, in one run; prints the ratios.

`make bench CACHE=features` with the flowers' cache (pass 0 at least). The plain scripts are looked for in
$HEADGRAFT_BASELINES, the flowers in $HEADGRAFT_FLOWERS.
"""

import argparse
import tempfile
from pathlib import Path

from beside import BASELINES, hardware, run, subset, write_rows

from cache.store import FeatureCache
from pipeline.backbones.backbone import BACKBONES


def bench_extract(scratch: Path, count: int) -> None:
    """Images per second from files to features."""
    subset(scratch / "images", count)
    weights = BACKBONES["vgg16"].weights.path
    plain = run(BASELINES / "extract_plain.py", scratch / "images", weights, scratch / "plain.npz")
    ours = run("cli.py", "extract", scratch / "images", "--cache", scratch / "cache", "--json")
    whole = ours["computed"] / ours["seconds"]
    print(f"extract, {count} flowers: plain {plain['images_per_second']:.2f} images/s")
    print(f"  ours {ours['images_per_second']:.2f} steady, {whole:.2f} with warm-up and start")
    print(
        f"  ratio {ours['images_per_second'] / plain['images_per_second']:.2f} steady, "
        f"{whole / plain['images_per_second']:.2f} whole"
    )


def bench_heads(scratch: Path, folder: Path, name: str | None) -> None:
    """Seconds per head of 20 epochs on all clean training rows."""
    cache = FeatureCache.open(folder)
    for split in ("train", "valid"):
        write_rows(cache, split, scratch / f"{split}.npz", name)
    grid = ("--hidden", 512, "--dropout", 0.5, "--lr", 1e-4, 1e-3, "--epochs", 20)
    plain = run(BASELINES / "heads_plain.py", scratch / "train.npz", scratch / "valid.npz", *grid)
    chosen = ("--set", name) if name else ()
    command = ("cli.py", "train-head", "--cache", folder, "--run", scratch / "run", "--passes", 0, "--json", *chosen)
    ours = run(*command)
    print(f"head of 20 epochs: plain {plain['seconds_per_head']:.1f} s each, best valid {plain['best']:.2%}")
    print(f"  ours {ours['seconds']:.1f} s with start and basis, valid {ours['valid_accuracy']:.2%}")
    print(f"  ratio {plain['seconds_per_head'] / ours['seconds']:.1f}")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="the flowers' cache; without it only stage one is timed")
    parser.add_argument("--set", help="its image set")
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    print(hardware())
    with tempfile.TemporaryDirectory() as folder:
        bench_extract(Path(folder), options.images)
        if options.cache:
            bench_heads(Path(folder), options.cache, options.set)


if __name__ == "__main__":
    main()
