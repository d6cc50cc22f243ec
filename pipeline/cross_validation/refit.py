"""A head that was chosen, retrained on training and validation images together."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.bases.basis import Basis
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings
from pipeline.console import counted
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import refuse_beyond_memory
from pipeline.heads.head import Head, merge_heads
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.run import Run

logger = logging.getLogger("headgraft.cross_validation")


def refitted(
    run: Run, trainset: TrainingSet, settings: HeadSettings, epochs: int, seeds: Sequence[int], memory: int
) -> Run:
    """The run with a head of the same `settings`, `epochs` and `seeds` and a basis, both of train and validation.

    Of several seeds, heads are merged. What the run says of the validation images stays that of the head before, which
    has not seen them: the temperature is fitted on it, and their accuracy is its.
    """
    held_out = run.log_probs(trainset.cache, trainset.index, "valid")[0]
    basis, head = fit_on_all(trainset, settings, epochs, seeds, memory)
    return replace(run, record=replace(run.record, refit=True), basis=basis, head=head, held_out=held_out)


def fit_on_all(
    trainset: TrainingSet, settings: HeadSettings, epochs: int, seeds: Sequence[int], memory: int
) -> tuple[Basis, Head]:
    """A basis and a head of all training and validation images; of several seeds, heads are merged.

    RunError where rows take more than `memory` bytes, or weights become NaN or infinite.
    """
    images = trainset.index.split("train", "valid")
    rows = ImageRows.load(trainset, images, settings.basis, memory)
    every = torch.arange(len(images))
    basis = rows.basis(every)
    data = rows.data(basis, every, every[:0])
    refuse_beyond_memory(settings, data)
    steps = steps_of(data, settings, epochs)
    heads = [fit_side_by_side([data], settings, [steps], [seed])[0] for seed in seeds]
    logger.info(f"trained on {counted(len(images), 'training and validation image')}, {counted(epochs, 'epoch')}")
    return basis, heads[0] if len(heads) == 1 else merge_heads(heads)
