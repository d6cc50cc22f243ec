"""All that a report says, found out once: numbers and names, nothing drawn."""

import logging
import shlex
from dataclasses import dataclass, field, replace

import torch

from cache.history import read_history
from cache.index import SetIndex
from cache.labels import LabelJournal
from cache.layout import PREDICTION_FOLDER
from cache.records import fault
from cache.store import FeatureCache
from pipeline.bases.clean_rows import SplitRows, clean_rows, narrow
from pipeline.bases.reduced import unchecked
from pipeline.console import counted, named
from pipeline.cross_validation.held_out import settings_of
from pipeline.cross_validation.learning_curve import CurveResult, curve_path
from pipeline.cross_validation.predictions import OutOfFold
from pipeline.duplicates.near_duplicates import MOST_COMPARED, NearDuplicates, Pair, find_duplicates
from pipeline.errors import ConfigError, RunError
from pipeline.inputs.splitting import count_leaks
from pipeline.labelling.label_issues import LabelIssues, label_issues
from pipeline.reporting.confusion import Confusion, confusion
from pipeline.reporting.costs import Payback, StageOne
from pipeline.reporting.evidence import EvidenceFound, find_evidence
from pipeline.reporting.hand_labels import HandLabels, find_hand_labels
from pipeline.reporting.predictions import Predictions, predict
from pipeline.reporting.sureness import Sureness, find_sureness
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE, RESULTS_FILE
from pipeline.search.baselines import Baselines, baselines
from pipeline.search.journal import Journal, is_of_version_0_1
from pipeline.search.results import SweepResult
from pipeline.search.selection import Metric
from pipeline.statistics.calibration import Fit, calibrate
from pipeline.statistics.groups import join
from pipeline.statistics.intervals import Interval

logger = logging.getLogger("headgraft.reporting")


@dataclass(frozen=True)
class Sweep:
    """What a sweep left: `result` is sweep.json, `scores` the validation accuracy of {head: {epochs: accuracy}}."""

    result: SweepResult
    scores: dict[int, dict[int, float]]


@dataclass(frozen=True)
class Findings:
    """Of one run.

    Attributes:
        run: as it was loaded.
        cache: that it was trained from.
        index: the image set.
        names: display names by class, as far as there are any.
        valid: predictions of the validation images; of a choice over folds, of training images too, out of fold.
        scores: their accuracies.
        known: baselines, in the basis of the run where that is narrow enough.
        confusion: of the same images.
        calibration: of the same images.
        sureness: what would be answered where only sure predictions are.
        label_issues: of training and validation images, without those whose label was given or confirmed by hand.
        refusal: why no label could be checked; "" where they were.
        compared: whether all images were compared; of more than `MOST_COMPARED`, duplicates are identical files alone.
        duplicates: near-duplicates of all images.
        leaks: identical files across splits, or with two labels.
        stage_one: what the cache cost.
        payback: when it has paid for itself.
        test: predictions of the test images; None where these were not evaluated before.
        test_scores: their accuracies.
        sweep: what a sweep left; None for another run.
        cross_validated: out-of-fold predictions that lie in the cache; None without, and of other images.
        curve: the learning curve that lies in the cache; None without, and of another state of the set.
        evidence: where decisions come from; None where that cannot be said.
        hand_labels: what labels given by hand changed.
    """

    run: Run
    cache: FeatureCache
    index: SetIndex
    names: dict[str, str]
    valid: Predictions
    scores: dict[str, Interval]
    known: Baselines
    confusion: Confusion
    calibration: Fit
    sureness: Sureness
    label_issues: LabelIssues
    refusal: str
    compared: bool
    duplicates: NearDuplicates
    leaks: dict[str, int]
    stage_one: StageOne
    payback: Payback
    test: Predictions | None = None
    test_scores: dict[str, Interval] = field(default_factory=dict)
    sweep: Sweep | None = None
    cross_validated: OutOfFold | None = None
    curve: CurveResult | None = None
    evidence: EvidenceFound | None = None
    hand_labels: HandLabels = field(default_factory=lambda: HandLabels({}))

    def name(self, place: int) -> str:
        """What to call the class at a place of the head's outputs."""
        return self.label_name(self.run.classes[place])

    def label_name(self, label: str) -> str:
        """The display name of a class, else its own."""
        return named(self.names.get(label, label))

    @property
    def headline(self) -> tuple[str, float, Interval | None]:
        """The accuracy that says most of new images: what it is, its value, and its interval where it has one.

        Test images chose nothing. Of a sweep without them it is the one corrected for the choice, or over all seeds.
        """
        kind = f"{self.run.record.scored_by} accuracy"
        if self.test:
            return "test accuracy", self.test_scores["top1"].value, self.test_scores["top1"]
        result = self.sweep.result if self.sweep else None
        if result and result.choose_by == "top1":
            best = result.best
            if best.won == "search" and best.corrected is not None:
                return f"{kind}, corrected for the choice", best.corrected, None
            if best.seeds > 1 and self.run.record.merged == 1:  # the best of the seeds was kept
                return f"{kind}, mean over {counted(best.seeds, 'seed')}", best.mean, None
        return kind, self.scores["top1"].value, self.scores["top1"]

    @property
    def cross_validated_alike(self) -> bool:
        """Whether cross-validation was of heads with the settings of the run."""
        return self.cross_validated is not None and self.cross_validated.settings == settings_of(self.run)

    @property
    def label_command(self) -> str:
        """What opens the page on which labels are corrected."""
        where = f"--cache {shlex.quote(str(self.cache.path))} --set {shlex.quote(self.index.name)}"
        return f"headgraft label {where} --run {shlex.quote(f'{self.run.path}-labelled')}"

    @property
    def across(self) -> list[Pair]:
        """Near-duplicates in two splits, or with two labels."""
        return [pair for pair in self.duplicates.pairs if len(set(pair.splits)) > 1 or len(set(pair.labels)) > 1]


