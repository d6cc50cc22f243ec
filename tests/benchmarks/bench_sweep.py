"""How the cost of training heads grows with their number, with rows and epochs: lines, and how straight they are.

`make bench-sweep CACHE=features ARGS="--set flowers102"`. A sweep beside other scripts is in `make results`.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from beside import hardware, line

from pipeline.bases.basis import Basis
from pipeline.bases.data import HeadData
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings
from pipeline.machine.device import available_cpus
from pipeline.search.basis_cache import BasisCache, Split
from pipeline.search.executor import Trial
from pipeline.search.halving import SuccessiveHalving
from pipeline.search.journal import Journal
from pipeline.search.selection import Metric

BASIS = "pyramid+white+lda:4"
HEADS, EPOCHS = 16, 4  # where the others vary


@dataclass
class Given(BasisCache):
    """These rows, in whatever basis is asked for."""

    given: HeadData | None = None

    def splits(self, name: str) -> tuple[Split, ...]:
        assert self.given is not None
        return (Split(Basis(name, ()), self.given, self.given.valid_order),)


def bench_linear(cache: Path, name: str | None, passes: int) -> None:
    """Seconds by heads, by training images and by epochs, and a line through each."""
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(cache, name, passes)
    data = BasisCache(trainset, 8 << 30).splits(BASIS)[0].data
    assert isinstance(data, HeadData)
    metric = Metric("top1", data.valid_labels.numpy(), np.arange(len(data.valid_labels)))

    def seconds(heads: int = HEADS, images: int | None = None, epochs: int = EPOCHS) -> float:
        part = replace(data, train_rows=data.train_rows[:images], train_labels=data.train_labels[:images])
        settings = HeadSettings(BASIS, batch_size=128, lr=3e-3)
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal.open(Path(folder), {})
            race = SuccessiveHalving(Given(trainset, 0, given=part), journal, metric, epochs, 0, halving=False)
            start = time.perf_counter()
            race.run([Trial(number, settings) for number in range(heads)])
        return time.perf_counter() - start

    seconds()  # the first is slower
    count = len(data.train_labels)
    _fit("heads", [16, 32, 48, 64], [seconds(heads=n) for n in (16, 32, 48, 64)])
    parts = [count * quarters // 4 for quarters in (1, 2, 3, 4)]
    _fit("images", parts, [seconds(images=n) for n in parts])
    _fit("epochs", [2, 4, 8, 16], [seconds(epochs=n) for n in (2, 4, 8, 16)])


def _fit(what: str, numbers: list[int], seconds: list[float]) -> None:
    points = ", ".join(f"{n}: {s:.2f}" for n, s in zip(numbers, seconds, strict=True))
    print(f"seconds by {what}: {points}; {line(numbers, seconds)}", flush=True)


def main() -> None:
    """Of the set's cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set", help="its image set")
    parser.add_argument("--passes", type=int, default=2)
    options = parser.parse_args()
    print(hardware(), flush=True)
    bench_linear(options.cache, options.set, options.passes)


if __name__ == "__main__":
    main()
