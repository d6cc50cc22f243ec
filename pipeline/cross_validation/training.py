"""A basis and a head for each fold, of all images but those of the fold, as many at a time as memory holds."""

import logging

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import HeadSettings
from pipeline.console import progress
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import refuse_beyond_memory
from pipeline.heads.side_by_side import fit_side_by_side
from pipeline.machine.device import CPU

logger = logging.getLogger("headgraft.cross_validation")

_MOST_AT_ONCE = 16  # more heads share a step no better


@torch.inference_mode()
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
    found = torch.empty(len(folds), rows.num_classes)
    count, everything = int(folds.max()) + 1, torch.arange(len(folds))
    sums = rows.sums(everything)
    together = max(1, min(_MOST_AT_ONCE, memory // rows.rows.nbytes - 1))
    with progress(count, "folds") as advance:
        for first in range(0, count, together):
            numbers = range(first, min(first + together, count))
            parts = [(everything[folds != number], everything[folds == number]) for number in numbers]
            bases = [rows.basis(trained, sums, held_out) for trained, held_out in parts]
            datas = [rows.data(basis, *part) for basis, part in zip(bases, parts, strict=True)]
            refuse_beyond_memory(settings, datas[0])
            heads = fit_side_by_side(datas, settings, epochs, seed, device)
            for head, data, (_, held_out) in zip(heads, datas, parts, strict=True):
                found[held_out] = head(data.rows[data.valid_rows])
            advance(len(numbers))
    return found.numpy()
