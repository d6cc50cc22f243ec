"""The other side of the parity gate: a fresh process that sees the model file and image files, nothing else.

Reads {"model", "paths", "precision", "device"} as JSON on standard input; writes log-probabilities by class name:
"rounded", at that precision with the backbone's output rounded to float16 as the cache rounds it, and "float32".
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbones.backbone import Backbone
from pipeline.bundle import Bundle, load_bundle
from pipeline.machine.device import available_cpus


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the request's image files, class by class."""
    torch.set_num_threads(available_cpus())
    bundle = load_bundle(request["model"])
    paths = [Path(path) for path in request["paths"]]
    device = torch.device(request["device"])
    rows = _rows(bundle, bundle.backbone(device, request["precision"]), paths)
    whole = rows if request["precision"] == "float32" else _rows(bundle, bundle.backbone(device, "float32"), paths)
    with torch.inference_mode():
        log_probs = {"rounded": bundle.head(rows.half().float()), "float32": bundle.head(whole)}
    return {kind: dict(zip(bundle.classes, values.T.tolist(), strict=True)) for kind, values in log_probs.items()}


def _rows(bundle: Bundle, backbone: Backbone, paths: list[Path]) -> Tensor:
    failed: dict[int, str] = {}
    batches = [rows for _, rows in bundle.rows(backbone, paths, failed)]
    if failed:
        raise SystemExit(f"{paths[next(iter(failed))]}: {next(iter(failed.values()))}")
    return torch.cat(batches)


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
