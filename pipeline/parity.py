"""The other side of the parity gate: a fresh process that sees the model file and image files, nothing else.

Reads {"model", "paths", "precision", "device"} as JSON on standard input; writes {"rounded", "whole"}, the
log-probabilities by class name with the backbone's output rounded to float16 as the cache rounds it, and not.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.backbone import available_cpus
from pipeline.bundle import load_bundle


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the request's image files, class by class."""
    torch.set_num_threads(available_cpus())
    bundle = load_bundle(request["model"])
    backbone = bundle.backbone(torch.device(request["device"]), request["precision"])
    paths = [Path(path) for path in request["paths"]]
    result: dict[str, Any] = {}
    for kind in ("rounded", "whole"):
        log_probs, failed = bundle.log_probs(backbone, paths, rounded=kind == "rounded")
        if failed:
            raise SystemExit(f"{paths[next(iter(failed))]}: {next(iter(failed.values()))}")
        result[kind] = dict(zip(bundle.classes, log_probs.T.tolist(), strict=True))
    return result


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
