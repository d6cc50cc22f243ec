"""Stage one: the rows an image set needs and the cache lacks, from image files through the frozen backbone."""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from cache import layout
from cache.errors import CacheError
from cache.index import SkippedImage
from cache.keys import RowKey
from cache.lock import writing
from cache.manifest import Augmentation, Base, Manifest
from cache.shard import ShardHeader
from cache.store import FeatureCache, check_place
from cache.writer import ShardWriter, merge_small_shards
from pipeline.backbones import backbone
from pipeline.backbones.weights import tensor_digest
from pipeline.config import ExtractConfig
from pipeline.console import Say, duration, named, progress, silent, size
from pipeline.errors import DecodeError, PipelineError
from pipeline.inputs import augment
from pipeline.inputs.augment import Views
from pipeline.inputs.decode import DECODING_POLICY, Pixels
from pipeline.inputs.images import ImageSet
from pipeline.inputs.loader import Loader, Work
from pipeline.machine.device import available_cpus, resolve_device, resolve_precision


@dataclass
class ExtractResult:
    """What `extract` did; the fields of its JSON. Seconds are wall-clock, those of `phases` overlap.

    `bound` is the phase that the others waited for: "decode", "compute" or "write"; "" where nothing was computed.
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
    cache: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class _Plan:
    """What a run will do: where, with which settings, over which files."""

    config: ExtractConfig
    images: ImageSet
    name: str
    tensors: dict[str, torch.Tensor]
    device: torch.device
    manifest: Manifest


def extract(config: ExtractConfig, say: Say = silent) -> ExtractResult:
    """Bring the cache to hold every row that the data set needs; what is there already is not computed again.

    Raises ManifestMismatch for a cache of other settings, ImageSetError for data that cannot be used, and
    DecodeError listing every file that cannot be decoded, unless `skip_bad` records them.
    """
    start = time.perf_counter()
    plan = _plan(config, say)
    if config.dry_run:
        result = _dry_run(plan, say)
        result.seconds = time.perf_counter() - start
        return result
    with writing(config.cache):
        cache = FeatureCache.create(config.cache, plan.manifest)
        work, result = _missing(plan, cache)
        _announce(plan, result, work, say)
        bad = _compute(plan, cache, work, result, say) if work else []
        cache = FeatureCache.open(cache.path)
        merge_small_shards(cache.shards)
        index = plan.images.index(plan.name, bad)
        cache.save_index(replace(index, passes=cache.complete_passes(index)))
    result.skipped = [{"path": image.path, "reason": image.reason} for image in index.skipped]
    result.rows = result.computed + result.reused
    result.bytes = FeatureCache.open(cache.path).bytes
    result.seconds = time.perf_counter() - start
    return result


def _plan(config: ExtractConfig, say: Say) -> _Plan:
    check_place(config.cache)
    images = ImageSet.scan(config.data, config.split_seed, config.skip_bad)
    stored = _stored_manifest(config.cache)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device, stored.base.precision if stored else None)
    name = layout.check_set_name(images.data.name if config.set is None else config.set)
    _keep_other_roots(config, images, name)
    tensors = backbone.load_tensors(config.backbone, config.weights, say)
    manifest = _manifest(config, tensors, precision)
    if stored:
        manifest = stored.merged_with(manifest, config.cache)
    return _Plan(config, images, name, tensors, device, manifest)


def _stored_manifest(cache: Path) -> Manifest | None:
    file = cache / layout.MANIFEST_FILE
    return Manifest.load(file) if file.is_file() else None


def _keep_other_roots(config: ExtractConfig, images: ImageSet, name: str) -> None:
    """A set of another root is replaced only where `--set` names it."""
    if config.set is None and _stored_manifest(config.cache) and name in FeatureCache.open(config.cache).sets():
        try:
            known = FeatureCache.open(config.cache).index(name)
        except CacheError:  # a damaged index, which this run writes anew
            return
        if Path(known.data) != images.data:
            raise CacheError(
                f"the cache has a set {name!r} of {known.data}, this data is {images.data}: "
                f"name it with --set, or replace the other with --set {name}"
            )


def _manifest(config: ExtractConfig, tensors: dict[str, torch.Tensor], precision: str) -> Manifest:
    base = Base(
        backbone=config.backbone,
        layer=backbone.LAYER,
        weights_digest=tensor_digest(tensors),
        row_shape=backbone.row_shape(config.backbone, config.image_size),
        input_size=config.image_size,
        resize=augment.resize_for(config.image_size),
        interpolation=augment.INTERPOLATION,
        mean=backbone.MEAN,
        std=backbone.STD,
        decoding=DECODING_POLICY,
        precision=precision,
    )
    recipe = Augmentation(augment.RECIPE, augment.RECIPE_VERSION, config.seed) if config.passes else None
    return Manifest(base, recipe)


def _missing(plan: _Plan, cache: FeatureCache | None) -> tuple[list[Work], ExtractResult]:
    """Files to decode, and the counts before the run; `cache` None stands for an empty one."""
    index = plan.images.index(plan.name)
    keys = index.row_keys(plan.config.passes)
    missing = cache.missing(keys) if cache else keys
    views: dict[bytes, list[str]] = {}
    for digest, view in missing:
        views.setdefault(digest, []).append(view)
    paths = {image.key: plan.images.root / image.path for image in reversed(index.images)}
    # By digest, which is a random order: each shard then holds all classes, and can be trained on by itself.
    work = [Work(paths[digest], digest, tuple(names)) for digest, names in sorted(views.items())]
    reused = len(keys) - len(missing)
    return work, ExtractResult(plan.name, len(index.images), len(keys), 0, reused, cache=str(plan.config.cache))


def _announce(plan: _Plan, result: ExtractResult, work: list[Work], say: Say) -> int:
    """Say what is there and what it will take; refuse what the disk cannot hold. Returns the missing rows."""
    missing = sum(len(item.views) for item in work)
    base = plan.manifest.base
    needed = missing * 2 * math.prod(base.row_shape)
    say(
        f"{plan.name}: {result.images} images, {len(plan.images.classes)} classes, "
        f"{result.rows} rows: {result.reused} present, {missing} missing"
    )
    folder = next(path for path in (plan.config.cache, *plan.config.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    say(f"{size(needed)} to write, {size(free)} free")
    if needed > free:
        raise CacheError(
            f"{folder} has {size(free)} free, {size(needed)} are needed: make room, or name another --cache"
        )
    return missing


def _dry_run(plan: _Plan, say: Say) -> ExtractResult:
    exists = _stored_manifest(plan.config.cache) is not None
    cache = FeatureCache(plan.config.cache, plan.manifest) if exists else None
    work, result = _missing(plan, cache)
    result.bytes = cache.bytes if cache else 0
    missing = _announce(plan, result, work, say)
    if missing:
        _bring_up(plan, missing, say)
    return result


def _bring_up(plan: _Plan, rows: int, say: Say) -> tuple[backbone.Backbone, float]:
    """The backbone at speed, compiled where that pays and works, and the seconds it took to get there."""
    torch.set_num_threads(plan.config.threads or available_cpus())
    wanted = rows >= backbone.ROWS_WORTH_COMPILING
    network = _load(plan, wanted)
    if wanted and network.code_path == "eager":
        say("no C++ compiler here, or nowhere to keep what it makes: computing goes on uncompiled")
    try:
        return network, _warm_up(network, plan, rows, say)
    except RuntimeError as error:  # the compiler is there but does not work: no headers, no room, another standard
        if network.code_path != "compiled":
            raise
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        say(f"torch could not compile here ({reason[:200]}): computing goes on uncompiled")
    network = _load(plan, compiled=False)
    return network, _warm_up(network, plan, rows, say)


def _warm_up(network: backbone.Backbone, plan: _Plan, rows: int, say: Say) -> float:
    """Bring the network to speed on blank views and say how long `rows` will take; the seconds of the first run."""
    side = plan.config.image_size
    views = [np.zeros((side, side, 3), np.uint8)] * min(2, network.batch_size)
    seconds = [_timed(network, views) for _ in range(2)]
    filled = network.batch_size if network.code_path == "compiled" else len(views)  # a compiled batch is always whole
    expected = duration(seconds[1] / filled * rows)
    say(f"{network.code_path} {network.precision} on this {network.device.type}: about {expected}")
    return seconds[0]


def _timed(network: backbone.Backbone, views: list[Pixels]) -> float:
    start = time.perf_counter()
    network(views)
    return time.perf_counter() - start


def _load(plan: _Plan, compiled: bool) -> backbone.Backbone:
    return backbone.load_backbone(
        plan.config.backbone,
        plan.tensors,
        device=plan.device,
        precision=plan.manifest.base.precision,
        batch_size=plan.config.batch_size,
        compiled=compiled,
    )


def _compute(plan: _Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say) -> list[SkippedImage]:
    """Decode, compute and write `work`; fills in the counts and seconds, returns the files that were skipped."""
    rows = sum(len(item.views) for item in work)
    network, result.warmup_seconds = _bring_up(plan, rows, say)
    start = time.perf_counter()
    base, recipe = plan.manifest.base, plan.manifest.augmentation
    views = Views(base.input_size, base.resize, recipe.seed if recipe else 0)
    provenance = {**network.provenance, "weights": backbone.weights_source(plan.config.backbone, plan.config.weights)}
    header = ShardHeader(base.digest, base.row_shape, provenance=provenance)
    loader = Loader(views, 1 if plan.config.workers is None else plan.config.workers)
    bad: list[tuple[Work, str]] = []
    with (
        ShardWriter(cache.path, header, recipe.digest if recipe else "") as writer,
        progress(rows, "rows", say, lambda: f", bound by {_bound(loader, writer, result)}") as advance,
        loader,
    ):
        batch: list[tuple[RowKey, Pixels]] = []
        for item, outcome in loader.run(work):
            if isinstance(outcome, DecodeError):
                bad.append((item, str(outcome)))
                if not plan.config.skip_bad:
                    break
                continue
            batch += [((item.digest, view), pixels) for view, pixels in outcome]
            while len(batch) >= network.batch_size:
                batch = _run_batch(network, batch, writer, result, advance)
        while batch:
            batch = _run_batch(network, batch, writer, result, advance)
    result.phases["decode"], result.phases["write"] = loader.seconds, writer.seconds
    result.bound = _bound(loader, writer, result)
    result.images_per_second = result.computed / (time.perf_counter() - start)
    if bad and not plan.config.skip_bad:
        remaining = work[work.index(bad[0][0]) + 1 :]
        raise _all_bad(bad + [(i, str(o)) for i, o in Loader(views, 2).check(remaining)])
    return _skipped(plan, bad)


def _bound(loader: Loader, writer: ShardWriter, result: ExtractResult) -> str:
    """What this thread spent most of its time on: waiting for views, computing, or waiting for the disk."""
    spent = {"decode": loader.waited, "compute": result.phases["compute"], "write": writer.waited}
    return max(spent, key=lambda phase: spent[phase])


def _run_batch(
    network: backbone.Backbone,
    batch: list[tuple[RowKey, Pixels]],
    writer: ShardWriter,
    result: ExtractResult,
    advance: Callable[[int], None],
) -> list[tuple[RowKey, Pixels]]:
    """Compute and hand over the first `batch_size` views; returns the rest."""
    keys, pixels = zip(*batch[: network.batch_size], strict=True)
    start = time.perf_counter()
    rows = network(list(pixels))
    result.phases["compute"] += time.perf_counter() - start
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        digest, view = keys[int(np.argmin(finite))]
        raise PipelineError(
            f"a feature of the image with SHA-256 {digest.hex()} ({view}) is not finite: check the weights"
        )
    writer.add(keys, rows)
    result.computed += len(keys)
    advance(len(keys))
    return batch[network.batch_size :]


def _all_bad(bad: list[tuple[Work, str]]) -> DecodeError:
    lines = "\n".join(f"  {named(item.path)}: {reason}" for item, reason in bad)
    return DecodeError(
        f"{len(bad)} image files cannot be decoded:\n{lines}\n"
        "Mend or remove them, or leave them out with --skip-bad; rows computed so far are kept."
    )


def _skipped(plan: _Plan, bad: list[tuple[Work, str]]) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {item.digest: reason for item, reason in bad}
    return [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]
