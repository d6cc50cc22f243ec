"""Which hidden units dropout leaves out, for all heads of a group at once: 16 random bits for each hidden unit.

A head's numbers are its own, whatever the others are. Processors draw them from one generator a head; a device with
thousands of threads computes them in one go, from seed, step and place alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.heads.seeds import dropout_rng
from pipeline.machine.device import sums_in

_VALUES = 1 << 16


def least_kept(dropout: float) -> int:
    """Units that draw less are left out: the rate in steps of 2^-16, and never all of them."""
    return min(round(dropout * _VALUES), _VALUES - 1)


class DrawnDropout:
    """From SFC64, head by head."""

    def __init__(self, seeds: Sequence[int], dropouts: Sequence[float], states: Sequence[Any]) -> None:
        self._least = [least_kept(dropout) for dropout in dropouts]
        self._generators = [dropout_rng(seed) for seed in seeds]
        for generator, state in zip(self._generators, states, strict=True):
            generator.state = generator.state if state is None else state

    def sample(self, hidden: Tensor, step: int, rows: Sequence[int] | None = None) -> Tensor:
        """What hidden units (G, B, H) are multiplied by: 0, or what keeps the mean; `step` is not used.

        Of each head only so many `rows` are drawn as if they were all, where the others fill up the batch: they are 0.
        """
        _, longest, width = hidden.shape
        kept = torch.empty_like(hidden) if rows is None else torch.zeros_like(hidden)
        for number, (least, generator) in enumerate(zip(self._least, self._generators, strict=True)):
            own = longest if rows is None else rows[number]
            drawn = generator.random_raw(-(-own * width // 4)).view(np.uint16)[: own * width] >= least
            scale = _VALUES / (_VALUES - least)
            torch.mul(torch.from_numpy(drawn).view(own, width), scale, out=kept[number, :own])
        return kept

    def state(self, number: int) -> Any:
        """State of a head's generator, to resume from."""
        return self._generators[number].state


class HashedDropout:
    """A hash of seed, step and place: the finalizer of MurmurHash3 (Appleby, 2011), in 32-bit integers."""

    def __init__(self, seeds: Sequence[int], dropouts: Sequence[float], device: torch.device) -> None:
        least = np.array([least_kept(dropout) for dropout in dropouts])
        self._seeds = np.array(seeds, np.uint32)
        self._least = torch.from_numpy((least - _VALUES // 2).astype(np.int16)).to(device).unsqueeze(1)
        self._scale = torch.from_numpy(_VALUES / (_VALUES - least)).to(device, sums_in(device)).unsqueeze(1)

    def sample(self, hidden: Tensor, step: int, rows: Sequence[int] | None = None) -> Tensor:
        """What hidden units (G, B, H) are multiplied by after `step` steps: 0, or what keeps the mean.

        A row's numbers are the same whatever follows it, so `rows` is not used.
        """
        count = hidden[0].numel()
        keys = torch.from_numpy(_keys(self._seeds, step)).to(hidden.device).unsqueeze(1)
        places = torch.arange(-(-count // 2), dtype=torch.int32, device=hidden.device).mul_(_GOLDEN)
        drawn = _mix(places ^ keys).view(torch.int16)[:, :count]  # two numbers in each, from -2^15
        return ((drawn >= self._least) * self._scale.to(hidden.dtype)).view_as(hidden)

    def state(self, number: int) -> None:
        """Nothing: the numbers follow from the seed and the step."""


DropoutMask = DrawnDropout | HashedDropout


def _signed(number: int) -> int:
    """A constant of 32 bits as torch holds it."""
    return number - (1 << 32) if number >> 31 else number


_GOLDEN = _signed(0x9E3779B1)
_FIRST, _SECOND = _signed(0x85EBCA6B), _signed(0xC2B2AE35)


def _mix(x: Tensor) -> Tensor:
    """Every bit of `x`, int32, to every bit; in place."""
    x ^= (x >> 16) & 0xFFFF  # torch's shift copies the sign
    x *= _FIRST
    x ^= (x >> 13) & 0x7FFFF
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x


def _keys(seeds: npt.NDArray[np.uint32], step: int) -> npt.NDArray[np.int32]:
    """One for each head and step, far apart for neighbours."""
    steps = np.full(len(seeds), step, np.uint32)
    mixed = _mix(torch.from_numpy(seeds.view(np.int32).copy())) ^ torch.from_numpy(steps.view(np.int32)) * _GOLDEN
    keys: npt.NDArray[np.int32] = _mix(mixed).numpy()
    return keys
