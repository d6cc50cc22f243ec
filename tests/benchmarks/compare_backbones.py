"""The table of docs/backbones.md: `headgraft compare` on caches of both splits of the flowers.

    make compare-backbones CACHES="features features-mobilenet_v2 ..."

Each cache holds the sets `flowers102` and `official`. Real weights of networks beside VGG16 and AlexNet are written by
`python tests/real_weights.py FOLDER`. Writes docs/results/compare.json, from which docs/write.py makes the table.
"""

import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

from beside import ROOT, hardware

from cache.store import FeatureCache
from pipeline.commands.compare import compare
from pipeline.config.heads import CompareConfig

RESULT = ROOT / "docs/results/compare.json"
SPLITS = {"flowers102": "Udacity split", "official": "Oxford split"}


def main(caches: tuple[Path, ...]) -> None:
    """Both splits, with one augmented pass."""
    splits = []
    for name, split in SPLITS.items():
        found = asdict(compare(CompareConfig(caches=caches, set=name, passes=1)))
        for one in found["backbones"]:
            del one["cache"]
        splits.append({"split": split, **found})
    bases = [FeatureCache.open(cache).manifest.base for cache in caches]
    result = {
        "command": "make compare-backbones",
        "date": f"{date.today()}",
        "hardware": hardware(),
        "precision": {base.backbone: base.precision for base in bases},
        "splits": splits,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tuple(map(Path, sys.argv[1:])))
