"""Stage two: one head, trained in a basis, from the rows of a cache."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from cache.errors import MissingRows
from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.backbone import available_cpus
from pipeline.basis import Basis
from pipeline.config import TrainConfig
from pipeline.console import Say, silent
from pipeline.errors import RunError
from pipeline.head import HeadConfig, build_head, training_log_probs
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
    noise = torch.Generator().manual_seed(config.seed + (1 << 32))  # head seed: weights, dropout
    head = build_head(HeadConfig(data.in_features, config.hidden, data.num_classes, config.dropout), noise)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = config.epochs * math.ceil(data.num_images / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: dict[str, Tensor] = {}
    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        loss = _train_epoch(head, data, config.batch_size, optimizer, schedule, order, noise)
        valid = accuracy(head, data.validation())
        epoch = Epoch(number, loss, valid, time.perf_counter() - start)
        result.epochs.append(epoch)
        if not math.isfinite(loss):
            raise RunError(f"the loss of epoch {number} is {loss}: lower --lr, now {config.lr}")
        say(f"epoch {number:3d}  loss {loss:.4f}  valid {valid:.2%}  {epoch.seconds:.2f} s")
        if not best or valid > result.valid_accuracy:
            result.kept_epoch, result.valid_accuracy = number, valid
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval().requires_grad_(False)


def _train_epoch(
    head: nn.Sequential,
    data: HeadData | StreamedData,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
    noise: torch.Generator,
) -> float:
    """One pass over the training images, one drawn view of each; returns the mean loss."""
    total = 0.0
    for rows, labels in data.batches(batch_size, order):
        loss = nll_loss(training_log_probs(head, rows, noise), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(rows)
    return total / data.num_images


@torch.inference_mode()
def accuracy(head: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of the rows in `batches` (rows, labels) whose most probable class is their label."""
    head.eval()
    hits = count = 0
    for rows, labels in batches:
        hits += int((head(rows).argmax(1) == labels).sum())
        count += len(labels)
    head.train()
    return hits / count


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
