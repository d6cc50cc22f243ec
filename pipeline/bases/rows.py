"""Rows of an image set in a basis: fitted on training rows, projected once, kept in the cache."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache import layout
from cache.errors import CacheError
from cache.keys import RowKey, join_keys, pack_digests
from cache.manifest import json_digest
from cache.projections import load_projection, save_projection
from cache.store import FeatureCache, Positions
from pipeline.bases.basis import Basis, Stage
from pipeline.bases.directions import Blocks, ScatterMatrices, scatter_of
from pipeline.bases.fit import (
    BASIS_VERSION,
    Shared,
    directions,
    first_stages,
    fit_basis,
    start_basis,
    started_width,
    without_last,
)
from pipeline.bases.stream import ROWS_AT_ONCE, StreamedData, read_shards
from pipeline.bases.trainset import TrainingSet
from pipeline.basis_name import BasisName
from pipeline.console import counted, reason, size
from pipeline.errors import PipelineError

logger = logging.getLogger("headgraft.bases")

ROWS_TO_SCORE = 1024  # together
ROWS_TO_FIT = 2048
_FEWEST_FOR_COMPONENTS = 1000  # rows that principal directions are fitted on, however little memory there is


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

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return self.rows.nbytes

    def all_views(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of all views of the training images."""
        return (block for view in self.train_rows.T for block in self._blocks(view, self.train_labels))

    def clean(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the clean view of the training images."""
        return self._blocks(self.train_rows[:, 0], self.train_labels)

    @property
    def valid_order(self) -> Tensor:
        """Positions of the validation images in `valid_labels` (V,), in the order of `validation`."""
        return torch.arange(len(self.valid_labels))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and labels of the validation images."""
        return self._blocks(self.valid_rows, self.valid_labels)

    def _blocks(self, places: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for some, theirs in zip(places.split(ROWS_TO_SCORE), labels.split(ROWS_TO_SCORE), strict=True):
            yield self.rows[some], theirs


def load_data(
    trainset: TrainingSet, name: str, memory: int, shared: Shared | None = None
) -> tuple[Basis, HeadData | StreamedData]:
    """Fit basis `name` on the set's training rows and project training and validation rows; kept in the cache.

    Where that takes more than `memory` bytes, the basis is fitted block by block, and rows are read in each epoch.
    `shared` keeps, for further bases of the same rows, what they have in common.
    """
    train, valid = trainset.index.split("train"), trainset.index.split("valid")
    count, each = len(train) * len(trainset.views) + len(valid), _row_bytes(trainset.cache, name)
    if count * each > memory:
        logger.info(f"{count} rows of {each} bytes are more than {size(memory)} of memory: they are read in each epoch")
        return _streamed(trainset, name, memory)
    return _in_memory(trainset, name, shared or Shared())


def _row_bytes(cache: FeatureCache, name: str) -> int:
    """Memory of a row while a basis is fitted and applied: before and after, with components twice as often."""
    width = started_width(start_basis(name, cache.row_shape), cache.row_shape)
    return 4 * width * (2 if BasisName.parse(name).components is None else 4)


def _streamed(trainset: TrainingSet, name: str, memory: int) -> tuple[Basis, StreamedData]:
    """A basis fitted shard by shard, its components on a sample that half the memory holds; a window in a quarter."""
    cache, index = trainset.cache, trainset.index
    train, valid = index.split("train"), index.split("valid")
    digests, labels = pack_digests(image.digest for image in train), torch.from_numpy(index.labels(train))
    views = [np.full(len(train), view, layout.VIEW_DTYPE) for view in trainset.views]
    keys = np.concatenate([join_keys(digests, view) for view in views])
    start = start_basis(name, cache.row_shape)

    def blocks(chosen: Positions) -> Iterator[tuple[Tensor, Tensor]]:
        for positions, rows in read_shards(cache, keys[chosen]):
            yield start.apply(rows), labels[torch.from_numpy(chosen)[positions] % len(train)]

    most = max(_FEWEST_FOR_COMPONENTS, memory // 2 // _row_bytes(cache, name))
    sample = np.argsort(keys)[:most]  # of the lowest digests: a random choice
    basis = fit_basis(
        start,
        lambda: blocks(np.arange(len(keys))),
        len(index.classes),
        cache.row_shape,
        lambda: blocks(sample),
    )
    logger.info(f"basis {name}: fitted on {len(keys)} training rows")
    width = basis.transform(torch.zeros(1, cache.in_features)).shape[1]
    return basis, StreamedData(
        cache,
        basis,
        digests,
        labels,
        pack_digests(image.digest for image in valid),
        torch.from_numpy(index.labels(valid)),
        len(index.classes),
        trainset.views,
        width,
        window=max(1, memory // 4 // (4 * width)),
    )


def _in_memory(trainset: TrainingSet, name: str, shared: Shared) -> tuple[Basis, HeadData]:
    index, views = trainset.index, trainset.views
    train, valid = index.split("train"), index.split("valid")
    keys = _keys_of(trainset)
    place = {key: number for number, key in enumerate(keys)}
    train_rows = torch.tensor([[place[image.key, view] for view in views] for image in train])
    basis, projected = _projected(trainset, keys, train_rows, name, shared)
    return basis, HeadData(
        rows=projected,
        train_rows=train_rows,
        train_labels=torch.from_numpy(index.labels(train)),
        valid_rows=torch.tensor([place[image.key, layout.CLEAN_VIEW] for image in valid]),
        valid_labels=torch.from_numpy(index.labels(valid)),
        num_classes=len(index.classes),
    )


def _keys_of(trainset: TrainingSet) -> list[RowKey]:
    """Distinct keys that training reads: every view of the training images, then the clean one of validation."""
    train = [(image.key, view) for image in trainset.index.split("train") for view in trainset.views]
    return list(dict.fromkeys([*train, *((image.key, layout.CLEAN_VIEW) for image in trainset.index.split("valid"))]))


def source_of(trainset: TrainingSet, name: str) -> str:
    """The digest of everything that basis `name` of these rows is made from."""
    return _source(trainset, name, _keys_of(trainset))


def _source(trainset: TrainingSet, name: str, keys: list[RowKey]) -> str:
    labels = sorted((image.digest, image.label, image.split) for image in trainset.index.images)
    key_digest = hashlib.sha256(b"".join(digest + view.encode() for digest, view in keys)).hexdigest()
    fitting = [BASIS_VERSION, asdict(BasisName.parse(name))]
    reduced = [trainset.cache.basis_digest] if trainset.cache.reduction else []
    return json_digest([*fitting, trainset.cache.manifest.base.digest, trainset.recipe, labels, key_digest, *reduced])


def _projected(
    trainset: TrainingSet, keys: list[RowKey], train_rows: Tensor, name: str, shared: Shared
) -> tuple[Basis, Tensor]:
    """The basis, fitted on the rows of `keys` at `train_rows` (N, P), and all of them in it (M, R)."""
    cache, index = trainset.cache, trainset.index
    source = _source(trainset, name, keys)
    if kept := _kept(cache, source, name, keys):
        return kept
    start = time.perf_counter()
    logger.info(f"basis {name}: fitting it on {counted(len(index.split('train')), 'training image')}")
    fit_on = train_rows.flatten()
    labels_of = torch.from_numpy(index.labels(index.split("train"))).repeat_interleave(train_rows.shape[1])
    start_of = start_basis(name, cache.row_shape)
    rows = _started(cache, keys, start_of, shared)
    basis, rows = _fit_and_apply(cache, rows, start_of, fit_on, labels_of, len(index.classes), shared)
    if basis.stages:
        try:
            save_projection(cache.path, source, save({"rows": rows.contiguous(), **basis.tensors()}))
        except (CacheError, OSError) as error:  # they can be made again, so that a read-only cache can be trained on
            logger.warning(f"{cache.path} does not keep the projected features: {reason(error)}")
    seconds = time.perf_counter() - start
    logger.info(f"basis {name}: {rows.shape[1]} of {cache.in_features} dimensions, {len(rows)} rows, {seconds:.1f} s")
    return basis, rows


def _kept(cache: FeatureCache, source: str, name: str, keys: list[RowKey]) -> tuple[Basis, Tensor] | None:
    """The basis and rows kept under `source`, if they are what such a file has and agree with the cache."""
    data = load_projection(cache.path, source)
    if data is None:
        return None
    try:
        tensors = load(data)
        rows = tensors.pop("rows")
        basis = Basis.from_tensors(name, tensors)
        ends = basis.apply(cache.read([keys[0], keys[-1]]))
        sound = rows.shape == (len(keys), ends.shape[1]) and rows.dtype == torch.float32
        if sound and torch.allclose(rows[[0, -1]], ends, rtol=1e-3, atol=1e-3):
            return basis, rows
    except (SafetensorError, PipelineError, KeyError, IndexError, ValueError, RuntimeError):
        pass
    return None  # not made by this program, and only a copy: it is made again


def _started(cache: FeatureCache, keys: list[RowKey], start: Basis, shared: Shared) -> Tensor:
    """Rows of `keys` in their regions, (M, R0); kept in `shared`."""
    name = "" if not start.stages else BasisName.parse(start.name).regions
    if name not in shared.regions:
        rows = torch.empty(len(keys), start.transform(torch.zeros(1, cache.in_features)).shape[1])
        for positions, block in cache.blocks(keys, ROWS_AT_ONCE):
            rows[torch.from_numpy(positions)] = start.apply(block)
        shared.regions[name] = rows
    return shared.regions[name]


def _fit_and_apply(
    cache: FeatureCache,
    rows: Tensor,
    start: Basis,
    fit_on: Tensor,
    labels: Tensor,
    num_classes: int,
    shared: Shared,
) -> tuple[Basis, Tensor]:
    """The basis, fitted on `rows` (M, R0) at `fit_on` (N,) with `labels` (N,), and all of `rows` in it (M, R)."""
    name = BasisName.parse(start.name)
    first = without_last(name)
    if first not in shared.first:
        stages = first_stages(name, _in_blocks(rows, fit_on, labels), num_classes, cache.row_shape)
        shared.first[first] = stages, _apply(stages, rows)
    stages, rows = shared.first[first]

    def spread() -> ScatterMatrices:
        if first not in shared.spreads:
            shared.spreads[first] = scatter_of(_in_blocks(rows, fit_on, labels), num_classes)
        return shared.spreads[first]

    last = directions(name, rows.shape[1], spread, _in_blocks(rows, fit_on, labels))
    return Basis(start.name, (*start.stages, *stages, *last)), _apply(last, rows)


def _in_blocks(rows: Tensor, places: Tensor, labels: Tensor) -> Blocks:
    """`rows` at `places` with their labels, some at a time."""
    parts = places.split(ROWS_TO_FIT), labels.split(ROWS_TO_FIT)
    return lambda: ((rows[part], their) for part, their in zip(*parts, strict=True))


def _apply(stages: Sequence[Stage], rows: Tensor) -> Tensor:
    """All of `rows` (M, in) after `stages`, (M, out); the same tensor where there are none."""
    if not stages:
        return rows
    chain = Basis("", tuple(stages))
    result = torch.empty(len(rows), chain.transform(rows[:1]).shape[1])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        result[part] = chain.transform(rows[part])
    return result
