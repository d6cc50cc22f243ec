"""A smaller cache of the same images: every row in a basis, and what heads lose by that, measured and recorded."""

import json
import logging
import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.errors import CacheError
from cache.keys import unpack_keys
from cache.labels import copy_labels
from cache.lock import check_writable, writing
from cache.reduction import Reduction, save_basis
from cache.result import Result
from cache.shard import Part
from cache.store import FeatureCache, check_place
from cache.writer import ShardWriter, merge_small_shards
from pipeline.bases.basis import Basis
from pipeline.bases.data import ROWS_AT_ONCE
from pipeline.bases.projection import load_data, source_of
from pipeline.bases.reduced import packed_basis, reduce_rows, reduction_basis, uses_labels
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import ReduceConfig, TrainConfig
from pipeline.console import counted, progress, size
from pipeline.errors import ConfigError
from pipeline.heads.fit import fit_head, predict_validation
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.statistics.intervals import Bools, deviation, paired_loss

logger = logging.getLogger("headgraft.reduce")

ROWS_PER_SHARD = 10_000  # of a KB or so each
SECONDS_PER_SHARD = 60.0


@dataclass
class ReduceResult(Result):
    """What `reduce_cache` did.

    Attributes:
        cache: folder of the cache.
        out: folder of the reduced cache.
        basis: name of the basis.
        in_features: length of a row.
        out_features: length of a reduced row.
        rows: of the reduced cache.
        computed: rows that were reduced now.
        reused: rows that were reduced before.
        bytes: of the shards.
        source_bytes: of the shards of the cache.
        accuracy: of heads of the same seeds on the same validation images, `{whole: {basis, mean, std}, reduced, lost,
            error, low, high, seeds}`: `lost` is the difference of the mean accuracies, a fraction, `error` its standard
            error over seeds, `low` to `high` its 95 % interval over seeds and images; `{}` with `--seeds 0`.
        seconds: of the command.
    """

    cache: str
    out: str
    basis: str
    in_features: int
    out_features: int
    rows: int
    computed: int
    reused: int
    bytes: int
    source_bytes: int
    accuracy: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def in_words(self) -> str:
        """A line on the rows, and two on the loss of accuracy where it was measured."""
        lines = [
            f"{self.out}: {counted(self.rows, 'row')} of {self.out_features} in place of {self.in_features}, "
            f"{self.bytes / 1e6:.1f} MB in place of {self.source_bytes / 1e6:.1f}, "
            f"{self.computed} reduced, {self.reused} reused, {self.seconds:.1f} s"
        ]
        if found := self.accuracy:
            each = [f"{found[of]['mean']:.2%} ± {100 * found[of]['std']:.2f} {of}" for of in ("whole", "reduced")]
            lines.append(f"validation accuracy over {counted(found['seeds'], 'seed')}: {', '.join(each)}")
            lines.append(
                f"cost {100 * found['lost']:.2f} points ± {100 * found['error']:.2f} (standard error, paired over "
                f"seeds); 95 % interval over seeds and images {100 * found['low']:.2f} to {100 * found['high']:.2f}"
            )
        return "\n".join(lines)


def reduce_cache(config: ReduceConfig) -> ReduceResult:
    """Fit a basis on the training rows of a set, and write all rows of the cache in it to another; resumes.

    Raises:
        CacheError: `out` is another cache, or `cache` is reduced already.
        RunError: the set cannot be trained on, as in `train_head`.
    """
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    if config.out.absolute() == config.cache.absolute():
        raise ConfigError("--out is the cache itself: name another folder")
    check_writable(config.out)
    check_place(config.out)
    trainset = TrainingSet.open(config.cache, config.set, None)
    whole = trainset.cache
    if whole.reduction:
        raise CacheError(f"{whole.path} is reduced already, by {whole.reduction.basis}: reduce the cache it came from")
    fitted = _fitted(config, trainset)  # before anything is made: not all that may be asked for can be
    with writing(config.out):
        out = _open_out(config, trainset, fitted)
        computed = _write_rows(whole, out)
        merge_small_shards(out.reopened().shards)
        for name in whole.sets():
            out.save_index(whole.extracted(name))
            copy_labels(whole.path, out.path, name)
        out = out.reopened()
    return ReduceResult(
        cache=str(config.cache),
        out=str(config.out),
        basis=config.basis,
        in_features=whole.in_features,
        out_features=out.in_features,
        rows=len(out),
        computed=computed,
        reused=len(out) - computed,
        bytes=out.bytes,
        source_bytes=whole.bytes,
        accuracy=_accuracy(config, trainset, replace(trainset, cache=out)),
        seconds=time.perf_counter() - start,
    )