def find(run: Run, cache: FeatureCache, index: SetIndex, names: dict[str, str]) -> Findings:
    """Look at the run, its cache and its set; RunError where what a sweep wrote down cannot be."""
    valid = predict(run, cache, index, *run.record.held_out_splits)
    evaluated = run.record.test_evaluations and index.split("test")
    test = predict(run, cache, index, "test") if evaluated else None
    sweep = _sweep(run, index)
    compared = len(index.images) <= MOST_COMPARED
    logger.info("looking for near-duplicates" if compared else "too many images: looking for identical files only")
    duplicates = find_duplicates(cache, index)
    logger.info("looking for label issues")
    refusal = unchecked(cache, index)
    issues = LabelIssues([], 0, {}) if refusal else label_issues(cache, index, duplicates.groups)
    by_hand = LabelJournal.load(cache.path, index.name).verdicts.keys()
    undecided = [issue for issue in issues.found if issue.image.digest not in by_hand]
    config, groups = run.record.config, duplicates.groups
    calibration = calibrate(
        torch.from_numpy(valid.log_probs),
        torch.from_numpy(valid.truth),
        valid.images,
        () if run.record.folds else index.split("train"),
    )
    return Findings(
        run=run,
        cache=cache,
        index=index,
        names=names,
        valid=valid,
        scores=valid.accuracies(groups),
        known=sweep.result.baselines if sweep and sweep.result.folds else _baselines(run, cache, index),
        confusion=confusion(valid),
        calibration=calibration,
        sureness=find_sureness(run, cache, index, valid, calibration.temperature, groups),
        label_issues=replace(issues, found=undecided),
        refusal=refusal,
        compared=compared,
        duplicates=duplicates,
        leaks=count_leaks(index),
        stage_one=StageOne(*read_history(cache.path)),
        payback=Payback(
            views=len(index.row_keys(config.passes)),
            epochs=config.epochs,
            views_an_epoch=len(index.split("train", "valid")),
        ),
        test=test,
        test_scores=test.accuracies(groups) if test else {},
        sweep=sweep,
        cross_validated=_cross_validated(cache, index),
        curve=_curve(cache, index),
        evidence=find_evidence(run, cache, index, valid),
        hand_labels=find_hand_labels(run, cache, index, groups),
    )


def _baselines(run: Run, cache: FeatureCache, index: SetIndex) -> Baselines:
    """In the run's basis where that is narrow enough."""
    basis = narrow(cache, run.basis)
    train, valid = (clean_rows(cache, index, basis, split) for split in ("train", "valid"))
    return baselines([SplitRows(train, valid, len(index.classes))], basis.name)


def _cross_validated(cache: FeatureCache, index: SetIndex) -> OutOfFold | None:
    """What `cv` left of this set, as it is now."""
    path = cache.path / PREDICTION_FOLDER / f"{index.name}.npz"
    if not path.is_file():
        return None
    try:
        found = OutOfFold.load(path, "run headgraft cv again, into another place or after moving it away")
    except RunError as error:  # only a copy of what cv can make again
        logger.warning(f"without cross-validation: {error}")
        return None
    images = index.split("train", "valid")
    now = {(image.digest, image.label) for image in images}
    return found if now == set(zip(found.digests.tolist(), found.classes[found.labels].tolist(), strict=True)) else None


def _curve(cache: FeatureCache, index: SetIndex) -> CurveResult | None:
    """What `curve` left of this set, as it is now."""
    path = curve_path(cache.path, index.name)
    if not path.is_file():
        return None
    try:
        return CurveResult.load(path, index.digest)
    except (OSError, ValueError, RecursionError) as error:  # only a copy of what curve can make again
        logger.warning(
            f"without the learning curve: {path} cannot be read ({fault(error)}): move it away, and run curve again"
        )
        return None


def _sweep(run: Run, index: SetIndex) -> Sweep | None:
    """What is beside a run that a sweep chose; None of version 0.1, RunError where it is not what a sweep left."""
    if run.record.sweep is None:
        return None
    if is_of_version_0_1(run.path):
        logger.warning(
            f"without the sweep's heads: {run.path} was written by headgraft 0.1; sweep again with --overwrite for them"
        )
        return None
    try:
        result = SweepResult.load(run.path)
        images = run.held_out_images(index)
        metric = Metric.over(images, result.choose_by, index, join(images))
        scores = {
            head: {epochs: float(metric.of(score.unpacked(len(images)))) for epochs, score in by.items()}
            for head, by in Journal.read(run.path).scores.items()
        }
        if not scores:
            raise ValueError("no scores")
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise RunError(
            f"{run.path / RESULTS_FILE} or {JOURNAL_FILE} is not what the sweep left ({fault(error)}): "
            "put it back, or sweep again with --overwrite"
        ) from error
    return Sweep(result, scores)
