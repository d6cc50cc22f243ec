"""When an exported model does not answer, and how it says which classes are possible: fitted on held-out images."""

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.errors import MissingRows
from cache.layout import PREDICTION_FOLDER
from cache.store import FeatureCache
from pipeline.bases.reduced import unchecked
from pipeline.bases.trainset import TrainingSet
from pipeline.config.models import ExportConfig
from pipeline.console import counted
from pipeline.cross_validation.held_out import HeldOutPredictions, held_out_predictions
from pipeline.cross_validation.predictions import OutOfFold
from pipeline.errors import PipelineError, RunError
from pipeline.machine.memory import allowed_bytes
from pipeline.model.card import PredictionSets, Rejection, Unknown
from pipeline.model.prior import ClassPrior
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature, fit_temperature
from pipeline.statistics.conformal import in_sets, set_thresholds
from pipeline.statistics.scoring import SetScores
from pipeline.statistics.selective import Answered, Unsupported, fit_threshold
from pipeline.unknown.detector import SCORE, UnknownDetector
from pipeline.unknown.fitting import fit_detector, unfit

logger = logging.getLogger("headgraft.export")

_CLUSTERING = 3  # one image in so many says which classes are alike, and judges the sets


@dataclass(frozen=True)
class Abstaining:
    """What a model is exported with; None is what was not asked for, or cannot be had.

    Attributes:
        rejection: threshold of the probability.
        unknown: what the detector is worth.
        sets: thresholds of prediction sets.
        detector: of unknown images.
        refused: reasons by `rejection` and `unknown`, as the JSON of the command has them.
    """

    rejection: Rejection | None = None
    unknown: Unknown | None = None
    sets: PredictionSets | None = None
    detector: UnknownDetector | None = None
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_json(self) -> dict[str, dict[str, Any]]:
        """By name what the card says of each, without its long lists, or why it is not there; {} if not asked for."""
        found = {name: asdict(one) for name in ("rejection", "unknown", "sets") if (one := getattr(self, name))}
        found.get("sets", {}).pop("least", None)
        return {"rejection": {}, "unknown": {}, "sets": {}, **self.refused, **found}


def abstaining_in_words(rejection: dict[str, Any], unknown: dict[str, Any], sets: dict[str, Any]) -> list[str]:
    """A line on each that there is, as `Abstaining.as_json` has them."""
    lines = []
    if "threshold" in rejection:
        answered = f"{rejection['answered'] / rejection['images']:.1%} of {counted(rejection['images'], 'image')}"
        lines.append(
            f"answers where its probability is {rejection['threshold']:.1%} or more, {answered}: at most "
            f"{100 * rejection['max_error']:.3g}% wrong with {100 * rejection['confidence']:.4g}% confidence "
            f"({rejection['wrong']:,} of these {rejection['answered']:,} are)"
        )
    if "score" in unknown:
        auroc = unknown["auroc_left_out"]
        worth = "" if auroc is None else f"; AUROC {auroc:.3f} for classes left out of training"
        alarms = f"{100 * unknown['false_alarms']:.3g}% of known images at most are taken for unknown"
        if unknown["false_alarms"] * (unknown["images"] + 1) <= 1:
            alarms = (
                f"none is flagged, p-values by {unknown['images']} images are not below {unknown['false_alarms']:g}"
            )
        lines.append(f"unknown images: {alarms}{worth}")
    if "mean_size" in sets:
        size, covered = f"{sets['mean_size']:.2f} classes on average", sets["covered"]
        found = size if covered is None else f"{size}, which hold the true one in {covered:.1%} of other images"
        lines.append(f"sets for a coverage of {100 * sets['coverage']:.3g}%, by {sets['images']:,} images: {found}")
    return lines


def fit_abstaining(config: ExportConfig, run: Run, cache: FeatureCache, prior: ClassPrior | None) -> Abstaining:
    """What `config` asks for, of a model with class `prior`.

    Heads like the run's are trained on parts of its images, and what they say of the others decides. Where that cannot
    be, there is no detector, which is logged, and a PipelineError or MissingRows where a promise was asked for.
    """
    promised = config.max_error is not None or config.sets is not None
    reason = unfit(cache) if config.unknown else ""
    detects, held_out, fitted = config.unknown and not reason, None, None
    try:
        if promised or detects:
            held_out = _held_out(config, run, cache, unseen_classes=detects)
        if held_out and detects:
            fitted = fit_detector(cache, held_out, _scaling(config, prior, held_out.log_probs, held_out.labels))
    except (PipelineError, MissingRows) as error:
        if promised:
            raise
        reason = str(error)
    if reason:
        logger.warning(f"without a detector of unknown images: {reason}")
    found = Abstaining(refused={"unknown": {"reason": reason}} if reason else {})
    if fitted:
        count = len(fitted.detector.known)
        if config.false_alarms * (count + 1) <= 1:
            logger.warning(
                f"p-values by {counted(count, 'image')} are never below {config.false_alarms:g}, so that no picture is "
                f"taken for unknown: choose --false-alarms {math.ceil(1000 / (count + 1) + 1) / 1000:g} or more"
            )
        unknown = Unknown(SCORE, config.false_alarms, count, fitted.auroc_left_out)
        found = replace(found, unknown=unknown, detector=fitted.detector)
    if not promised or not held_out:
        return found
    known = fitted.p_values >= config.false_alarms if fitted else torch.ones(len(held_out.images), dtype=torch.bool)
    log_probs = _log_probs(run, cache, held_out)
    if log_probs is not None:
        log_probs = _scaling(config, prior, log_probs, held_out.labels)(log_probs)
    return _with_promises(config, found, held_out, log_probs, known)


