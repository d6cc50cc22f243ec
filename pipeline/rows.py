"""Rows of an image set in a basis: fitted on training rows, projected once, kept in the cache."""

import hashlib
import time
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from cache import layout
from cache.index import ImageRecord, SetIndex
from cache.manifest import json_digest
from cache.projections import load_projection, save_projection
from cache.shard import RowKey
from cache.store import FeatureCache
from pipeline.basis import BASIS_VERSION, Basis, fit_stages, region_stage, whitening_regions
from pipeline.config import BasisName
from pipeline.console import Say, silent
from pipeline.errors import RunError


@dataclass(frozen=True)
class HeadData:
    """What a head is trained on: `rows` (M, R) float32; `train_rows` (N, P) and `valid_rows` (V,) point into it."""

    rows: Tensor
    train_rows: Tensor
    train_labels: Tensor
    valid_rows: Tensor
    valid_labels: Tensor
    num_classes: int


def load_data(
    cache: FeatureCache, index: SetIndex, passes: int, name: str, say: Say = silent
) -> tuple[Basis, HeadData]:
    """Fit basis `name` on the set's training rows and project training and validation rows; kept in the cache."""
    train, valid = index.split("train"), index.split("valid")
    if not valid:
        raise RunError(f"set {index.name!r} has no validation images: extract a data set with a valid/ folder")
    keys = list(dict.fromkeys(key for image in (*train, *valid) for key in image.keys(passes)))
    basis, rows = _projected(cache, index, keys, passes, name, say)
    place = {key: number for number, key in enumerate(keys)}
    return basis, HeadData(
        rows=rows,
        train_rows=torch.tensor([[place[key] for key in image.keys(passes)] for image in train]),
        train_labels=label_tensor(index, train),
        valid_rows=torch.tensor([place[image.key, layout.CLEAN_VIEW] for image in valid]),
        valid_labels=label_tensor(index, valid),
        num_classes=len(index.classes),
    )


def label_tensor(index: SetIndex, images: tuple[ImageRecord, ...]) -> Tensor:
    """Places of the images' labels in the set's class order, (N,) int64."""
    place = {name: number for number, name in enumerate(index.classes)}
    return torch.tensor([place[image.label] for image in images])


def _projected(
    cache: FeatureCache, index: SetIndex, keys: list[RowKey], passes: int, name: str, say: Say
) -> tuple[Basis, Tensor]:
    augmentation = cache.manifest.augmentation
    labels = sorted((image.digest, image.label, image.split) for image in index.images)
    key_digest = hashlib.sha256(b"".join(digest + view.encode() for digest, view in keys)).hexdigest()
    recipe = augmentation.digest if augmentation and passes else ""
    fitting = [BASIS_VERSION, asdict(BasisName.parse(name))]
    source = json_digest([*fitting, cache.manifest.base.digest, recipe, labels, key_digest])
    kept = load_projection(cache.path, source)
    if kept is not None:
        tensors = load(kept)
        rows = tensors.pop("rows")
        return Basis.from_tensors(name, tensors), rows
    start = time.perf_counter()
    basis, rows = _fit_basis(cache, index, keys, passes, name)
    if basis.stages:
        save_projection(cache.path, source, save({"rows": rows.contiguous(), **basis.tensors()}))
    seconds = time.perf_counter() - start
    say(f"basis {name}: {rows.shape[1]} of {cache.in_features} dimensions, {len(rows)} rows, {seconds:.1f} s")
    return basis, rows


def _fit_basis(
    cache: FeatureCache, index: SetIndex, keys: list[RowKey], passes: int, name: str
) -> tuple[Basis, Tensor]:
    """The basis, fitted on training rows, and all of `keys` in it (M, R)."""
    parsed = BasisName.parse(name)
    first = region_stage(parsed.regions, cache.row_shape)
    if first is None and parsed.shrinkage is not None:
        first = whitening_regions(cache.row_shape)
    start = Basis(name, (first,) if first else ())
    pooled: Tensor | None = None
    for positions, block in cache.blocks(keys):
        part = start.apply(block)
        pooled = torch.empty(len(keys), part.shape[1]) if pooled is None else pooled
        pooled[torch.from_numpy(positions)] = part
    assert pooled is not None
    place = {key: number for number, key in enumerate(keys)}
    train = index.split("train")
    rows = torch.tensor([place[key] for image in train for key in image.keys(passes)])
    labels = label_tensor(index, train).repeat_interleave(passes + 1)
    fitted = fit_stages(parsed, pooled[rows], labels, cache.row_shape)
    for stage in fitted:
        pooled = stage.apply(pooled)
    return Basis(name, (*start.stages, *fitted)), pooled
