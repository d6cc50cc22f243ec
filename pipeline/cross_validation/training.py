"""A basis and a head for each fold, of all images but those of the fold, as many at a time as memory holds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.bases.basis import Basis
from pipeline.bases.sums import RegionSums
from pipeline.config.heads import HeadSettings
from pipeline.console import progress
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import refuse_beyond_memory
from pipeline.heads.side_by_side import fit_side_by_side
from pipeline.machine.device import CPU

MOST_AT_ONCE = 8  # more heads share a step no better, and progress is told when they are done


@dataclass(frozen=True)
class Part:
    """Images to train a head on and images that it predicts, places of each, and how it is trained."""

    trained: Tensor
    held_out: Tensor
    steps: int
    seed: int

    def of_all(self, rows: ImageRows) -> bool:
        """Whether every image is in one of the two."""
        return len(self.trained) + len(self.held_out) == len(rows.labels)


@torch.inference_mode()
def predicted(
    rows: ImageRows, parts: Sequence[Part], settings: HeadSettings, memory: int, device: torch.device = CPU
) -> Iterator[Tensor]:
    """Log-probabilities (n, C) of the images that each part holds out, by a head and a basis of those it trains on.

    As many heads at a time as `memory` bytes hold.
    """
    every = torch.arange(len(rows.labels))
    whole = rows.sums(every) if any(part.of_all(rows) for part in parts) else None
    together = max(1, min(MOST_AT_ONCE, memory // rows.rows.nbytes - 1))
    with progress(len(parts), "heads") as advance:
        for first in range(0, len(parts), together):
            some = parts[first : first + together]
            datas = [rows.data(_basis(rows, part, whole), part.trained, part.held_out) for part in some]
            refuse_beyond_memory(settings, datas[0])
            steps, seeds = [part.steps for part in some], [part.seed for part in some]
            heads = fit_side_by_side(datas, settings, steps, seeds, device)
            yield from (head(data.rows[data.valid_rows]) for head, data in zip(heads, datas, strict=True))
            advance(len(some))


def _basis(rows: ImageRows, part: Part, whole: RegionSums | None) -> Basis:
    if part.of_all(rows):
        return rows.basis_without(whole, part.held_out)
    return rows.basis(part.trained)


def out_of_fold(
    rows: ImageRows,
    folds: Tensor,
    settings: HeadSettings,
    epochs: int,
    seed: int,
    memory: int,
    device: torch.device = CPU,
) -> npt.NDArray[np.float32]:
    """Log-probabilities (N, C) of each image by the head of the other folds than its own, `folds` (N,)."""
    every, parts = torch.arange(len(folds)), []
    for fold in range(int(folds.max()) + 1):
        trained = every[folds != fold]
        steps = epochs * math.ceil(len(trained) / settings.batch_size)
        parts.append(Part(trained, every[folds == fold], steps, seed))
    found = torch.empty(len(folds), rows.num_classes)
    for part, log_probs in zip(parts, predicted(rows, parts, settings, memory, device), strict=True):
        found[part.held_out] = log_probs
    return found.numpy()
