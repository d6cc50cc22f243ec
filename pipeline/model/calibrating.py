"""The temperature of an exported model, fitted on images that its head was not trained on, and the errors it leaves."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.config.models import ExportConfig
from pipeline.console import counted
from pipeline.errors import RunError
from pipeline.model.bundle import Bundle
from pipeline.model.card import Calibration, Pair
from pipeline.model.parity import check_files, precision_here
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature, calibrate, error_of, floor_of
from pipeline.statistics.groups import join
from pipeline.statistics.scoring import score

logger = logging.getLogger("headgraft.export")


def calibrate_run(
    config: ExportConfig, run: Run, cache: FeatureCache, index: SetIndex, shift: Tensor | None
) -> tuple[Calibration, list[dict[str, Any]]]:
    """Calibration on validation, and with --test its errors on the test images and their evaluation.

    The temperature is that of least loss on validation, 1 where every image is classified correctly, or is in train
    too. The evaluation is of the run's own head, as it records it.
    """
    if not config.calibrate:
        return Calibration(1.0), []
    splits = run.record.held_out_splits
    trained = () if run.record.folds else index.split("train")
    fit = calibrate(*run.log_probs(cache, index, *splits), index.split(*splits), trained, shift)
    if fit.temperature is None:
        logger.warning(f"every {run.record.scored_by} prediction is right: the temperature stays 1")
    found = Calibration(fit.temperature or 1.0)
    kind = "out_of_fold" if run.record.folds else "valid"
    found = _with_errors(found, kind, (fit.ece, fit.scaled_ece), (fit.floor, fit.scaled_floor))
    if not config.test:
        return found, []
    if not index.split("test"):
        raise RunError(f"set {index.name!r} has no test images: leave out --test")
    log_probs, labels = run.log_probs(cache, index, "test")
    before, after = (at_temperature(log_probs, value, shift) for value in (1.0, found.temperature))
    errors, floors = (error_of(before, labels), error_of(after, labels)), (floor_of(before), floor_of(after))
    groups = join(index.split("test")).numbers(index.split("test"))
    return _with_errors(found, "test", errors, floors), [score(log_probs, labels, "test", groups).as_record()]


def _with_errors(known: Calibration, split: str, ece: Pair, floor: Pair) -> Calibration:
    return replace(known, ece={**known.ece, split: ece}, floor={**known.floor, split: floor})


def with_flip(bundle: Bundle, index: SetIndex, root: Path, shift: Tensor | None) -> Calibration:
    """The model's calibration with a temperature for --tta flip, fitted on the validation images themselves.

    The cache has no mirrored views.
    """
    images, trained = index.split("valid"), index.split("train")
    check_files(images, root)
    logger.info(f"--tta flip: the backbone sees {counted(len(images), 'validation image')}, as they are and mirrored")
    predictor = bundle.on("cpu", precision_here(bundle.card.manifest.base.precision))
    log_probs = predictor.log_probs([root / image.path for image in images], mirrored=True)
    fit = calibrate(log_probs, torch.from_numpy(index.labels(images)), images, trained, shift)
    known = replace(bundle.card.calibration, flip_temperature=fit.temperature or 1.0)
    return _with_errors(known, "valid_flip", (fit.ece, fit.scaled_ece), (fit.floor, fit.scaled_floor))
