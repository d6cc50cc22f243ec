"""What augmented passes and dense views bring for what they cost: test accuracy by forwards an image.

`make bench-dense CACHE=features ARGS="--set flowers102"`, of a cache with passes and dense views. Each line is the mean
of five heads of one group, after the last epoch; a forward is one clean view through the backbone.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from beside import hardware

from pipeline.bases.rows import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings
from pipeline.console import silent
from pipeline.evaluate import log_probs_of_split
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.head import head_from_tensors
from pipeline.heads.seeds import order_of
from pipeline.machine.device import available_cpus, computes_bfloat16
from pipeline.machine.memory import allowed_bytes
from pipeline.run import Run
from pipeline.train import member_of, shape_of


def accuracies(rows: TrainingSet, settings: HeadSettings, epochs: int, seeds: int) -> list[float]:
    """Test accuracy of each of `seeds` heads."""
    basis, data = load_data(rows, settings.basis, allowed_bytes(None), silent)
    shape = shape_of(settings, data, epochs)
    states = [HeadState.new(member_of(settings, seed), shape) for seed in range(seeds)]
    products = torch.bfloat16 if computes_bfloat16(torch.device("cpu")) else None
    group = HeadGroup(states, shape, products=products)
    for epoch in range(1, epochs + 1):
        group.epoch(data.batches(settings.batch_size, order_of(0, epoch)))
    found = []
    for place in range(seeds):
        run = Run(Path("-"), {"classes": rows.index.classes}, basis, head_from_tensors(group.weights(place)))
        log_probs, labels = log_probs_of_split(run, rows.cache, rows.index, "test")
        found.append(float((log_probs.argmax(1) == labels).double().mean()))
    return found


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--set")
    parser.add_argument("--passes", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dense", type=int, default=288)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--basis", default="pyramid+white+lda:4")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()
    settings = HeadSettings(options.basis, options.hidden, 0.7, options.lr, 128)
    torch.set_num_threads(available_cpus())
    print(hardware(), flush=True)
    for dense in (0, options.dense):
        for passes in options.passes:
            rows = TrainingSet.open(options.cache, options.set, passes, silent, dense)
            found = accuracies(rows, settings, options.epochs, options.seeds)
            extra = (dense / rows.cache.manifest.base.input_size) ** 2
            mean, low, high = (f"{100 * value:.2f}" for value in (np.mean(found), min(found), max(found)))
            print(
                f"  {passes} passes, dense {dense}: {1 + passes + extra:.2f} forwards, {mean} ({low} to {high})",
                flush=True,
            )


if __name__ == "__main__":
    main()
