"""Training one head on rows in its basis, and what training many of them shares with it."""

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.bases.data import TrainingData
from pipeline.config.heads import FEWEST_EPOCHS, MOST_EPOCHS, STEPS, HeadSettings, TrainConfig
from pipeline.console import size
from pipeline.errors import RunError
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.heads.head import Head, hidden_in_words, num_weights
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.device import CPU, computes_bfloat16
from pipeline.machine.memory import available_bytes

logger = logging.getLogger("headgraft.heads")


@dataclass
class Epoch:
    """One epoch of a head.

    Attributes:
        epoch: its number, from 1.
        train_loss: mean over its steps.
        valid_accuracy: on the clean pass, a fraction.
        valid_loss: on the clean pass.
        seconds: that it took.
    """

    epoch: int
    train_loss: float
    valid_accuracy: float
    valid_loss: float
    seconds: float


def default_epochs(images: int, batch_size: int) -> int:
    """Epochs of about `STEPS` steps in all, within the bounds of `config`: few images need more epochs than many."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / math.ceil(images / batch_size))))


@dataclass(frozen=True)
class Fitted:
    """A head as it is after its last epoch, with how it got there.

    Attributes:
        head: over rows in its basis (B, R).
        epochs: one after the other.
        valid_accuracy: after the last of them, a fraction.
        valid_loss: after the last of them.
        seconds: of training and scoring.
    """

    head: Head
    epochs: list[Epoch]
    valid_accuracy: float
    valid_loss: float
    seconds: float


def fit_head(config: TrainConfig, data: TrainingData, level: int = logging.DEBUG) -> Fitted:
    """Train a head on `data`, which is in its basis. Each epoch is logged at `level`.

    Raises RunError where its weights do not fit into memory, or become NaN or infinite.
    """
    start = time.perf_counter()
    settings, epochs = config.settings, list[Epoch]()
    refuse_beyond_memory(settings, data)
    count = config.epochs or default_epochs(len(data.train_labels), config.batch_size)
    shape = shape_of(settings, data, count)
    state = HeadState.new(hyperparameters_of(settings, config.seed), shape)
    group = HeadGroup([state], shape, class_weights(settings, data), matmul_dtype_on(CPU))
    for number in range(1, count + 1):
        begin = time.perf_counter()
        loss = float(group.epoch(data.batches(config.batch_size, shuffle_rng(config.seed, number))))
        hits, valid_losses = group.score(data.validation())
        if not math.isfinite(loss + float(valid_losses)):
            raise RunError(f"loss or weights became NaN or infinite in epoch {number}: lower --lr, now {config.lr}")
        accuracy = float(hits.double().mean())
        epoch = Epoch(number, loss, accuracy, float(valid_losses), time.perf_counter() - begin)
        epochs.append(epoch)
        logger.log(
            level,
            f"epoch {number:3d}  loss {epoch.train_loss:.4f}  "
            f"valid {epoch.valid_accuracy:.2%}, loss {epoch.valid_loss:.4f}  {epoch.seconds:.2f} s",
        )
    head = Head.from_tensors(group.weights(0), config.dropout)
    return Fitted(head, epochs, epoch.valid_accuracy, epoch.valid_loss, time.perf_counter() - start)


def matmul_dtype_on(device: torch.device) -> torch.dtype | None:
    """What heads multiply in: bfloat16 where `device` computes in that, at up to twice the speed, else float32."""
    return torch.bfloat16 if computes_bfloat16(device) else None


@torch.inference_mode()
def predict_validation(head: Head, data: TrainingData) -> Tensor:
    """Log-probabilities (V, C) of the validation images, in the order of `data.valid_labels`."""
    found = torch.empty(len(data.valid_labels), data.num_classes)
    found[data.valid_order] = torch.cat([head(rows) for rows, _ in data.validation()])
    return found


def hyperparameters_of(settings: HeadSettings, seed: int) -> HeadHyperparameters:
    """How a head of these settings is trained in its group."""
    return HeadHyperparameters(settings.lr, settings.weight_decay, settings.dropout, seed)


def shape_of(settings: HeadSettings, data: TrainingData, epochs: int) -> HeadShape:
    """What a head of these settings shares with its group."""
    steps = epochs * math.ceil(len(data.train_labels) / settings.batch_size)
    return HeadShape(data.in_features, settings.hidden, data.num_classes, steps)


def class_weights(settings: HeadSettings, data: TrainingData) -> Tensor | None:
    """(C,) in inverse proportion to the training images of each class, 1 on average over them; None for equal ones."""
    if settings.class_weights == "none":
        return None
    counts = torch.bincount(data.train_labels, minlength=data.num_classes)
    return len(data.train_labels) / (data.num_classes * counts.clamp_min(1))


def bytes_of_training(settings: HeadSettings, data: TrainingData) -> int:
    """Bytes of a head's weights, gradients and both moments of AdamW in float32, and of copies to multiply with."""
    return 5 * 4 * num_weights(data.in_features, settings.hidden, data.num_classes)


def refuse_beyond_memory(settings: HeadSettings, data: TrainingData) -> None:
    """RunError where training a head of these settings takes more memory than is free."""
    needed = bytes_of_training(settings, data)
    if needed > (free := available_bytes()):
        raise RunError(
            f"a head with {hidden_in_words(settings.hidden)} on {data.in_features} features takes {size(needed)}, "
            f"{size(free)} are free: choose a smaller --hidden, or a smaller --basis"
        )
