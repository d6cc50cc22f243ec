"""Rows of an image set in a basis: fitted on training rows, projected once, kept in the cache."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from heapq import nsmallest

import torch
from safetensors.torch import load, save
from torch import Tensor

from cache import layout
from cache.index import ImageRecord, SetIndex
from cache.keys import RowKey, pack_digests
from cache.manifest import json_digest
from cache.projections import load_projection, save_projection
from cache.store import FeatureCache
from pipeline.basis import BASIS_VERSION, Basis, fit_stages, region_stage, whitening_regions
from pipeline.config import BasisName
from pipeline.console import Say, silent, size
from pipeline.errors import RunError
from pipeline.stream import StreamedData

_FEWEST_TO_FIT = 1000  # rows that a basis is fitted on, however little memory there is
_ROWS_AT_ONCE = 256  # turned to float32 together


@dataclass(frozen=True)
class HeadData:
    """What a head is trained on: `rows` (M, R) float32; `train_rows` (N, P) and `valid_rows` (V,) point into it."""

    rows: Tensor
    train_rows: Tensor
    train_labels: Tensor
    valid_rows: Tensor
    valid_labels: Tensor
    num_classes: int

    @property
    def in_features(self) -> int:
        """R, what the head sees of a row."""
        return self.rows.shape[1]

    @property
    def num_images(self) -> int:
        """N, training images: rows of an epoch."""
        return len(self.train_rows)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (batch_size, R) and labels of an epoch, shuffled: one drawn pass of each training image."""
        images, views = self.train_rows.shape
        drawn = torch.randint(views, (images,), generator=generator)
        for batch in torch.randperm(images, generator=generator).split(batch_size):
            yield self.rows[self.train_rows[batch, drawn[batch]]], self.train_labels[batch]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images."""
        for rows, labels in zip(self.valid_rows.split(1024), self.valid_labels.split(1024), strict=True):
            yield self.rows[rows], labels


def load_data(
    cache: FeatureCache, index: SetIndex, passes: int, name: str, memory: int, say: Say = silent
) -> tuple[Basis, HeadData | StreamedData]:
    """Fit basis `name` on the set's training rows and project training and validation rows; kept in the cache.

    Where that takes more than `memory` bytes, the basis is fitted on a sample, and rows are read in each epoch.
    """
    train, valid = index.split("train"), index.split("valid")
    if not valid:
        raise RunError(f"set {index.name!r} has no validation images: extract a data set with a valid/ folder")
    count, each = len(train) * (passes + 1) + len(valid), _row_bytes(cache, name)
    if count * each > memory:
        say(f"{count} rows of {each} bytes are more than {size(memory)} of memory: they are read in each epoch")
        return _streamed(cache, index, passes, name, memory, say)
    return _in_memory(cache, index, passes, name, say)


def _row_bytes(cache: FeatureCache, name: str) -> int:
    """Memory that a row takes while a basis is fitted: float32, and copies for what is fitted after the regions."""
    parsed = BasisName.parse(name)
    regions = region_stage(parsed.regions, cache.row_shape)
    fitted = name != "full"
    width = cache.in_features if regions is None else cache.row_shape[0] * regions.weights.shape[1]
    return 4 * width * (4 if fitted else 1)


def _streamed(
    cache: FeatureCache, index: SetIndex, passes: int, name: str, memory: int, say: Say
) -> tuple[Basis, StreamedData]:
    """The basis of a sample that half the memory holds, and a window in a quarter of it."""
    train, valid = index.split("train"), index.split("valid")
    sample, labels = _sample(index, train, passes, max(_FEWEST_TO_FIT, memory // 2 // _row_bytes(cache, name)))
    say(f"basis {name}: fitted on {len(sample)} of {len(train) * (passes + 1)} training rows")
    basis, fitted = _fit_basis(cache, sample, torch.arange(len(sample)), labels, name)
    width = fitted.shape[1]
    return basis, StreamedData(
        cache,
        basis,
        pack_digests(image.digest for image in train),
        label_tensor(index, train),
        pack_digests(image.digest for image in valid),
        label_tensor(index, valid),
        len(index.classes),
        passes,
        width,
        window=max(1, memory // 4 // (4 * width)),
    )


def _sample(index: SetIndex, train: Sequence[ImageRecord], passes: int, count: int) -> tuple[list[RowKey], Tensor]:
    """At most `count` training rows, those of the lowest digests, which is a random choice; and their labels."""
    rows = {key: image for image in train for key in image.keys(passes)}
    keys = nsmallest(count, rows)
    return keys, label_tensor(index, [rows[key] for key in keys])


def _in_memory(cache: FeatureCache, index: SetIndex, passes: int, name: str, say: Say) -> tuple[Basis, HeadData]:
    train, valid = index.split("train"), index.split("valid")
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


def label_tensor(index: SetIndex, images: Sequence[ImageRecord]) -> Tensor:
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
    place = {key: number for number, key in enumerate(keys)}
    train = index.split("train")
    fit_on = torch.tensor([place[key] for image in train for key in image.keys(passes)])
    labels_of = label_tensor(index, train).repeat_interleave(passes + 1)
    basis, rows = _fit_basis(cache, keys, fit_on, labels_of, name)
    if basis.stages:
        save_projection(cache.path, source, save({"rows": rows.contiguous(), **basis.tensors()}))
    seconds = time.perf_counter() - start
    say(f"basis {name}: {rows.shape[1]} of {cache.in_features} dimensions, {len(rows)} rows, {seconds:.1f} s")
    return basis, rows


def _fit_basis(
    cache: FeatureCache, keys: list[RowKey], fit_on: Tensor, labels: Tensor, name: str
) -> tuple[Basis, Tensor]:
    """The basis, fitted on the rows of `keys` at `fit_on` (N,) with `labels` (N,), and all of `keys` in it (M, R)."""
    parsed = BasisName.parse(name)
    first = region_stage(parsed.regions, cache.row_shape)
    if first is None and parsed.shrinkage is not None:
        first = whitening_regions(cache.row_shape)
    start = Basis(name, (first,) if first else ())
    pooled: Tensor | None = None
    for positions, block in cache.blocks(keys, _ROWS_AT_ONCE):
        part = start.apply(block)
        pooled = torch.empty(len(keys), part.shape[1]) if pooled is None else pooled
        pooled[torch.from_numpy(positions)] = part
    assert pooled is not None
    fitted = fit_stages(parsed, pooled[fit_on], labels, cache.row_shape)
    for stage in fitted:
        pooled = stage.apply(pooled)
    return Basis(name, (*start.stages, *fitted)), pooled
