"""Stage one: the rows an image set needs and the cache lacks, from image files through the frozen backbone."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cache import layout
from cache.errors import MissingRows
from cache.history import Extraction, record_extraction
from cache.index import SkippedImage, index_path
from cache.lock import writing
from cache.store import FeatureCache
from cache.writer import merge_small_shards
from pipeline.config import ExtractConfig
from pipeline.console import counted, named
from pipeline.extraction.advice import advice
from pipeline.extraction.checks import stored_manifest
from pipeline.extraction.executor import Engine, executor_of
from pipeline.extraction.extractor import Tally
from pipeline.extraction.plan import ExtractionPlan, Workload, announce, make_plan, workload_of
from pipeline.inputs.remarks import Remarks

logger = logging.getLogger("headgraft.extract")


@dataclass
class ExtractResult:
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
    seconds: float = 0.0
    warmup_seconds: float = 0.0
    images_per_second: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "compute": 0.0, "write": 0.0})
    bound: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)
    cache: str = ""
    bytes: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)

    def in_words(self) -> str:
        """One line, and one for each skipped file."""
        missing = self.rows - self.computed - self.reused
        to_do = f", {missing} to compute" if missing else ""
        rate = f", {self.images_per_second:.1f} rows/s after startup" if self.images_per_second else ""
        counts = f"{self.rows} rows of {counted(self.images, 'image')} in {self.cache}: {self.computed} computed"
        skipped = [f"skipped {named(bad['path'])}: {bad['reason']}" for bad in self.skipped]
        return "\n".join([f"{counts}, {self.reused} reused{to_do}, {self.seconds:.1f} s{rate}", *skipped])


def extract(config: ExtractConfig) -> ExtractResult:
    """Bring the cache to hold every row that the data set needs; what is there already is not computed again.

    Raises ManifestMismatch for a cache of other settings, ImageSetError for data that cannot be used, and
    DecodeError listing every file that cannot be decoded, unless `skip_bad` records them.
    """
    start = time.perf_counter()
    with executor_of(config) as engine:
        plan = make_plan(config, engine.place)
        if config.hash_only:
            result = _list(plan)
        else:
            result = _dry_run(plan, engine) if config.dry_run else _extract(plan, engine, start)
    result.seconds = time.perf_counter() - start
    return result


def _extract(plan: ExtractionPlan, engine: Engine, start: float) -> ExtractResult:
    config, tally = plan.config, Tally()
    with writing(config.cache, config.part):
        cache = FeatureCache.create(config.cache, plan.manifest)
        work = workload_of(plan, cache)
        announce(plan, work)
        if config.finish:
            _refuse_unfinished(work)
        try:
            if work.tasks:
                engine.compute(plan, cache, work, tally)
        finally:
            if tally.rows:  # also of a run that was stopped: its rows were not free
                record_extraction(config.cache, _history(plan, work.reused, tally, time.perf_counter() - start))
            for line in tally.remarks.lines():
                logger.warning(line)
        skipped = _skipped(plan, tally)
        if not config.part:  # merging and the index are for the last step, when the rows of all parts are there
            skipped = _index(plan, skipped)
    return _result(plan, work, tally, skipped)


def _index(plan: ExtractionPlan, bad: list[SkippedImage]) -> list[SkippedImage]:
    """Merge small shards and write the index of the set; returns the files that it names as skipped."""
    cache = FeatureCache.open(plan.config.cache)
    merge_small_shards(cache.shards)
    index = plan.images.index(plan.name, bad)
    cache.save_index(replace(index, passes=cache.complete_passes(index)))
    index_path(cache.path / layout.LISTING_FOLDER, plan.name).unlink(missing_ok=True)  # the index says more
    return list(index.skipped)


def _skipped(plan: ExtractionPlan, tally: Tally) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {digest: reason for digest, (_, reason) in tally.bad.items()}
    return [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]


def _result(
    plan: ExtractionPlan, work: Workload, tally: Tally | None = None, skipped: Sequence[SkippedImage] = ()
) -> ExtractResult:
    """Of a run; without a `tally`, of one that would compute what is missing."""
    rows, tally = (work.rows, Tally()) if tally is None else (tally.rows + work.reused, tally)
    exists = stored_manifest(plan.config.cache) is not None
    return ExtractResult(
        set=plan.name,
        images=len(plan.images.images),
        rows=rows,
        computed=tally.rows,
        reused=work.reused,
        warmup_seconds=tally.warmup_seconds,
        images_per_second=tally.images_per_second,
        phases=tally.phases,
        bound=tally.bound,
        skipped=[{"path": image.path, "reason": image.reason} for image in skipped],
        remarks=tally.remarks,
        cache=str(plan.config.cache),
        bytes=FeatureCache.open(plan.config.cache).bytes if exists else 0,
        unread=plan.images.unread,
        outside=plan.images.outside,
    )


def _list(plan: ExtractionPlan) -> ExtractResult:
    """Keep what the set's images hash to, for the parts; its index is written when all rows are there."""
    with writing(plan.config.cache):
        cache = FeatureCache.create(plan.config.cache, plan.manifest)
        folder = cache.path / layout.LISTING_FOLDER
        folder.mkdir(exist_ok=True)
        plan.images.index(plan.name).save(folder)
        work = workload_of(plan, cache)
    return _result(plan, work)


def _refuse_unfinished(work: Workload) -> None:
    if work.tasks:
        raise MissingRows(
            f"{work.missing} rows of {counted(len(work.tasks), 'image')} are not there yet, the first "
            f"{named(work.tasks[0].path)}: run the parts that are missing, or extract without --finish, which "
            "computes them"
        )


def _history(plan: ExtractionPlan, reused: int, tally: Tally, seconds: float) -> Extraction:
    return Extraction(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        set=plan.name,
        images=len(plan.images.images),
        computed=tally.rows,
        reused=reused,
        seconds=seconds,
        warmup_seconds=tally.warmup_seconds,
        images_per_second=tally.images_per_second,
        phases=tally.phases,
        passes=plan.config.passes,
        device=plan.device.type,
    )


def _dry_run(plan: ExtractionPlan, engine: Engine) -> ExtractResult:
    exists = stored_manifest(plan.config.cache) is not None
    cache = replace(FeatureCache.open(plan.config.cache), manifest=plan.manifest) if exists else None
    work = workload_of(plan, cache)
    announce(plan, work)
    engine.estimate(plan, work)
    logger.info(advice(plan))
    return _result(plan, work)
