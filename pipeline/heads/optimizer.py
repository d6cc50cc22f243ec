"""AdamW (Loshchilov and Hutter, ICLR 2019) for heads in one array, each with its own rate and decay.

Processors step head by head, so that what is written stays in their caches; a device with thousands of threads steps
all heads at once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults
_OPTIONS: Any = {"beta1": _FIRST, "beta2": _SECOND, "eps": _EPSILON, "amsgrad": False, "maximize": False, "fused": True}
Arrays = dict[str, Tensor]  # each (G, ...)


class PerHeadAdamW:
    """torch's own, fused. As a function: the class imports torch's compiler, a second at every start."""

    def __init__(self, arrays: tuple[Arrays, Arrays, Arrays, Arrays], step: int, decays: Sequence[float]) -> None:
        names = list(arrays[0])
        steps = [[torch.tensor(float(step)) for _ in names] for _ in decays]
        parts = [[[array[name][number] for name in names] for array in arrays] for number in range(len(decays))]
        self._heads: list[Any] = [(*part, [], step) for part, step in zip(parts, steps, strict=True)]
        self._decays = decays

    def step(self, rates: Sequence[float]) -> None:
        """Weights and moments after one more step, in place."""
        for head, rate, decay in zip(self._heads, rates, self._decays, strict=True):
            adamw(*head, lr=rate, weight_decay=decay, **_OPTIONS)


class VectorizedAdamW:
    """The same numbers, in a few operations for all heads."""

    def __init__(self, arrays: tuple[Arrays, Arrays, Arrays, Arrays], step: int, decays: Sequence[float]) -> None:
        self._arrays = [tuple(array[name] for array in arrays) for name in arrays[0]]
        self._taken = step
        self._decays = decays

    def step(self, rates: Sequence[float]) -> None:
        """Weights and moments after one more step, in place."""
        self._taken += 1
        first_share, second_share = 1 - _FIRST**self._taken, 1 - _SECOND**self._taken
        for weight, gradient, first, second in self._arrays:
            shape = (-1, *(1,) * (weight.ndim - 1))
            rate, decay = (
                torch.tensor(values, dtype=weight.dtype).to(weight.device).view(shape)
                for values in (rates, self._decays)
            )
            weight.mul_(1 - rate * decay)
            first.lerp_(gradient, 1 - _FIRST)
            second.mul_(_SECOND).addcmul_(gradient, gradient, value=1 - _SECOND)
            weight.addcdiv_(first * (-rate / first_share), (second / second_share).sqrt_().add_(_EPSILON))
