"""The basis that the rows of a reduced cache were reduced by, the images it was fitted on, and reducing rows."""

from collections.abc import Iterable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache.errors import DamagedCache
from cache.index import ImageRecord, SetIndex
from cache.keys import pack_digests
from cache.layout import BASIS_FILE
from cache.records import fault
from cache.reduction import Reduction
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.basis_name import BasisName
from pipeline.errors import PipelineError

_IMAGES = "images"  # the array of the basis file that is no part of the basis: (N, _BYTES) uint8
_BYTES = 16  # of an image's SHA-256: 16 MB for a million images


def packed_basis(basis: Basis, fitted_on: Iterable[ImageRecord]) -> bytes:
    """The file of a reduced cache's basis: its arrays, and the digests of the images that it was fitted on."""
    digests = np.unique(pack_digests(image.digest for image in fitted_on)[:, :_BYTES], axis=0)
    return save({**basis.tensors(), _IMAGES: torch.from_numpy(digests)})


def uses_labels(basis: str) -> bool:
    """Whether labels take part in fitting the basis of this name: in whitening and in discriminants they do."""
    name = BasisName.parse(basis)
    return name.shrinkage is not None or name.discriminant is not None


def sees_labels(cache: FeatureCache) -> bool:
    """Whether labels took part in reducing the rows of a cache."""
    reduction = cache.reduction
    return reduction is not None and bool(reduction.fitted_on.get("labels", uses_labels(reduction.basis)))


def fitted_among(cache: FeatureCache, images: Iterable[ImageRecord]) -> int:
    """How many distinct images of these the cache's reduction was fitted on; 0 where rows are complete."""
    if cache.reduction is None:
        return 0
    return len({image.key[:_BYTES] for image in images} & _fitted_images(cache, cache.reduction))


def _fitted_images(cache: FeatureCache, reduction: Reduction) -> set[bytes]:
    """First bytes of the digests: as kept with the basis, or where an earlier version did not, those of the set."""
    if (kept := _arrays(cache, reduction)[1]) is not None:
        return set(kept.numpy().view(f"V{_BYTES}").ravel().tolist())
    name = reduction.fitted_on.get("set")
    index = cache.index(name) if name in cache.sets() else None
    if index is None or index.digest != reduction.fitted_on.get("set_digest"):
        raise DamagedCache(
            f"{cache.path / BASIS_FILE} does not name the images that the reduction was fitted on, and set {name!r} is "
            "not here as it was then: run cache reduce again, into another folder"
        )
    return {image.key[:_BYTES] for image in index.split("train")}


def unchecked(cache: FeatureCache, index: SetIndex) -> str:
    """Why a fit on a part of the set's images cannot check the labels of the others; "" where it can."""
    if not sees_labels(cache) or not (seen := fitted_among(cache, index.split("train", "valid"))):
        return ""
    assert cache.reduction is not None
    return (
        f"Labels cannot be checked: the rows of {cache.path} were reduced by {cache.reduction.basis}, which was fitted "
        f"on the labels of {seen:,} of these images. Make the report of a run on the cache that was reduced."
    )


def reduction_basis(cache: FeatureCache) -> Basis | None:
    """The basis of a reduced cache; None where rows are whole, DamagedCache where it is not one for its rows."""
    reduction = cache.reduction
    if reduction is None:
        return None
    try:
        basis = Basis.from_tensors(reduction.basis, _arrays(cache, reduction)[0])
        if (made := basis.out_features(reduction.in_features)) != reduction.out_features:
            raise ValueError(f"it makes rows of {made}, expected {reduction.out_features}")
    except (PipelineError, ValueError, IndexError, RuntimeError) as error:
        raise DamagedCache(
            f"{cache.path / BASIS_FILE} is not the basis of these rows ({fault(error)}): reduce again"
        ) from error
    return basis


def _arrays(cache: FeatureCache, reduction: Reduction) -> tuple[dict[str, Tensor], Tensor | None]:
    """The arrays of the basis, and the first bytes of the digests (N, 16) of the images it was fitted on, if kept."""
    data = reduction.read_basis(cache.path)
    try:
        arrays = load(data)
        images = arrays.pop(_IMAGES, None)
        if images is not None and (images.dtype != torch.uint8 or images.ndim != 2 or images.shape[1] != _BYTES):
            raise ValueError(f"{_IMAGES} of {images.dtype} {tuple(images.shape)}")
    except (SafetensorError, ValueError) as error:
        raise DamagedCache(
            f"{cache.path / BASIS_FILE} is not the basis of its rows ({fault(error)}): reduce again"
        ) from error
    return arrays, images


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
