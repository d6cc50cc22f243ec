"""What the benchmarks share: running a program beside ours, and handing it the same rows."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from cache.store import FeatureCache
from pipeline.features import load_features

ROOT = Path(__file__).resolve().parents[2]
FLOWERS = Path(os.environ.get("HEADGRAFT_FLOWERS", ROOT / "../shared/flowers102"))
DATA = Path(os.environ.get("HEADGRAFT_DATA", ROOT / "../shared/data"))
BASELINES = Path(os.environ.get("HEADGRAFT_BASELINES", ROOT / "../shared/baselines"))


def say(line: str) -> None:
    """Print one line for the person watching."""
    print(line, file=sys.stderr, flush=True)


def run(*command: object) -> dict[str, Any]:
    """Run a program and return the JSON of its last line."""
    result = subprocess.run(
        [sys.executable, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def write_rows(cache: FeatureCache, split: str, path: Path, name: str | None) -> None:
    """Clean rows of one split as the plain script reads them."""
    found = load_features(cache.path, split, name)
    np.savez(path, features=found.X, labels=found.y)


def subset(folder: Path, count: int, splits: str = "train") -> Path:
    """Links to `count` flowers, chosen by the digest of their names, in class folders; `splits` as a pattern."""
    files = sorted(FLOWERS.glob(f"{splits}/*/*.jpg"), key=lambda p: hashlib.sha256(p.name.encode()).digest())
    for file in files[:count]:
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.resolve())
    return folder


def straight(numbers: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Slope of the straight line through these points, where it starts, and R², how straight they lie."""
    slope, start = np.polyfit(numbers, seconds, 1)
    left = np.array(seconds) - (slope * np.array(numbers) + start)
    return float(slope), float(start), float(1 - left.var() / np.var(seconds))


def line(numbers: Sequence[int], seconds: Sequence[float]) -> str:
    """That line in words."""
    slope, start, r2 = straight(numbers, seconds)
    return f"{1000 * slope:.2f} ms each, {start:+.2f} s at 0, R² {r2:.4f}"


def hardware() -> str:
    """Versions and machine, in one line."""
    have = (torch.backends.cpu.get_cpu_capability(), f"{os.cpu_count()} processors", platform.platform())
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, {', '.join(have)}"
