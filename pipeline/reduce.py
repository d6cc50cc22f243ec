"""A smaller cache of the same images: every row in a basis, and what heads lose by that, measured and recorded."""

import json
import logging
import math
import time
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import t as student

from cache import layout
from cache.errors import CacheError
from cache.keys import unpack_keys
from cache.lock import check_writable, writing
from cache.reduction import Reduction, save_basis
from cache.store import FeatureCache, Part, check_place
from cache.writer import ShardWriter, merge_small_shards
from pipeline.bases.basis import Basis
from pipeline.bases.reduced import packed_basis, reduce_rows, reduction_basis, uses_labels
from pipeline.bases.rows import load_data, source_of
from pipeline.bases.stream import ROWS_AT_ONCE
from pipeline.bases.trainset import TrainingSet
from pipeline.config import ReduceConfig, TrainConfig
from pipeline.console import counted, progress, size
from pipeline.errors import ConfigError
from pipeline.heads.fit import fit_head, score_head
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes

logger = logging.getLogger("headgraft.reduce")

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ROWS_PER_SHARD = 10_000  # of a KB or so each
SECONDS_PER_SHARD = 60.0


@dataclass
class ReduceResult:
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
            f"{self.out}: {self.rows} rows of {self.out_features} in place of {self.in_features}, "
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

    Raises CacheError where `out` is another cache, or what is reduced already is asked for.
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
        out, basis = _opened(config, trainset, fitted)
        computed = _write_rows(whole, out, basis)
        out = FeatureCache.open(config.out)
        merge_small_shards(out.shards)
        for name in whole.sets():
            out.save_index(whole.index(name))
    out = FeatureCache.open(config.out)
    assert out.reduction is not None
    accuracy = out.reduction.accuracy
    if config.seeds and accuracy.get("seeds") != config.seeds:
        accuracy = _measure(config, trainset)
        with writing(config.out):
            replace(out.reduction, accuracy=accuracy).save(config.out)
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
        accuracy=accuracy,
        seconds=time.perf_counter() - start,
    )


def _fitted(config: ReduceConfig, trainset: TrainingSet) -> Basis | None:
    """The basis; None where an earlier run of the same has left it. CacheError where `out` is another cache."""
    if not _begun(config.out):  # what may lie there is of a run that was stopped before any row
        return load_data(trainset, config.basis, allowed_bytes(config.memory))[0]
    known = Reduction.load(config.out)
    if known and known.source == source_of(trainset, config.basis):
        return None
    found = f"reduced by {known.basis}, fitted on other rows or as another basis" if known else "of full features"
    raise CacheError(f"{config.out} holds a cache {found}: name another folder with --out")


def _begun(out: Path) -> bool:
    return (out / layout.MANIFEST_FILE).is_file()


def _opened(config: ReduceConfig, trainset: TrainingSet, fitted: Basis | None) -> tuple[FeatureCache, Basis]:
    """The cache to write to, and the basis that lies in it."""
    if fitted and _begun(config.out):
        raise CacheError(f"another process began {config.out} meanwhile: run the same command again")
    if fitted:
        _describe(config.out, trainset, fitted, source_of(trainset, config.basis)).save(config.out)
    out = FeatureCache.create(config.out, trainset.cache.manifest)  # after the reduction: never full features
    kept = reduction_basis(out)
    assert kept is not None
    return out, kept


def _describe(out: Path, trainset: TrainingSet, basis: Basis, source: str) -> Reduction:
    """The record of the reduction, its basis kept in `out`."""
    width, index = trainset.cache.in_features, trainset.index
    reduced = basis.transform(torch.zeros(1, width)).shape[1]
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


def _write_rows(whole: FeatureCache, out: FeatureCache, basis: Basis) -> int:
    """Reduce the rows that `out` lacks; returns how many those were."""
    keys = whole.keys
    missing = out.without(keys)
    each = 2 * out.in_features + keys.itemsize
    logger.info(f"{counted(len(keys), 'row')}, {len(missing)} to reduce: {size(len(missing) * each)} to write")
    recipe = whole.manifest.augmentation
    parts = sorted(whole.parts(missing), key=_made_by)
    with progress(len(missing), "rows") as advance:
        for _, alike in groupby(parts, _made_by):
            some = list(alike)
            header = replace(some[0].shard.header, row_shape=out.row_shape, basis=out.basis_digest)
            digest = recipe.digest if recipe else ""
            with ShardWriter(out.path, header, digest, ROWS_PER_SHARD, SECONDS_PER_SHARD) as writer:
                for part in some:
                    for positions, rows in part.blocks(part.shard.read(), ROWS_AT_ONCE):
                        writer.add(unpack_keys(missing[positions]), reduce_rows(basis, rows))
                        advance(len(positions))
    return len(missing)


def _made_by(part: Part) -> str:
    """What computed the rows of a shard: those alike share a shard again."""
    return json.dumps(dict(part.shard.header.provenance), sort_keys=True)


def _measure(config: ReduceConfig, trainset: TrainingSet) -> dict[str, Any]:
    """Validation accuracy of the default head on whole and on reduced rows, over the same seeds and images."""
    reduced = TrainingSet.open(config.out, trainset.index.name, trainset.passes)
    hits = {name: _hits(config, of) for name, of in (("whole", trainset), ("reduced", reduced))}
    found = {
        name: {"basis": of.default_basis, "mean": float(hits[name].mean()), "std": _deviation(hits[name].mean(1))}
        for name, of in (("whole", trainset), ("reduced", reduced))
    }
    return {**found, **paired_loss(hits["whole"], hits["reduced"]), "seeds": config.seeds}


def paired_loss(whole: Bools, reduced: Bools) -> dict[str, Any]:
    """What is `lost` by reducing, of heads of S seeds on the same N images, (S, N) right or not.

    `error` is the standard error of that mean difference over seeds, `low` and `high` its 95 % interval over seeds and
    images: the sum of the variances of the means over either, which counts what they share twice and so is a little
    wide, with degrees of freedom by Satterthwaite (An Approximate Distribution of Estimates of Variance Components,
    Biometrics Bulletin, 1946). Of one seed it is over images alone.
    """
    apart = whole.astype(np.float64) - reduced
    lost, (seeds, images) = float(apart.mean()), apart.shape
    parts = [(_deviation(apart.mean(axis)) ** 2 / count, count - 1) for axis, count in ((1, seeds), (0, images))]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / (count or 1) for part, count in parts) if variance else 1.0
    reach = float(student.ppf(0.975, freedom)) * math.sqrt(variance)
    return {"lost": lost, "error": math.sqrt(parts[0][0]), "low": lost - reach, "high": lost + reach}


def _deviation(values: Floats) -> float:
    """Sample standard deviation, 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _hits(config: ReduceConfig, trainset: TrainingSet) -> Bools:
    """Whether heads of S seeds are right about the N validation images, (S, N)."""
    _, data = load_data(trainset, trainset.default_basis, allowed_bytes(config.memory))
    found = []
    for seed in range(config.seeds):
        asked = TrainConfig(trainset.cache.path, config.out, basis=trainset.default_basis, seed=seed)
        found.append(score_head(fit_head(asked, data).head, data)[0])
        accuracy = f"validation accuracy {found[-1].mean():.2%}"
        logger.info(f"{trainset.cache.in_features} features, basis {trainset.default_basis}, seed {seed}: {accuracy}")
    return np.array(found)
