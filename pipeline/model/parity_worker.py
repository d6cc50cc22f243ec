"""The other side of the parity gate: a fresh process that sees the model file and image files, nothing else.

Reads {"model", "paths", "precision", "device", "batches", "in_batches"} as JSON on standard input; writes
log-probabilities by class name: "rounded", at that precision with the backbone's output rounded to float16 as the cache
rounds it; "whole", not rounded, and under "batches" those of the first `in_batches` images in batches of other sizes;
and "float32".
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_bundle

ByClass = dict[str, list[float]]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the request's image files, class by class."""
    torch.set_num_threads(available_cpus())
    bundle = load_bundle(request["model"])
    paths = [Path(path) for path in request["paths"]]
    few = paths[: request["in_batches"]]
    device, precision = torch.device(request["device"]), request["precision"]
    rows = _rows(bundle, device, precision, paths)
    float32 = rows if precision == "float32" else _rows(bundle, device, "float32", paths)
    batches = {size: _rows(bundle, device, precision, few, size) for size in request["batches"]}
    return {
        "rounded": _by_class(bundle, rows.half().float()),
        "whole": _by_class(bundle, rows),
        "float32": _by_class(bundle, float32),
        "batches": {size: _by_class(bundle, found) for size, found in batches.items()},
    }


@torch.inference_mode()
def _by_class(bundle: Bundle, rows: Tensor) -> ByClass:
    return dict(zip(bundle.classes, bundle.head(rows).T.tolist(), strict=True))


def _rows(bundle: Bundle, device: torch.device, precision: str, paths: list[Path], size: int | None = None) -> Tensor:
    failed: dict[int, str] = {}
    batches = [rows for _, rows in bundle.rows(bundle.backbone(device, precision, size), paths, failed)]
    if failed:
        raise SystemExit(f"{paths[next(iter(failed))]}: {next(iter(failed.values()))}")
    return torch.cat(batches)


def main() -> None:
    """Standard input → standard output."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
