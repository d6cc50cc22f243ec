"""Golden rows: what a network makes of four fixed views, in 16 numbers.

Another activation, another epsilon of a norm, other padding: the tensors are the same, of the same shapes, the rows are
not. The numbers are recorded with rows and models, and those of some weights are known.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Views = npt.NDArray[np.uint8]  # (N, size, size, 3)
Golden = tuple[float, ...]
VERSIONS = ("torch", "torchvision", "timm")  # libraries that can change them
_TOLERANCE = 1e-4  # of a root mean square; processors and versions of libraries differ by a hundredth of that


def golden_views(size: int) -> Views:
    """Four views of noise (4, size, size, 3), the same ones for ever, whatever the libraries."""
    noise = hashlib.shake_128(b"headgraft golden views 1").digest(4 * size * size * 3)
    return np.frombuffer(noise, np.uint8).reshape(4, size, size, 3)


def golden_pixels(size: int) -> Tensor:
    """These views as (4, 3, size, size) float32, scaled alike for all networks, whatever their preprocessing."""
    views = torch.from_numpy(golden_views(size).copy()).permute(0, 3, 1, 2)
    return (views.float() / 255 - 0.5) / 0.25


def golden_of(rows: Tensor) -> Golden:
    """Of a plain network's rows (4, D) of `golden_pixels`: the root mean square of each, and three sums with signs.

    The signs are noise, so that features in another order have other sums; these are over the square root of D.
    """
    features = rows.shape[1]
    noise = hashlib.shake_128(b"headgraft golden signs 1").digest(-(-3 * features // 8))
    signs = 2.0 * np.unpackbits(np.frombuffer(noise, np.uint8))[: 3 * features].reshape(3, features) - 1
    exact = rows.double().numpy()
    sums, sizes = exact @ signs.T / features**0.5, np.sqrt(np.square(exact).mean(1, keepdims=True))
    return tuple(float(f"{value:.6g}") for value in np.hstack([sizes, sums]).ravel())


def differ(one: Sequence[float], other: Golden) -> bool:
    """Whether these are of different networks, by more than processors and libraries do."""
    try:
        rows = np.reshape(np.array([one, other], np.float64), (2, 4, 4))
    except (ValueError, TypeError):  # provenance is free
        return True
    return not bool((np.abs(rows[0] - rows[1]) <= _TOLERANCE * rows[0, :, :1]).all())  # which NaN is not


@dataclass(frozen=True)
class KnownWeights:
    """Weights that this program knows the golden rows of, and the backbone that they belong to."""

    backbone: str
    digest: str
    layer: str
    input_size: int
    golden: Golden


@cache
def _all_known() -> list[KnownWeights]:
    return msgspec.json.decode((files(__package__) / "golden.json").read_bytes(), type=list[KnownWeights])


def known(digest: str, layer: str, input_size: int) -> KnownWeights | None:
    """Those of this digest, seen at this layer and size; None of others."""
    asked = (digest, layer, input_size)
    return next((one for one in _all_known() if (one.digest, one.layer, one.input_size) == asked), None)
