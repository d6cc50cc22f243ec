"""All that a report says, found out once: numbers and names, nothing drawn."""

import logging
from dataclasses import dataclass, field

import torch

from cache.index import SetIndex
from cache.store import FeatureCache
from pipeline.bases.reduced import unchecked
from pipeline.console import named
from pipeline.errors import ConfigError, RunError
from pipeline.inputs.images import count_leaks
from pipeline.reporting.confusion import Confusion, confusion
from pipeline.reporting.costs import Payback, StageOne, payback, stage_one
from pipeline.reporting.duplicates import NearDuplicates, Pair, identical_files, near_duplicates
from pipeline.reporting.label_issues import LabelIssues, label_issues
from pipeline.reporting.predictions import Predictions, accuracies, predict_split
from pipeline.reporting.rows import SplitRows, clean_rows, narrow
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE, RESULTS_FILE
from pipeline.search.baselines import Baselines, baselines
from pipeline.search.journal import Journal
from pipeline.search.results import SweepResult
from pipeline.search.selection import Metric
from pipeline.statistics.calibration import Fit, calibrate
from pipeline.statistics.intervals import Interval

logger = logging.getLogger("headgraft.reporting")

MOST_COMPARED = 30_000  # images, each with each: some minutes


@dataclass(frozen=True)
class Sweep:
    """What a sweep left: `result` is sweep.json, `scores` the validation accuracy of {head: {epochs: accuracy}}."""

    result: SweepResult
    scores: dict[int, dict[int, float]]


@dataclass(frozen=True)
class Findings:
    """Of one run. `test` is there only where the test images were looked at before.

    `refusal` says why no label could be checked, "" where they were.
    Where there are too many images, they were not `compared`: of the duplicates there are identical files alone.
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

    def name(self, place: int) -> str:
        """The display name of a class, else its own."""
        label = self.run.classes[place]
        return named(self.names.get(label, label))

    @property
    def looks(self) -> int:
        """How often the test images were scored."""
        return sum(entry["split"] == "test" for entry in self.run.record.scored)

    @property
    def across(self) -> list[Pair]:
        """Near-duplicates in two splits, or with two labels."""
        return [pair for pair in self.duplicates.pairs if len(set(pair.splits)) > 1 or len(set(pair.labels)) > 1]


def find(run: Run, cache: FeatureCache, index: SetIndex, names: dict[str, str]) -> Findings:
    """Look at the run, its cache and its set; RunError where what a sweep wrote down cannot be."""
    logger.info("scoring the validation images")
    valid = predict_split(run, cache, index, "valid")
    looked_at = any(entry["split"] == "test" for entry in run.record.scored) and bool(index.split("test"))
    test = predict_split(run, cache, index, "test") if looked_at else None
    sweep = _sweep(run, index)
    compared = len(index.images) <= MOST_COMPARED
    logger.info("looking for near-duplicates" if compared else "too many images: looking for identical files only")
    duplicates = near_duplicates(cache, index) if compared else identical_files(index)
    logger.info("looking for label issues")
    refusal = unchecked(cache, index)
    issues = LabelIssues([], 0, {}) if refusal else label_issues(cache, index, duplicates.groups)
    config = run.record.config
    return Findings(
        run=run,
        cache=cache,
        index=index,
        names=names,
        valid=valid,
        scores=accuracies(valid, duplicates.groups.numbers(valid.images)),
        known=_baselines(run, cache, index),
        confusion=confusion(valid),
        calibration=calibrate(torch.from_numpy(valid.log_probs), torch.from_numpy(valid.truth), index),
        label_issues=issues,
        refusal=refusal,
        compared=compared,
        duplicates=duplicates,
        leaks=count_leaks(index),
        stage_one=stage_one(cache),
        payback=payback(index, config.passes, config.epochs),
        test=test,
        test_scores=accuracies(test, duplicates.groups.numbers(test.images)) if test else {},
        sweep=sweep,
    )


def _baselines(run: Run, cache: FeatureCache, index: SetIndex) -> Baselines:
    """In the run's basis where that is narrow enough."""
    basis = narrow(cache, run.basis)
    train, valid = (clean_rows(cache, index, basis, split) for split in ("train", "valid"))
    return baselines(SplitRows(train, valid, len(index.classes)), basis.name)


def _sweep(run: Run, index: SetIndex) -> Sweep | None:
    """What is beside a run that a sweep chose; RunError where it is not what a sweep left."""
    if run.record.sweep is None:
        return None
    try:
        result = SweepResult.load(run.path)
        metric, images = Metric.of_validation(result.choose_by, index), len(index.split("valid"))
        scores = {
            head: {epochs: float(metric.of(score.unpacked(images))) for epochs, score in by.items()}
            for head, by in Journal.read(run.path).scores.items()
        }
        if not scores:
            raise ValueError("no scores")
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise RunError(
            f"{run.path / RESULTS_FILE} or {JOURNAL_FILE} is not what the sweep left ({error}): "
            "put it back, or sweep again with --overwrite"
        ) from error
    return Sweep(result, scores)
