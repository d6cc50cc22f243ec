"""The other side of the parity gate: a fresh process that sees the model file and image files, nothing else.

Reads {"model", "weights", "paths", "precision", "batches", "in_batches"} as JSON on standard input; writes
log-probabilities by class name: "rounded", at that precision with the backbone's output rounded to float16 as the cache
rounds it; "whole", not rounded, and under "batches" those of the first `in_batches` images in batches of other sizes;
and "float32".
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from pipeline.machine.device import available_cpus
from pipeline.model.file import load_model


@torch.inference_mode()
def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the request's image files, class by class."""
    torch.set_num_threads(available_cpus())
    bundle = load_model(request["model"], request["weights"])
    paths, precision = request["paths"], request["precision"]

    def by_class(rows: Tensor) -> dict[str, list[float]]:
        return dict(zip(bundle.classes, bundle.head(rows).T.tolist(), strict=True))

    few = paths[: request["in_batches"]]
    rows = bundle.on("cpu", precision).features(paths)
    return {
        "rounded": by_class(rows.half().float()),
        "whole": by_class(rows),
        "float32": by_class(rows if precision == "float32" else bundle.on("cpu", "float32").features(paths)),
        "batches": {size: by_class(bundle.on("cpu", precision, size).features(few)) for size in request["batches"]},
    }


def main() -> None:
    """Standard input → standard output."""
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
