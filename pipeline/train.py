"""Stage two: one head, trained in a basis, from the rows of a cache."""

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.bases.basis import Basis
from pipeline.bases.reduced import reduction_basis
from pipeline.bases.rows import HeadData, load_data
from pipeline.bases.stream import StreamedData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import FEWEST_EPOCHS, MOST_EPOCHS, STEPS, HeadSettings, TrainConfig
from pipeline.console import size
from pipeline.errors import RunError
from pipeline.heads.group import CPU, HeadGroup, HeadState, Member, Shape
from pipeline.heads.head import head_from_tensors, hidden_units
from pipeline.heads.seeds import order_of
from pipeline.machine.device import available_cpus, computes_bfloat16
from pipeline.machine.memory import allowed_bytes, available_bytes
from pipeline.run import RUN_FORMAT, Run, claimed_run, refuse_to_overwrite

logger = logging.getLogger("headgraft.train")


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
    valid_accuracy: float = 0.0
    valid_loss: float = 0.0
    classes_without_validation: int = 0
    seconds: float = 0.0


def train_head(config: TrainConfig) -> TrainResult:
    """Train one head and keep it as it is after the last epoch.

    The learning rate falls to 0: an earlier epoch that validates better owes that to the validation images
    (docs/performance.md). Raises RunError where the run exists, the set lacks train or valid, or its folder no longer
    agrees with the index; CacheError where the run's folder cannot be written; MissingRows where rows of the passes
    asked for are not in the cache. Where another process writes the run, this waits, and replaces what it wrote.
    """
    with claimed_run(config.run, config.overwrite) as replace_it:
        refuse_to_overwrite(config.run, replace_it)
        return _train(config)


def _train(config: TrainConfig) -> TrainResult:
    start = time.perf_counter()
    torch.set_num_threads(available_cpus())
    rows = TrainingSet.open(config.cache, config.set, config.passes)
    epochs = config.epochs or default_epochs(len(rows.index.split("train")), config.batch_size)
    config = replace(config, basis=config.basis or rows.default_basis, epochs=epochs)
    basis, data = load_data(rows, config.settings.basis, allowed_bytes(config.memory))
    result, head = fit_head(config, rows, data, logging.INFO)
    result.seconds = time.perf_counter() - start
    run_of(config, rows, result, basis, head).save()
    return result


def default_epochs(images: int, batch_size: int) -> int:
    """Epochs of about `STEPS` steps in all, within the bounds of `config`: few images need more epochs than many."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / math.ceil(images / batch_size))))


def fit_head(
    config: TrainConfig, rows: TrainingSet, data: HeadData | StreamedData, level: int = logging.DEBUG
) -> tuple[TrainResult, nn.Sequential]:
    """Train a head on `data`, which is in its basis: what happened, and the head after the last epoch.

    Each epoch is logged at `level`.
    """
    start = time.perf_counter()
    settings, precision = config.settings, rows.cache.manifest.base.precision
    result = TrainResult(str(config.run), rows.index.name, settings.basis, precision, rows.leaks)
    result.classes_without_validation = len(rows.classes_without_validation)
    refuse_beyond_memory(settings, data)
    epochs = config.epochs or default_epochs(data.num_images, config.batch_size)
    shape = shape_of(settings, data, epochs)
    state = HeadState.new(member_of(settings, config.seed), shape)
    group = HeadGroup([state], shape, class_weights(settings, data), products_on(CPU))
    for number in range(1, epochs + 1):
        epoch = _epoch(number, group, data, config)
        result.epochs.append(epoch)
        logger.log(
            level,
            f"epoch {number:3d}  loss {epoch.train_loss:.4f}  "
            f"valid {epoch.valid_accuracy:.2%}, loss {epoch.valid_loss:.4f}  {epoch.seconds:.2f} s",
        )
    result.valid_accuracy, result.valid_loss = epoch.valid_accuracy, epoch.valid_loss
    result.seconds = time.perf_counter() - start
    return result, head_from_tensors(group.weights(0), config.dropout)


def products_on(device: torch.device) -> torch.dtype | None:
    """What heads multiply in: bfloat16 where `device` computes in that, at up to twice the speed, else float32."""
    return torch.bfloat16 if computes_bfloat16(device) else None


def _epoch(number: int, group: HeadGroup, data: HeadData | StreamedData, config: TrainConfig) -> Epoch:
    start = time.perf_counter()
    loss = float(group.epoch(data.batches(config.batch_size, order_of(config.seed, number))))
    hits, losses = group.score(data.validation())
    accuracy, valid_loss = float(hits.double().mean()), float(losses)
    if not math.isfinite(loss + valid_loss):
        raise RunError(f"loss or weights became NaN or infinite in epoch {number}: lower --lr, now {config.lr}")
    return Epoch(number, loss, accuracy, valid_loss, time.perf_counter() - start)


def score_head(head: nn.Sequential, data: HeadData | StreamedData) -> tuple[npt.NDArray[np.bool_], float]:
    """Where a head is right on validation (V,), in the order of the index, and its mean loss there."""
    hits, loss = [], 0.0
    for rows, labels in data.validation():
        log_probs = head(rows)
        hits.append(log_probs.argmax(1) == labels)
        loss += float(F.nll_loss(log_probs, labels, reduction="sum"))
    ordered = torch.empty(len(data.valid_labels), dtype=torch.bool)
    ordered[data.valid_order] = torch.cat(hits)
    return ordered.numpy(), loss / len(ordered)


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
    """Of a head's weights, gradients and both moments of AdamW in float32, and of copies to multiply with."""
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
        "products": str(products_on(CPU) or torch.float32).removeprefix("torch."),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "scored": [],
    }
    return Run(config.run, record, basis, head, reduction_basis(rows.cache))


def _reduction_of(rows: TrainingSet) -> dict[str, Any]:
    """What a run records of the reduction of its cache; nothing where rows are whole."""
    reduction = rows.cache.reduction
    return {"reduction": {"basis": reduction.basis, "digest": reduction.digest}} if reduction else {}
