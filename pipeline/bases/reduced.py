"""The basis that the rows of a reduced cache were reduced by, and reducing rows to be kept in one."""

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cache.errors import DamagedCache
from cache.layout import BASIS_FILE
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.errors import PipelineError


def reduction_basis(cache: FeatureCache) -> Basis | None:
    """The basis of a reduced cache; None where rows are whole, DamagedCache where it is not one for its rows."""
    reduction = cache.reduction
    if reduction is None:
        return None
    data = reduction.read_basis(cache.path)
    try:
        basis = Basis.from_tensors(reduction.basis, load(data))
        made = basis.transform(torch.zeros(1, reduction.in_features)).shape
        if made != (1, reduction.out_features):
            raise ValueError(f"it makes rows of {made[-1]}, expected {reduction.out_features}")
    except (SafetensorError, PipelineError, ValueError, IndexError, RuntimeError) as error:
        raise DamagedCache(
            f"{cache.path / BASIS_FILE} is not the basis of these rows ({error}): reduce anew"
        ) from error
    return basis


def reduce_rows(basis: Basis, rows: Float16Array) -> Float16Array:
    """Whole rows (N, D), as a cache rounds them, to (N, R); PipelineError for a number that float16 does not hold."""
    with torch.inference_mode():
        reduced = basis.apply(rows).half().numpy()
    if not np.isfinite(reduced).all():
        raise PipelineError(f"rows reduced by {basis.name} go beyond what float16 holds: choose another --basis")
    return reduced


def chained(first: Basis | None, second: Basis) -> Basis:
    """Both as one basis, over what `first` is applied to."""
    if first is None:
        return second
    return Basis(f"{first.name} then {second.name}", (*first.stages, *second.stages))