def _scaling(
    config: ExportConfig, prior: ClassPrior | None, log_probs: Tensor, labels: Tensor
) -> Callable[[Tensor], Tensor]:
    """What makes of these heads' log-probabilities (N, C) calibrated ones, for the class prior that was asked for.

    They have a temperature of their own: heads of fewer images are sure to another degree than the exported one, and
    thresholds of a probability are to mean the same for both.
    """
    wanted = None if prior is None else prior.of_training_images
    temperature = fit_temperature(log_probs, labels, wanted) if config.calibrate else None
    return partial(at_temperature, temperature=temperature or 1.0, shift=prior.added if prior else None)


def _held_out(config: ExportConfig, run: Run, cache: FeatureCache, unseen_classes: bool) -> HeldOutPredictions:
    index = cache.index(run.record.set).labelled
    if reason := unchecked(cache, index):
        raise RunError(reason)
    trainset = TrainingSet(cache, index, run.record.config.passes, run.record.leaks)
    return held_out_predictions(run, trainset, allowed_bytes(config.memory), unseen_classes)


def _with_promises(
    config: ExportConfig, found: Abstaining, held_out: HeldOutPredictions, log_probs: Tensor | None, known: Tensor
) -> Abstaining:
    """What was found, and the threshold and sets that are asked for, or why there are none."""
    wanted = [name for name, asked in (("rejection", config.max_error), ("sets", config.sets)) if asked is not None]
    if log_probs is None:
        reason = (
            "the images of this run chose its head: run headgraft cv with --heads first, on the same cache and set, "
            "whose predictions chose nothing"
        )
        logger.warning(f"without {' and '.join(wanted)}: {reason}")
        needed = {"rejection": {"images_needed": None}, "sets": {}}
        return replace(found, refused={**found.refused, **{one: {"reason": reason, **needed[one]} for one in wanted}})
    sets = None if config.sets is None else _sets(config.sets, held_out, log_probs)
    rejection = None if config.max_error is None else _rejection(config, held_out, log_probs, known)
    if not isinstance(rejection, Unsupported):
        return replace(found, sets=sets, rejection=rejection)
    logger.warning(
        f"without a threshold for an error of at most {100 * (config.max_error or 0):.3g}%: {rejection.reason}"
    )
    return replace(found, sets=sets, refused={**found.refused, "rejection": asdict(rejection)})


def _log_probs(run: Run, cache: FeatureCache, held_out: HeldOutPredictions) -> Tensor | None:
    """Of the images by heads that they did not choose, (N, C); None where there are none.

    Images that a choice over folds was made on have those that nested cross-validation left, if it did.
    """
    if not run.record.folds:
        return held_out.log_probs
    path = cache.path / PREDICTION_FOLDER / f"{run.record.set}.npz"
    if not path.is_file():
        return None
    nested = OutOfFold.load(path, "run headgraft cv again, into another place or after moving it away")
    same = nested.digests.tolist() == [image.digest for image in held_out.images]
    same = same and np.array_equal(nested.labels, held_out.labels.numpy())
    if nested.settings is not None or not same or nested.classes.tolist() != run.record.classes:
        return None
    return torch.from_numpy(nested.log_probs[0])


def _rejection(
    config: ExportConfig, held_out: HeldOutPredictions, log_probs: Tensor, known: Tensor
) -> Rejection | Unsupported:
    """Over one image of each group, since the others are no independent evidence."""
    assert config.max_error is not None
    first = held_out.one_of_each_group.numpy()
    confidence, predicted = log_probs.exp().max(1)
    sureness = (confidence * known).double().numpy()[first]
    hits = (predicted == held_out.labels).numpy()[first]
    found = fit_threshold(sureness, hits, config.max_error, config.confidence)
    if not isinstance(found, Answered):
        return found
    digests = sorted(held_out.images[place].digest for place in first.tolist())
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Rejection(
        max_error=config.max_error,
        confidence=config.confidence,
        threshold=found.threshold,
        images=len(digests),
        answered=found.answered,
        wrong=found.wrong,
        digest=digest,
    )


def _sets(coverage: float, held_out: HeldOutPredictions, log_probs: Tensor) -> PredictionSets:
    first = held_out.one_of_each_group
    clustering = np.array([int(held_out.images[place].digest[:8], 16) % _CLUSTERING == 0 for place in first.tolist()])
    values, labels = log_probs[first].double().numpy(), held_out.labels[first]
    least = set_thresholds(values, labels.numpy(), coverage, clustering)
    others = clustering if clustering.any() else ~clustering
    found = SetScores.of(in_sets(values, least)[others], labels[torch.from_numpy(others)])
    covered = found.coverage if clustering.any() else None
    return PredictionSets(coverage, int((~clustering).sum()), least.tolist(), found.mean_size, covered)
