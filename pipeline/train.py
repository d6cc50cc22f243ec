"""Stage two: one head, trained in a basis, from the rows of a cache."""

import logging
import time
from dataclasses import dataclass, field, fields, replace

import torch

from pipeline.bases.rows import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.config import TrainConfig
from pipeline.console import counted
from pipeline.heads.fit import Epoch, default_epochs, fit_head
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.run import new_run
from pipeline.run_folder import claimed_run, refuse_to_overwrite


@dataclass
class TrainResult:
    """What `train_head` did; the accuracy and loss are those of the last epoch, whose head is kept.

    Attributes:
        run: folder of the run.
        set: name of the image set.
        basis: name of the basis.
        precision: that the features were computed in.
        leaks: images `{across_splits, two_labels}`; of a reduced cache also `in_reduction`: validation and test images
            that the reduction was fitted on, without their labels.
        epochs: one after the other.
        valid_accuracy: validation accuracy, a fraction.
        valid_loss: validation loss.
        classes_without_validation: number of classes that have no validation image, for which no head is chosen.
        seconds: of the command.
    """

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

    def in_words(self) -> str:
        """One line."""
        accuracy = f"validation accuracy {self.valid_accuracy:.2%} after {counted(len(self.epochs), 'epoch')}"
        return f"{self.run}: {accuracy}, {self.seconds:.1f} s"


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
    trainset = TrainingSet.open(config.cache, config.set, config.passes)
    epochs = config.epochs or default_epochs(len(trainset.index.split("train")), config.batch_size)
    config = replace(config, basis=config.basis or trainset.default_basis, epochs=epochs)
    basis, data = load_data(trainset, config.settings.basis, allowed_bytes(config.memory))
    run = new_run(config, trainset, fit_head(config, data, logging.INFO), basis)
    run.record.seconds = time.perf_counter() - start
    run.save()
    return TrainResult(**{field.name: getattr(run.record, field.name) for field in fields(TrainResult)})
