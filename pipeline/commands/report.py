"""Run → one page that can be mailed: how good, where it fails, is the data clean, how sure, what it cost, what next."""

import logging
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cache.files import write_atomically
from cache.result import Result
from pipeline.config.models import ReportConfig
from pipeline.console import counted
from pipeline.inputs.display_names import read_names
from pipeline.inputs.images import root_now
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import available_cpus
from pipeline.reporting.findings import Findings, find
from pipeline.reporting.sections import choose_shown, wanted_pictures
from pipeline.reporting.thumbnails import Thumbnails
from pipeline.run import Run
from pipeline.run_folder import REPORT_FILE, check_target

logger = logging.getLogger("headgraft.report")


@dataclass
class ReportResult(Result):
    """What `report` found and wrote.

    Attributes:
        report: path of the page.
        bytes: size of the page.
        pictures: images that are shown.
        missing_pictures: images that are shown without a picture, since their files are out of reach.
        scored_by: `validation`, or `out-of-fold` of a choice over folds.
        valid: `{top1, top5, mean_per_class: {value, low, high}}` of the validation images, or out of fold, with 95 %
            intervals over images; no `top5` with five classes or fewer.
        test: the same of the test images; empty unless they were scored.
        baselines: as of sweep.
        label_issues: `[{path, split, label, suggested, agreement}]`: training and validation images that agree with
            another class more than with theirs, the least agreeing first.
        unchecked: why no label could be checked, else "".
        unchecked_classes: `{class: images}` whose labels cannot be checked: fewer different images than folds.
        hand_labels: `{verdicts: {class, unsure, bad, none}, changed, valid_changed, before: {value, low, high}}` of
            labels given by hand; `before` is the accuracy by the labels in the data, null where none was changed.
        duplicates: `{pairs, across, threshold, false_alarm_rate, expected_false, detection_rate}`, as of cache info.
        calibration: `{ece, floor, temperature, scaled_ece, scaled_floor}`; `scaled_ece` is cross-fitted, `floor` and
            `scaled_floor` are what the errors would be on average if the probabilities were right.
        break_even_heads: number of heads that cost as much without a cache as the cache did.
        break_even_epochs: the same in epochs of the first head.
        seconds: of the command.
    """

    report: str
    bytes: int
    pictures: int
    missing_pictures: int
    scored_by: str
    valid: dict[str, dict[str, float]]
    test: dict[str, dict[str, float]]
    baselines: dict[str, Any]
    label_issues: list[dict[str, Any]]
    unchecked: str
    unchecked_classes: dict[str, int]
    hand_labels: dict[str, Any]
    duplicates: dict[str, Any]
    calibration: dict[str, float | None]
    break_even_heads: int
    break_even_epochs: int
    seconds: float = 0.0

    def in_words(self) -> str:
        """One line."""
        page = f"{self.report}: {self.bytes / 1e6:.1f} MB, {counted(self.pictures, 'picture')}"
        missing = f", {self.missing_pictures} missing (name their folder with --data)" if self.missing_pictures else ""
        issues = counted(len(self.label_issues), "possible label error") + " or hard images"
        issues = "labels not checked" if self.unchecked else issues
        pairs = counted(self.duplicates["pairs"], "pair")
        found = f"{self.scored_by} accuracy {self.valid['top1']['value']:.2%}, {issues}, {pairs} of near-duplicates"
        found += f" ({self.duplicates['across']:,} in two splits or classes)"
        return f"{page}{missing}; {found}"


def report(config: ReportConfig) -> ReportResult:
    """Write the page of a run, in its folder or at `output`.

    Images that are out of reach are shown without a picture, and counted.

    Raises:
        RunError: the run or its cache is missing or incomplete.
        CacheError: the page cannot be written.
    """
    start = time.perf_counter()
    target = config.output or config.run / REPORT_FILE
    run = Run.load(config.run)
    check_target(target, config.overwrite or not config.output, "name another file with --output")
    held = nullcontext if config.output else run.unchanged
    with held():
        pass  # where another process writes the run, that is said before the work
    torch.set_num_threads(available_cpus())
    cache = run.open_cache(config.cache)
    index = cache.index(run.record.set).labelled
    root = root_now(index, config.data)
    names = read_names(config.names, run.classes) if config.names else {}
    found = find(run, cache, index, names)
    logger.info("drawing the page")
    page, pictures = _page(found, root)
    with held():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, page)
    result = _result(found, str(target), len(page), pictures)
    result.seconds = time.perf_counter() - start
    return result


def _page(found: Findings, root: Path) -> tuple[bytes, Thumbnails]:
    """The page, and its pictures."""
    from pipeline.reporting.page import render  # matplotlib takes a second to import

    shown = choose_shown(found)
    pictures = Thumbnails(root, Preprocessing.of(found.cache.manifest.base).policy)
    pictures.add(wanted_pictures(found, shown))
    return render(found, shown, pictures), pictures


def _result(found: Findings, target: str, size: int, pictures: Thumbnails) -> ReportResult:
    label_issues = [
        {
            "path": one.image.path,
            "split": one.image.split,
            "label": found.run.classes[one.label],
            "suggested": found.run.classes[one.suggested],
            "agreement": one.agreement,
        }
        for one in found.label_issues.found
    ]
    unchecked = {found.run.classes[place]: count for place, count in found.label_issues.unchecked.items()}
    pairs = {"pairs": len(found.duplicates.pairs), "across": len(found.across)}
    return ReportResult(
        report=target,
        bytes=size,
        pictures=len(pictures.uris),
        missing_pictures=pictures.missing,
        scored_by=found.run.record.scored_by,
        valid={name: asdict(interval) for name, interval in found.scores.items()},
        test={name: asdict(interval) for name, interval in found.test_scores.items()},
        baselines=asdict(found.known),
        label_issues=label_issues,
        unchecked=found.refusal,
        unchecked_classes=unchecked,
        hand_labels=asdict(found.hand_labels),
        duplicates={**pairs, **found.duplicates.threshold.as_json()},
        calibration=asdict(found.calibration),
        break_even_heads=found.payback.heads,
        break_even_epochs=found.payback.epochs_of_first,
    )
