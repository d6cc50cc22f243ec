"""Stage one: the rows an image set needs and the cache lacks, from image files through the frozen backbone."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cache import layout
from cache.errors import CacheError
from cache.history import record_extraction
from cache.index import SkippedImage, index_path
from cache.lock import writing
from cache.store import FeatureCache
from cache.writer import merge_small_shards
from pipeline.config import ExtractConfig
from pipeline.console import Say, counted, named, silent
from pipeline.errors import PipelineError
from pipeline.extraction.advice import advice
from pipeline.extraction.checks import stored_manifest
from pipeline.extraction.engine import Engine, engine_of
from pipeline.extraction.plan import ExtractResult, Plan, announce, make_plan, missing_work
from pipeline.inputs.loader import Work


def extract(config: ExtractConfig, say: Say = silent) -> ExtractResult:
    """Bring the cache to hold every row that the data set needs; what is there already is not computed again.

    Raises ManifestMismatch for a cache of other settings, ImageSetError for data that cannot be used, and
    DecodeError listing every file that cannot be decoded, unless `skip_bad` records them.
    """
    start = time.perf_counter()
    with engine_of(config, say) as engine:
        plan = make_plan(config, say, engine.place)
        if config.hash_only:
            result = _list(plan)
        else:
            result = _dry_run(plan, engine, say) if config.dry_run else _extract(plan, engine, start, say)
    result.seconds = time.perf_counter() - start
    return result


def _extract(plan: Plan, engine: Engine, start: float, say: Say) -> ExtractResult:
    config = plan.config
    with writing(config.cache, config.part, say):
        cache = FeatureCache.create(config.cache, plan.manifest)
        work, result = missing_work(plan, cache)
        announce(plan, result, work, say)
        if config.finish:
            _refuse_unfinished(work)
        try:
            bad = engine.compute(plan, cache, work, result, say) if work else []
        finally:
            if result.computed:  # also of a run that was stopped: its rows were not free
                result.seconds = time.perf_counter() - start
                record_extraction(config.cache, _history(plan, result))
            for line in result.remarks.lines():
                say(line)
        if config.part:
            return _part_done(plan, result, bad)
        cache = FeatureCache.open(cache.path)
        merge_small_shards(cache.shards)
        index = plan.images.index(plan.name, bad)
        dense = plan.config.dense or _kept_dense(cache, plan.name)
        whole = dense if not cache.missing(index.row_keys(0, dense)) else 0
        cache.save_index(replace(index, passes=cache.complete_passes(index), dense=whole))
        index_path(cache.path / layout.LISTING_FOLDER, plan.name).unlink(missing_ok=True)  # the index says more
    result.skipped = [{"path": image.path, "reason": image.reason} for image in index.skipped]
    result.rows = result.computed + result.reused
    result.bytes = FeatureCache.open(cache.path).bytes
    return result


def _list(plan: Plan) -> ExtractResult:
    """Keep what the set's images hash to, for the parts; its index is written when all rows are there."""
    with writing(plan.config.cache):
        cache = FeatureCache.create(plan.config.cache, plan.manifest)
        folder = cache.path / layout.LISTING_FOLDER
        folder.mkdir(exist_ok=True)
        plan.images.index(plan.name).save(folder)
        _, result = missing_work(plan, cache)
        result.bytes = cache.bytes
    return result


def _refuse_unfinished(work: list[Work]) -> None:
    if work:
        rows = sum(len(item.views) for item in work)
        raise PipelineError(
            f"{rows} rows of {counted(len(work), 'image')} are not there yet, the first {named(work[0].path)}: "
            "run the parts that are missing, or extract without --finish, which computes them"
        )


def _part_done(plan: Plan, result: ExtractResult, bad: list[SkippedImage]) -> ExtractResult:
    """One part is in shards; merging and the index are for the last step, when all are."""
    result.skipped = [{"path": image.path, "reason": image.reason} for image in bad]
    result.rows = result.computed + result.reused
    result.bytes = FeatureCache.open(plan.config.cache).bytes
    return result


def _history(plan: Plan, result: ExtractResult) -> dict[str, Any]:
    """An entry of the cache's history."""
    names = ("set", "images", "computed", "reused", "seconds", "warmup_seconds", "images_per_second", "phases")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: getattr(result, name) for name in names},
        "passes": plan.config.passes,
        "dense": plan.config.dense,
        "device": plan.device.type,
    }


def _kept_dense(cache: FeatureCache, name: str) -> int:
    """The dense view that the set had before this run; 0 for none."""
    try:
        return cache.index(name).dense if name in cache.sets() else 0
    except CacheError:  # a damaged index, which this run writes anew
        return 0


def _dry_run(plan: Plan, engine: Engine, say: Say) -> ExtractResult:
    exists = stored_manifest(plan.config.cache) is not None
    cache = replace(FeatureCache.open(plan.config.cache), manifest=plan.manifest) if exists else None
    work, result = missing_work(plan, cache)
    result.bytes = cache.bytes if cache else 0
    announce(plan, result, work, say)
    engine.estimate(plan, work, say)
    for line in advice(plan):
        say(line)
    return result
