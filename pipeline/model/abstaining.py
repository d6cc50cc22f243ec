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
from pipeline.config.options import flag
from pipeline.console import counted
from pipeline.cross_validation.held_out import HeldOutPredictions, held_out_predictions
from pipeline.cross_validation.predictions import SEARCHED, OutOfFold
from pipeline.errors import PipelineError, RunError
from pipeline.machine.memory import allowed_bytes
from pipeline.model.card import PredictionSets, Rejection, Unknown
from pipeline.model.prior import ClassPrior
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE
from pipeline.search.journal import Journal
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
    """A line on each that there is or was asked for, as `Abstaining.as_json` has them."""
    refused: dict[str, list[str]] = {}
    for name, one in (("threshold", rejection), ("sets", sets)):
        if "reason" in one:
            refused.setdefault(one["reason"], []).append(name)
    lines = [f"no {' and no '.join(names)}: {why}" for why, names in refused.items()]
    if "threshold" in rejection:
        answered = f"{rejection['answered'] / rejection['images']:.1%} of {counted(rejection['images'], 'image')}"
        lines.append(
            f"answers where its probability is {rejection['threshold']:.1%} or more, {answered}: at most "
            f"{100 * rejection['max_error']:.3g}% wrong with {100 * rejection['confidence']:.4g}% confidence "
            f"({rejection['wrong']:,} of these {rejection['answered']:,} were wrong)"
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


def fit_abstaining(
    config: ExportConfig, run: Run, cache: FeatureCache, prior: ClassPrior | None, temperature: float
) -> Abstaining:
    """What `config` asks for, of a model with class `prior` at `temperature`.

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
            fitted = fit_detector(cache, held_out, _scaling(prior, temperature))
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
    log_probs = held_out.log_probs
    if run.record.folds:
        nested = _nested(run, cache, held_out)
        if isinstance(nested, str):
            return _without_promises(config, found, nested)
        # Its heads have settings of their own, and so are sure to a degree of their own.
        log_probs, wanted = nested, prior.of_training_images if prior else None
        temperature = (config.calibrate and fit_temperature(nested, held_out.labels, wanted)) or 1.0
    return _with_promises(config, found, held_out, _scaling(prior, temperature)(log_probs), known)


def _scaling(prior: ClassPrior | None, temperature: float) -> Callable[[Tensor], Tensor]:
    """What makes of heads' log-probabilities (N, C) those of an exported model.

    Heads like the run's have its temperature: that of few validation images is far off, and thresholds then mean the
    same for both all the same (docs/decisions/abstaining.md).
    """
    return partial(at_temperature, temperature=temperature, shift=prior.added if prior else None)


def _held_out(config: ExportConfig, run: Run, cache: FeatureCache, unseen_classes: bool) -> HeldOutPredictions:
    index = cache.index(run.record.set).labelled
    if reason := unchecked(cache, index):
        raise RunError(reason)
    trainset = TrainingSet(cache, index, run.record.config.passes, run.record.leaks)
    return held_out_predictions(run, trainset, allowed_bytes(config.memory), unseen_classes)


def _without_promises(config: ExportConfig, found: Abstaining, reason: str) -> Abstaining:
    """What was found, and why there is nothing else of what was asked for."""
    asked = {"rejection": config.max_error, "sets": config.sets}
    needed: dict[str, dict[str, Any]] = {"rejection": {"images_needed": None}, "sets": {}}
    refused = {name: {"reason": reason, **needed[name]} for name, value in asked.items() if value is not None}
    return replace(found, refused={**found.refused, **refused})


def _with_promises(
    config: ExportConfig, found: Abstaining, held_out: HeldOutPredictions, log_probs: Tensor, known: Tensor
) -> Abstaining:
    """What was found, and the threshold and sets that are asked for, or why there is none."""
    if config.sets is not None:
        found = replace(found, sets=_sets(config.sets, held_out, log_probs))
    if config.max_error is None:
        return found
    rejection = _rejection(config, held_out, log_probs, known)
    if isinstance(rejection, Unsupported):
        return replace(found, refused={**found.refused, "rejection": asdict(rejection)})
    return replace(found, rejection=rejection)


def _nested(run: Run, cache: FeatureCache, held_out: HeldOutPredictions) -> Tensor | str:
    """Of the images that a choice over folds was made on, by heads that they did not choose, (N, C), or why not.

    Nested cross-validation leaves these, of a search like the run's.
    """
    path = cache.path / PREDICTION_FOLDER / f"{run.record.set}.npz"
    if not (run.path / JOURNAL_FILE).is_file():
        return f"the images of this run chose its head, and {run.path} has no {JOURNAL_FILE} that says how: put it back"
    asked = Journal.read(run.path).asked
    before = {name: asked.get(name) for name in SEARCHED}
    advice = (
        f"run headgraft cv --heads {asked.get('heads')} with the options of the sweep first, whose predictions chose "
        "nothing"
    )
    if not path.is_file():
        return f"the images of this run chose its head: {advice}"
    nested = OutOfFold.load(path, "run headgraft cv again, into another place or after moving it away")
    same = nested.digests.tolist() == [image.digest for image in held_out.images]
    same = same and np.array_equal(nested.labels, held_out.labels.numpy())
    if nested.search is None or not same or nested.classes.tolist() != run.record.classes:
        kind = "of one head" if nested.search is None else "of other images"
        return f"the images of this run chose its head, and the predictions in {path} are {kind}: {advice}"
    if other := [name for name, value in before.items() if nested.search.get(name) != value]:
        return (
            f"{path} has predictions of a search with another {flag(other[0])} ({nested.search.get(other[0])}) than "
            f"this run's ({before[other[0]]}): {advice}"
        )
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
