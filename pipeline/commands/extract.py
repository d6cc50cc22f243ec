"""Stage one: the rows an image set needs and the cache lacks, from image files through the frozen backbone."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cache import layout
from cache.errors import MissingRows
from cache.history import Extraction, record_extraction
from cache.index import SkippedImage, index_path
from cache.labels import LabelJournal
from cache.lock import writing
from cache.result import Result
from cache.store import FeatureCache
from cache.writer import merge_small_shards
from pipeline.config.extract import ExtractConfig
from pipeline.console import counted, named
from pipeline.extraction.executor import Executor, executor_of
from pipeline.extraction.extractor import Tally
from pipeline.extraction.plan import ExtractionPlan, Workload, announce, make_plan, workload_of
from pipeline.inputs.remarks import Remarks

logger = logging.getLogger("headgraft.extract")


@dataclass
class ExtractResult(Result):
    """What `extract` did.

    Attributes:
        set: name of the image set.
        images: files of the set.
        rows: distinct (content, view) pairs that the set needs; after a run, `computed` + `reused`.
        computed: rows that the backbone computed.
        reused: rows that the cache had.
        seconds: of the command.
        warmup_seconds: until the backbone is ready; with `--engine ray`, until the first worker is.
        images_per_second: computed rows a second after the warm-up, decoding and writing included.
        phases: seconds of `{decode, compute, write}`, which overlap; with `--engine ray` sums over all workers.
        bound: the phase that the others waited for, with `--engine ray` the longest; "" where nothing was computed.
        skipped: `[{path, reason}]` of files that cannot be decoded.
        remarks: `{kind: [files, first]}`: oddities of files that were decoded all the same, such as more than one page.
        cache: folder of the cache.
        bytes: size of its shards.
        unread: `{extension: files}` of other kinds; empty for a CSV.
        outside: `{folder: images}` in no class folder (`.` is DATA); empty for a CSV.
    """

    set: str
    images: int
    rows: int
    computed: int
    reused: int
    seconds: float
    warmup_seconds: float
    images_per_second: float
    phases: dict[str, float]
    bound: str
    skipped: list[dict[str, str]]
    remarks: Remarks
    cache: str
    bytes: int
    unread: dict[str, int]
    outside: dict[str, int]

    def in_words(self) -> str:
        """One line, and one for each skipped file."""
        missing = self.rows - self.computed - self.reused
        to_do = f", {missing} to compute" if missing else ""
        rate = f", {self.images_per_second:.1f} rows/s after startup" if self.images_per_second else ""
        rows = f"{counted(self.rows, 'row')} of {counted(self.images, 'image')} in {self.cache}"
        skipped = [f"skipped {named(bad['path'])}: {bad['reason']}" for bad in self.skipped]
        took = f", {self.seconds:.1f} s" if self.computed or not missing else ""  # nothing was computed in a dry run
        return "\n".join([f"{rows}: {self.computed} computed, {self.reused} reused{to_do}{took}{rate}", *skipped])


def extract(config: ExtractConfig) -> ExtractResult:
    """Bring the cache to hold every row that the data set needs; what is there already is not computed again.

    Raises:
        ManifestMismatch: the cache has other settings; the message lists the fields that differ.
        ImageSetError: the data cannot be used as it is.
        DecodeError: files cannot be decoded, each listed; `skip_bad` records them instead.
        WeightsError: the weights cannot be had, or are not what they should be.
    """
    start = time.perf_counter()
    with executor_of(config) as executor:
        plan = make_plan(config, executor.place)
        if config.hash_only:
            result = _list(plan)
        else:
            result = _dry_run(plan, executor) if config.dry_run else _extract(plan, executor, start)
    return replace(result, seconds=time.perf_counter() - start)


def _extract(plan: ExtractionPlan, executor: Executor, start: float) -> ExtractResult:
    config, tally = plan.config, Tally()
    with writing(config.cache, config.part):
        cache = FeatureCache.create(config.cache, plan.manifest)
        work = workload_of(plan, cache)
        announce(plan, work, cache)
        if config.finish and work.tasks:
            raise MissingRows(
                f"not there yet: {counted(work.missing, 'row')} of {counted(len(work.tasks), 'image')}, the first "
                f"{named(work.tasks[0].path)}: run the parts that are missing, or extract without --finish, which "
                "computes them"
            )
        try:
            if work.tasks:
                executor.compute(plan, cache, work, tally)
        finally:
            if tally.rows:  # also of a run that was stopped: its rows were not free
                record_extraction(config.cache, _history(plan, work, tally, time.perf_counter() - start))
            for line in tally.remarks.lines():
                logger.warning(line)
        reasons = {digest: reason for digest, (_, reason) in tally.bad.items()}
        bad = [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]
        # Merging and the index are for the last step, when the rows of all parts are there.
        skipped = bad if config.part else _index(plan, cache.reopened(), bad)
    return _result(plan, cache, work, tally, skipped)


def _index(plan: ExtractionPlan, cache: FeatureCache, bad: list[SkippedImage]) -> list[SkippedImage]:
    """Merge small shards and write the index of the set; returns the files that it names as skipped."""
    merge_small_shards(cache.shards)
    index = plan.images.index(plan.name, bad)
    labelled = LabelJournal.load(cache.path, plan.name).applied(index)
    cache.save_index(replace(index, passes=cache.complete_passes(labelled)))
    index_path(cache.path / layout.LISTING_FOLDER, plan.name).unlink(missing_ok=True)  # the index says more
    return list(index.skipped)


def _list(plan: ExtractionPlan) -> ExtractResult:
    """Keep what the set's images hash to, for the parts; its index is written when all rows are there."""
    with writing(plan.config.cache):
        cache = FeatureCache.create(plan.config.cache, plan.manifest)
        folder = cache.path / layout.LISTING_FOLDER
        folder.mkdir(exist_ok=True)
        plan.images.index(plan.name).save(folder)
        return _result(plan, cache, workload_of(plan, cache))


