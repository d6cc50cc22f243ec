"""What halving and the choice of an epoch cost: heads of the default space, all trained to the end.

`make bench-rungs CACHE=features ARGS="--set flowers102"`. Accuracies are of validation. Prints, for several times of
the cuts, the rank correlation of the scores then with the last ones, and the regret of halving: by how much the best
head of all ends better than the best that is left, replayed on random halves of the heads. Then what keeping the best
epoch gains on images that did not choose it (random halves of validation), and what each basis reaches.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from beside import hardware, say
from scipy.stats import spearmanr

from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.heads.fit import default_epochs, hyperparameters_of, matmul_dtype_on, shape_of
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.device import CPU, available_cpus
from pipeline.search.basis_cache import BasisCache
from pipeline.search.choice import default_settings
from pipeline.search.proposals import start_search
from pipeline.search.space import default_space, first_trials

Hits = npt.NDArray[np.bool_]
GROUP, HALVES, DRAWS = 16, 200, 500


def hits_by_epoch(bases: BasisCache, heads: Sequence[HeadSettings], epochs: int, seed: int) -> Hits:
    """(M, E, V): whether each head is right about each validation image after each epoch."""
    found = np.empty((len(heads), epochs, len(bases.trainset.index.split("valid"))), bool)
    for settings in dict.fromkeys((head.basis, head.batch_size) for head in heads):
        alike = [n for n, head in enumerate(heads) if (head.basis, head.batch_size) == settings]
        data = bases.splits(settings[0])[0].data
        for start in range(0, len(alike), GROUP):
            some = alike[start : start + GROUP]
            shape = shape_of(heads[some[0]], data, epochs)
            states = [HeadState.new(hyperparameters_of(heads[n], seed), shape) for n in some]
            group = HeadGroup(states, shape, None, matmul_dtype_on(CPU))
            for epoch in range(1, epochs + 1):
                group.epoch(data.batches(settings[1], shuffle_rng(seed, epoch)))
                found[some, epoch - 1] = group.score(data.validation())[0].numpy()
        say(f"{settings[0]}: {len(alike)} heads")
    return found


def report_rungs(accuracy: npt.NDArray[np.float64]) -> None:
    """Of (M, E) accuracies: rank correlations, and halving replayed on random halves of the heads."""
    heads, epochs = accuracy.shape
    for first in (0.05, 0.1, 0.15, 0.25):
        ends = [max(1, round(epochs * share)) for share in (first, first**0.5, 1)]
        correlations = [spearmanr(accuracy[:, end - 1], accuracy[:, -1])[0] for end in ends[:2]]
        generator, regrets = np.random.default_rng(0), []
        for _ in range(DRAWS):
            left = drawn = generator.choice(heads, heads // 2, replace=False)
            for end, divisor in zip(ends, (4, 16), strict=False):
                left = left[np.argsort(-accuracy[left, end - 1], kind="stable")[: max(2, heads // 2 // divisor)]]
            regrets.append(accuracy[drawn, -1].max() - accuracy[left, -1].max())
        print(f"cuts after epochs {ends[0]} and {ends[1]} of {epochs}: rank correlation with the last ", end="")
        print(f"{correlations[0]:.2f} and {correlations[1]:.2f}, mean regret {100 * np.mean(regrets):.2f} points")


def report_epochs(hits: Hits) -> None:
    """What the best epoch gains over the last, on the half of the images that did not choose it."""
    generator, gains = np.random.default_rng(0), []
    for _ in range(HALVES):
        half = generator.random(hits.shape[2]) < 0.5
        chosen = hits[:, :, half].mean(2).argmax(1)
        others = hits[:, :, ~half].mean(2)
        gains.append(float((others[np.arange(len(hits)), chosen] - others[:, -1]).mean()))
    print(f"the best epoch in place of the last, on other images: {100 * np.mean(gains):+.2f} points")


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set", help="its image set")
    parser.add_argument("--passes", type=int)
    parser.add_argument("--heads", type=int, default=64)
    options = parser.parse_args()
    print(hardware(), flush=True)
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(options.cache, options.set, options.passes)
    default = default_settings(trainset)
    bases = BasisCache(trainset, 8 << 30)
    space = default_space(default.basis, len(trainset.index.classes), bases.most_directions)
    known = first_trials(space, default)
    heads = [*known, *start_search(SweepConfig(options.cache, Path(), heads=options.heads), space, known).ask()]
    epochs = default_epochs(len(trainset.index.split("train")), default.batch_size)
    hits = hits_by_epoch(bases, heads, epochs, seed=0)
    accuracy = hits.mean(2)
    report_rungs(accuracy)
    report_epochs(hits)
    for basis in dict.fromkeys(head.basis for head in heads):
        of_basis = 100 * accuracy[[n for n, head in enumerate(heads) if head.basis == basis], -1]
        first = next(n for n, head in enumerate(known) if head.basis == basis)
        print(f"{basis}: best {of_basis.max():.2f}, mean {of_basis.mean():.2f}, ", end="")
        print(f"its contender {100 * accuracy[first, -1]:.2f} % of {len(of_basis)} heads")


if __name__ == "__main__":
    main()
