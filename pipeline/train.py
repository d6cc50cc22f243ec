"""Stage two: one head, trained in a basis, from the rows of a cache."""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.bases.basis import Basis
from pipeline.bases.reduced import reduction_basis
from pipeline.bases.rows import HeadData, load_data
from pipeline.bases.stream import StreamedData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import HeadSettings, TrainConfig
from pipeline.console import Say, silent, size
from pipeline.errors import RunError
from pipeline.heads.group import HeadGroup, HeadState, Member, Shape
from pipeline.heads.head import head_from_tensors, hidden_units
from pipeline.heads.seeds import order_of
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes, available_bytes
from pipeline.run import RUN_FORMAT, Run, claimed_run, refuse_to_overwrite


@dataclass
class Epoch:
    """One epoch; `epoch` starts at 1, `valid_accuracy` is a fraction, on the clean pass."""

    epoch: int
    train_loss: float
    valid_accuracy: float
    valid_loss: float
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
    valid_loss: float = 0.0
    classes_without_validation: int = 0
    seconds: float = 0.0


def train_head(config: TrainConfig, say: Say = silent) -> TrainResult:
    """Train one head and keep the epoch that validates best (of equals the one of lower loss, then the earlier).

    Raises RunError where the run exists, the set lacks train or valid, or its folder no longer agrees with the
    index; CacheError where the run's folder cannot be written; MissingRows where rows of the passes asked for are not
    in the cache. Where another process writes the run, this waits, and replaces what it wrote.
    """
    with claimed_run(config.run, config.overwrite, say) as replace_it:
        refuse_to_overwrite(config.run, replace_it)
        return _train(config, say)


def _train(config: TrainConfig, say: Say) -> TrainResult:
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    rows = TrainingSet.open(config.cache, config.set, config.passes, say, config.dense)
    config = replace(config, basis=config.basis or rows.default_basis)
    basis, data = load_data(rows, config.settings.basis, allowed_bytes(config.memory), say)
    result, head = fit_head(config, rows, data, say)
    result.seconds = time.perf_counter() - start
    run_of(config, rows, result, basis, head).save()
    return result


def fit_head(
    config: TrainConfig, rows: TrainingSet, data: HeadData | StreamedData, say: Say = silent
) -> tuple[TrainResult, nn.Sequential]:
    """Train a head on `data`, which is in its basis: what happened, and the head of the best epoch."""
    start = time.perf_counter()
    settings, precision = config.settings, rows.cache.manifest.base.precision
    result = TrainResult(str(config.run), rows.index.name, settings.basis, precision, rows.leaks)
    result.classes_without_validation = len(rows.classes_without_validation)
    refuse_beyond_memory(settings, data)
    shape = shape_of(settings, data, config.epochs)
    group = HeadGroup([HeadState.new(member_of(settings, config.seed), shape)], shape, class_weights(settings, data))
    best: dict[str, Tensor] = {}
    for number in range(1, config.epochs + 1):
        epoch = _epoch(number, group, data, config)
        result.epochs.append(epoch)
        say(
            f"epoch {number:3d}  loss {epoch.train_loss:.4f}  "
            f"valid {epoch.valid_accuracy:.2%}, loss {epoch.valid_loss:.4f}  {epoch.seconds:.2f} s"
        )
        if not best or (epoch.valid_accuracy, -epoch.valid_loss) > (result.valid_accuracy, -result.valid_loss):
            result.kept_epoch, result.valid_accuracy, result.valid_loss = number, epoch.valid_accuracy, epoch.valid_loss
            best = group.weights(0)
    result.seconds = time.perf_counter() - start
    return result, head_from_tensors(best, config.dropout)


def _epoch(number: int, group: HeadGroup, data: HeadData | StreamedData, config: TrainConfig) -> Epoch:
    start = time.perf_counter()
    loss = float(group.epoch(data.batches(config.batch_size, order_of(config.seed, number))))
    [(accuracy, valid_loss)] = group.score(data.validation())
    if not math.isfinite(loss + valid_loss):
        raise RunError(f"the loss or a weight is no number after epoch {number}: lower --lr, now {config.lr}")
    return Epoch(number, loss, accuracy, valid_loss, time.perf_counter() - start)


def score_head(head: nn.Sequential, data: HeadData | StreamedData) -> tuple[float, float]:
    """Accuracy and mean loss of a head on the validation rows of `data`, which is in its basis."""
    hits, loss = 0, 0.0
    for rows, labels in data.validation():
        log_probs = head(rows)
        hits += int((log_probs.argmax(1) == labels).sum())
        loss += float(F.nll_loss(log_probs, labels, reduction="sum"))
    return hits / len(data.valid_labels), loss / len(data.valid_labels)


def member_of(settings: HeadSettings, seed: int) -> Member:
    """How a head of these settings is trained in its group."""
    return Member(settings.lr, settings.weight_decay, settings.dropout, seed)


def shape_of(settings: HeadSettings, data: HeadData | StreamedData, epochs: int) -> Shape:
    """What a head of these settings shares with its group."""
    steps = epochs * math.ceil(data.num_images / settings.batch_size)
    return Shape(data.in_features, settings.hidden, data.num_classes, steps)


def class_weights(settings: HeadSettings, data: HeadData | StreamedData) -> Tensor | None:
    """(C,) in inverse proportion to the training images of each class, 1 on average over them; None for equal ones."""
    if settings.class_weights == "none":
        return None
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    return data.num_images / (data.num_classes * counts.clamp_min(1))


def bytes_of_training(settings: HeadSettings, data: HeadData | StreamedData) -> int:
    """Of a head's weights, gradients, both moments of AdamW and the best epoch's weights, in float32."""
    return 5 * 4 * settings.hidden * (data.in_features + data.num_classes)


def refuse_beyond_memory(settings: HeadSettings, data: HeadData | StreamedData) -> None:
    """RunError where training a head of these settings takes more memory than is free."""
    needed = bytes_of_training(settings, data)
    if needed > (free := available_bytes()):
        raise RunError(
            f"a head of {settings.hidden} hidden units on {data.in_features} features takes {size(needed)}, "
            f"{size(free)} are free: choose a smaller --hidden, or a smaller --basis"
        )


def run_of(config: TrainConfig, rows: TrainingSet, result: TrainResult, basis: Basis, head: nn.Sequential) -> Run:
    """The run of a trained head, not yet saved."""
    manifest = rows.cache.manifest
    settings = {name: value for name, value in asdict(config).items() if name not in ("cache", "run", "overwrite")}
    record = {
        "format": RUN_FORMAT,
        "cache": str(rows.cache.path.absolute()),
        "base_digest": manifest.base.digest,
        "augmentation_digest": rows.recipe,
        "set_digest": rows.index.digest,
        **_reduction_of(rows),
        "classes": list(rows.index.classes),
        "config": {**settings, "passes": rows.passes, "hidden": hidden_units(head)},
        **asdict(result),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "scored": [],
    }
    return Run(config.run, record, basis, head, reduction_basis(rows.cache))


def _reduction_of(rows: TrainingSet) -> dict[str, Any]:
    """What a run records of the reduction of its cache; nothing where rows are whole."""
    reduction = rows.cache.reduction
    return {"reduction": {"basis": reduction.basis, "digest": reduction.digest}} if reduction else {}