def _dry_run(plan: ExtractionPlan, executor: Executor) -> ExtractResult:
    """Log what a run would do, and what each augmented pass would take."""
    work = workload_of(plan, plan.cache)
    announce(plan, work, plan.cache)
    executor.estimate(plan, work)
    images = len({image.key for image in plan.images.images if image.split == "train"})
    logger.info(f"an augmented pass is {counted(images, 'view')} to compute")
    return _result(plan, plan.cache, work)


def _figures(plan: ExtractionPlan, work: Workload, tally: Tally) -> dict[str, Any]:
    """What the result and the history of the cache have in common."""
    return {
        "set": plan.name,
        "images": len(plan.images.images),
        "computed": tally.rows,
        "reused": work.reused,
        "warmup_seconds": tally.warmup_seconds,
        "images_per_second": tally.images_per_second,
        "phases": tally.phases,
    }


def _history(plan: ExtractionPlan, work: Workload, tally: Tally, seconds: float) -> Extraction:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    figures = _figures(plan, work, tally)
    return Extraction(when=now, seconds=seconds, passes=plan.config.passes, device=plan.device.type, **figures)


def _result(
    plan: ExtractionPlan,
    cache: FeatureCache | None,
    work: Workload,
    tally: Tally | None = None,
    skipped: Sequence[SkippedImage] = (),
) -> ExtractResult:
    """Of a run; without a `tally`, of one that would compute what is missing."""
    done = tally or Tally()
    return ExtractResult(
        **_figures(plan, work, done),
        rows=work.reused + done.rows if tally else work.rows,
        seconds=0.0,
        bound=done.bound if done.rows else "",
        skipped=[{"path": image.path, "reason": image.reason} for image in skipped],
        remarks=done.remarks,
        cache=str(plan.config.cache),
        bytes=cache.bytes if cache is not None else 0,
        unread=plan.images.unread,
        outside=plan.images.outside,
    )