def _fitted(config: ReduceConfig, trainset: TrainingSet) -> Basis | None:
    """The basis; None where an earlier run of the same has left it. CacheError where `out` is another cache."""
    known = FeatureCache.find(config.out)
    if known is None:  # what may lie there is of a run that was stopped before any row
        return load_data(trainset, config.basis, allowed_bytes(config.memory))[0]
    reduction = known.reduction
    if reduction and reduction.source == source_of(trainset, config.basis):
        return None
    found = (
        f"reduced by {reduction.basis}, fitted on other rows or as another basis" if reduction else "of full features"
    )
    raise CacheError(f"{config.out} holds a cache {found}: name another folder with --out")


def _open_out(config: ReduceConfig, trainset: TrainingSet, fitted: Basis | None) -> FeatureCache:
    """The cache to write to, in which the basis lies."""
    if fitted:
        if FeatureCache.find(config.out) is not None:
            raise CacheError(f"another process began {config.out} meanwhile: run the same command again")
        _describe(config.out, trainset, fitted, source_of(trainset, config.basis)).save(config.out)
    return FeatureCache.create(config.out, trainset.cache.manifest)  # after the reduction: never full features


def _describe(out: Path, trainset: TrainingSet, basis: Basis, source: str) -> Reduction:
    """The record of the reduction, its basis kept in `out`."""
    width, index = trainset.cache.in_features, trainset.index
    reduced = basis.out_features(width)
    train = index.split("train")
    fitted_on = {
        "set": index.name,
        "set_digest": index.digest,
        "train_images": len(train),
        "passes": trainset.passes,
        "labels": uses_labels(basis.name),
    }
    digest = save_basis(out, packed_basis(basis, train))
    return Reduction(basis.name, digest, width, reduced, source, fitted_on)


def _write_rows(whole: FeatureCache, out: FeatureCache) -> int:
    """Reduce the rows that `out` lacks; returns how many those were."""
    keys, basis = whole.keys, reduction_basis(out)
    assert basis is not None
    missing = out.without(keys)
    each = 2 * out.in_features + keys.itemsize
    logger.info(f"{counted(len(keys), 'row')}, {len(missing)} to reduce: {size(len(missing) * each)} to write")
    parts = sorted(whole.parts(missing), key=_made_by)
    with progress(len(missing), "rows") as advance:
        for _, alike in groupby(parts, _made_by):
            some = list(alike)
            header = out.header(some[0].shard.header.provenance)
            with ShardWriter(out.path, header, ROWS_PER_SHARD, SECONDS_PER_SHARD) as writer:
                for part in some:
                    for positions, rows in part.blocks(part.shard.read(), ROWS_AT_ONCE):
                        writer.add(unpack_keys(missing[positions]), reduce_rows(basis, rows))
                        advance(len(positions))
    return len(missing)


def _made_by(part: Part) -> str:
    """What computed the rows of a shard: those alike share a shard again."""
    return json.dumps(dict(part.shard.header.provenance), sort_keys=True)


def _accuracy(config: ReduceConfig, whole: TrainingSet, reduced: TrainingSet) -> dict[str, Any]:
    """Validation accuracy of the default head on whole and on reduced rows, over the same seeds and images.

    It is kept with the reduction, and measured again only with another number of seeds.
    """
    reduction = reduced.cache.reduction
    assert reduction is not None
    if config.seeds in (0, reduction.accuracy.get("seeds")):
        return reduction.accuracy
    found: dict[str, Any] = {}
    hits = []
    for name, trainset in (("whole", whole), ("reduced", reduced)):
        hits.append(_hits(config, trainset))
        accuracies = hits[-1].mean(axis=1)
        found[name] = {"basis": trainset.default_basis, "mean": float(hits[-1].mean()), "std": deviation(accuracies)}
    found |= {**paired_loss(*hits), "seeds": config.seeds}
    with writing(config.out):
        replace(reduction, accuracy=found).save(config.out)
    return found


def _hits(config: ReduceConfig, trainset: TrainingSet) -> Bools:
    """Whether heads of S seeds are right about the N validation images, (S, N)."""
    _, data = load_data(trainset, trainset.default_basis, allowed_bytes(config.memory))
    found = []
    for seed in range(config.seeds):
        asked = TrainConfig(trainset.cache.path, config.out, basis=trainset.default_basis, seed=seed)
        log_probs = predict_validation(fit_head(asked, data).head, data)
        found.append((log_probs.argmax(1) == data.valid_labels).numpy())
        accuracy = f"validation accuracy {found[-1].mean():.2%}"
        logger.info(f"{trainset.cache.in_features} features, basis {trainset.default_basis}, seed {seed}: {accuracy}")
    return np.array(found)
