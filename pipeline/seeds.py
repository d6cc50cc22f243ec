"""Which random numbers a seed stands for: one stream for the order of rows, others for each head."""

import torch

_HEADS = 1 << 60  # beyond every order's: seeds are under 2^32, so heads and orders never draw the same numbers
_EPOCHS = 1 << 20  # more than any training has


def order_of(seed: int, epoch: int) -> torch.Generator:
    """Draws the order of rows, and the pass of each image, in epoch `epoch`; nothing but these two decides it."""
    return torch.Generator().manual_seed(seed * _EPOCHS + epoch)


def numbers_of_head(seed: int) -> torch.Generator:
    """Draws the first weights of a head, and then its dropout."""
    return torch.Generator().manual_seed(_HEADS + seed)
