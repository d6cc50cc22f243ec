"""Projected features of an image set: a basis fitted on training rows, all rows in it, kept in the cache."""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache import layout
from cache.errors import CacheError
from cache.keys import RowKey, keys_of
from cache.manifest import json_digest
from cache.projections import load_projection, save_projection
from cache.shard import Positions
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.data import ROWS_AT_ONCE, HeadData, StreamedData, TrainingData, read_shards
from pipeline.bases.fit import BASIS_VERSION, Memo, fit_basis, start_basis
from pipeline.bases.trainset import TrainingSet
from pipeline.basis_name import BasisName
from pipeline.console import counted, reason, size
from pipeline.errors import PipelineError

logger = logging.getLogger("headgraft.bases")

ROWS_TO_FIT = 2048
_FEWEST_FOR_COMPONENTS = 1000  # rows that principal directions are fitted on, however little memory there is


def load_data(trainset: TrainingSet, name: str, memory: int, memo: Memo | None = None) -> tuple[Basis, TrainingData]:
    """Fit basis `name` on the set's training rows and project training and validation rows; kept in the cache.

    Where that takes more than `memory` bytes, the basis is fitted block by block, and rows are read in each epoch.
    `memo` keeps, for further bases of the same rows, what they have in common.
    """
    index = trainset.index
    count = len(index.split("train")) * len(trainset.views) + len(index.split("valid"))
    # Before and after the basis, with components twice as often.
    width = start_basis(name, trainset.layout).out_features(trainset.cache.in_features)
    each = 4 * width * (2 if BasisName.parse(name).components is None else 4)
    if count * each <= memory:
        return _in_memory(trainset, name, memo or Memo())
    logger.info(f"{counted(count, 'row')} of {each} bytes: more than {size(memory)} of memory, so read in each epoch")
    basis = _fitted_on_shards(trainset, name, max(_FEWEST_FOR_COMPONENTS, memory // 2 // each))
    width = basis.out_features(trainset.cache.in_features)
    window = max(1, memory // 4 // (4 * width))
    labels, num_classes = (trainset.labels("train"), trainset.labels("valid")), len(index.classes)
    return basis, StreamedData(trainset, basis, width, window, *labels, num_classes)


def _fitted_on_shards(trainset: TrainingSet, name: str, most: int) -> Basis:
    """The basis, fitted shard by shard, the components of very wide rows on a sample of `most` rows."""
    digests, labels = trainset.digests("train"), trainset.labels("train")
    keys = np.concatenate([keys_of(digests, view) for view in trainset.views])
    start = start_basis(name, trainset.layout)

    def blocks(chosen: Positions) -> Iterator[tuple[Tensor, Tensor]]:
        for positions, rows in read_shards(trainset.cache, keys[chosen]):
            yield start.apply(rows), labels[torch.from_numpy(chosen)[positions] % len(labels)]

    basis = fit_basis(
        start,
        lambda: blocks(np.arange(len(keys))),
        len(trainset.index.classes),
        trainset.layout,
        sample=lambda: blocks(np.argsort(keys)[:most]),  # of the lowest digests: a random choice
    )
    logger.info(f"basis {name}: fitted on {counted(len(keys), 'training row')}")
    return basis


def _in_memory(trainset: TrainingSet, name: str, memo: Memo) -> tuple[Basis, HeadData]:
    cache, views = trainset.cache, trainset.views
    keys = _keys_of(trainset)
    place = {key: number for number, key in enumerate(keys)}
    train_rows = torch.tensor([[place[image.key, view] for view in views] for image in trainset.index.split("train")])
    source = source_of(trainset, name, keys)
    basis, rows = _kept(cache, source, name, keys) or _projected(trainset, name, keys, train_rows, memo, source)
    return basis, HeadData(
        rows=rows,
        train_rows=train_rows,
        train_labels=trainset.labels("train"),
        valid_rows=torch.tensor([place[image.key, layout.CLEAN_VIEW] for image in trainset.index.split("valid")]),
        valid_labels=trainset.labels("valid"),
        num_classes=len(trainset.index.classes),
    )


def _keys_of(trainset: TrainingSet) -> list[RowKey]:
    """Distinct keys that training reads: all views of training images, then the clean view of validation images."""
    train = [(image.key, view) for image in trainset.index.split("train") for view in trainset.views]
    return list(dict.fromkeys([*train, *((image.key, layout.CLEAN_VIEW) for image in trainset.index.split("valid"))]))


def source_of(trainset: TrainingSet, name: str, keys: list[RowKey] | None = None) -> str:
    """The digest of everything that basis `name` of these rows is made from; `keys` are those of the rows, if known."""
    labels = sorted((image.digest, image.label, image.split) for image in trainset.index.images)
    of_keys = b"".join(digest + view.encode() for digest, view in keys or _keys_of(trainset))
    fitting = [BASIS_VERSION, asdict(BasisName.parse(name))]
    reduced = [trainset.cache.basis_digest] if trainset.cache.reduction else []
    base, key_digest = trainset.cache.manifest.base.digest, hashlib.sha256(of_keys).hexdigest()
    return json_digest([*fitting, base, trainset.recipe, labels, key_digest, *reduced])


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


def _projected(
    trainset: TrainingSet, name: str, keys: list[RowKey], train_rows: Tensor, memo: Memo, source: str
) -> tuple[Basis, Tensor]:
    """The basis, fitted on the rows of `keys` at `train_rows` (N, P), and all of them in it (M, R), to be kept."""
    cache, clock = trainset.cache, time.perf_counter()
    logger.info(f"basis {name}: fitting it on {counted(len(train_rows), 'training image')}")
    start = start_basis(name, trainset.layout)
    rows = _in_regions(cache, keys, start, memo)
    places = train_rows.flatten().split(ROWS_TO_FIT)
    labels = trainset.labels("train").repeat_interleave(train_rows.shape[1]).split(ROWS_TO_FIT)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        return ((rows[some], theirs) for some, theirs in zip(places, labels, strict=True))

    basis = fit_basis(start, blocks, len(trainset.index.classes), trainset.layout, memo)
    projected = rows
    if len(basis.stages) > len(start.stages):
        rest = Basis(name, basis.stages[len(start.stages) :])
        projected = torch.empty(len(rows), rest.out_features(rows.shape[1]))
        for part, block in zip(projected.split(ROWS_AT_ONCE), rows.split(ROWS_AT_ONCE), strict=True):
            part.copy_(rest.transform(block))
    if basis.stages:
        try:
            save_projection(cache.path, source, save({"rows": projected.contiguous(), **basis.tensors()}))
        except (CacheError, OSError) as error:  # they can be made again, so that a read-only cache can be trained on
            logger.warning(f"{cache.path} does not keep the projected features: {reason(error)}")
    shape = f"{counted(projected.shape[1], 'feature')} from {cache.in_features}, {counted(len(projected), 'row')}"
    logger.info(f"basis {name}: {shape}, {time.perf_counter() - clock:.1f} s")
    return basis, projected


def _in_regions(cache: FeatureCache, keys: list[RowKey], start: Basis, memo: Memo) -> Tensor:
    """Rows of `keys` after the first stage, (M, R0); kept in `memo`."""
    regions = BasisName.parse(start.name).regions if start.stages else ""
    if regions not in memo.regions:
        rows = torch.empty(len(keys), start.out_features(cache.in_features))
        for positions, block in cache.blocks(keys, ROWS_AT_ONCE):
            rows[torch.from_numpy(positions)] = start.apply(block)
        memo.regions[regions] = rows
    return memo.regions[regions]
