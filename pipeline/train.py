"""Stage two: one head, trained in a basis, from the rows of a cache."""

import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from cache.errors import MissingRows
from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.backbone import available_cpus
from pipeline.basis import Basis
from pipeline.config import TrainConfig
from pipeline.console import Say, silent, size
from pipeline.errors import RunError
from pipeline.group import HeadGroup, Member
from pipeline.head import head_from_tensors
from pipeline.images import count_leaks, stale_files
from pipeline.memory import available_bytes
from pipeline.rows import HeadData, load_data
from pipeline.run import RUN_FORMAT, Run, refuse_other_kind, refuse_other_things, refuse_to_overwrite
from pipeline.stream import StreamedData


@dataclass
class Epoch:
    """One epoch; `epoch` starts at 1, `valid_accuracy` is a fraction, on the clean pass."""

    epoch: int
    train_loss: float
    valid_accuracy: float
    seconds: float


@dataclass
class TrainResult:
    """What `train_head` did; the fields of its JSON."""

    run: str
    set: str
    basis: str
    precision: str
    leaks: dict[str, int]
    epochs: list[Epoch] = field(default_factory=list)
    kept_epoch: int = 0
    valid_accuracy: float = 0.0
    seconds: float = 0.0


def train_head(config: TrainConfig, say: Say = silent) -> TrainResult:
    """Train one head and keep the epoch that validates best (the earlier one of equals).

    Raises RunError where the run exists, the set lacks train or valid, or its folder no longer agrees with the
    index; MissingRows where rows of the passes asked for are not in the cache.
    """
    start = time.perf_counter()
    refuse_other_kind(config.run, folder=True)
    refuse_to_overwrite(config.run, config.overwrite)
    if config.run.is_dir():
        refuse_other_things(config.run)
    torch.set_num_threads(available_cpus())
    cache = FeatureCache.open(config.cache)
    index = cache.index(config.set)
    if len(index.classes) < 2:
        raise RunError(f"set {index.name!r} has one class, {index.classes[0]!r}: expected two or more to tell apart")
    _refuse_stale(index)
    passes = _passes(config, cache, index)
    leaks = count_leaks(index)
    _say_leaks(leaks, say)
    memory = available_bytes() // 2 if config.memory is None else int(config.memory * 1e9)
    basis, data = load_data(cache, index, passes, config.basis, memory, say)
    result = TrainResult(str(config.run), index.name, config.basis, cache.manifest.base.precision, leaks)
    head = _fit(config, data, result, say)
    result.seconds = time.perf_counter() - start
    _record(config, cache, index, passes, result, basis, head).save()
    return result


def _passes(config: TrainConfig, cache: FeatureCache, index: SetIndex) -> int:
    """As many augmented passes as were asked for; else all there are, or were: one that is lost is an error."""
    known = max(index.passes, cache.complete_passes(index))
    if config.passes is not None and config.passes > known:
        raise MissingRows(
            f"set {index.name!r} of {cache.path} has {known} augmented passes, {config.passes} were asked for: "
            f"run extract with --passes {config.passes}, or train with --passes {known}"
        )
    return known if config.passes is None else config.passes


def _refuse_stale(index: SetIndex) -> None:
    changes = stale_files(index)
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:5]) + ("\n  …" if len(changes) > 5 else "")
        raise RunError(
            f"{index.data} is not as it was extracted, {len(changes)} files differ:\n{shown}\n"
            f"Run extract again (--set {index.name}): only new contents are computed."
        )


def _say_leaks(leaks: dict[str, int], say: Say) -> None:
    if any(leaks.values()):
        counts = f"{leaks['across_splits']} across splits, {leaks['two_labels']} with two labels"
        say(f"identical images: {counts}; headgraft cache info --duplicates lists them")


def _fit(config: TrainConfig, data: HeadData | StreamedData, result: TrainResult, say: Say) -> nn.Sequential:
    """The epochs; fills in `result` and returns the head of the best one."""
    order = torch.Generator().manual_seed(config.seed)  # data seed: order, pass per image
    member = Member(config.lr, config.weight_decay, config.dropout, config.seed)
    steps = config.epochs * math.ceil(data.num_images / config.batch_size)
    _refuse_beyond_memory(config.hidden, data)
    group = HeadGroup([member], data.in_features, config.hidden, data.num_classes, steps)
    best: dict[str, Tensor] = {}
    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        loss = float(group.epoch(data.batches(config.batch_size, order)))
        valid = float(group.accuracy(data.validation()))
        epoch = Epoch(number, loss, valid, time.perf_counter() - start)
        result.epochs.append(epoch)
        if not math.isfinite(loss):
            raise RunError(f"the loss of epoch {number} is {loss}: lower --lr, now {config.lr}")
        say(f"epoch {number:3d}  loss {loss:.4f}  valid {valid:.2%}  {epoch.seconds:.2f} s")
        if not best or valid > result.valid_accuracy:
            result.kept_epoch, result.valid_accuracy = number, valid
            best = group.state(0)
    return head_from_tensors(best, config.dropout)


def _refuse_beyond_memory(hidden: int, data: HeadData | StreamedData) -> None:
    """Weights, gradients, both moments of AdamW and the best epoch's weights, in float32."""
    needed = 5 * 4 * hidden * (data.in_features + data.num_classes)
    if needed > (free := available_bytes()):
        raise RunError(
            f"a head of {hidden} hidden units on {data.in_features} features takes {size(needed)}, {size(free)} are "
            "free: choose a smaller --hidden, or a smaller --basis"
        )


def _record(
    config: TrainConfig,
    cache: FeatureCache,
    index: SetIndex,
    passes: int,
    result: TrainResult,
    basis: Basis,
    head: nn.Sequential,
) -> Run:
    augmentation = cache.manifest.augmentation
    settings = {name: value for name, value in asdict(config).items() if name not in ("cache", "run", "overwrite")}
    record = {
        "format": RUN_FORMAT,
        "cache": str(cache.path.absolute()),
        "base_digest": cache.manifest.base.digest,
        "augmentation_digest": augmentation.digest if augmentation and passes else "",
        "set_digest": index.digest,
        "classes": list(index.classes),
        "config": {**settings, "passes": passes},
        **asdict(result),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "scored": [],
    }
    return Run(config.run, record, basis, head)
