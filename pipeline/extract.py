"""Stage one: the rows an image set needs and the cache lacks, from image files through the frozen backbone."""

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cache import layout
from cache.errors import CacheError
from cache.index import SkippedImage
from cache.manifest import Augmentation, Base, Manifest
from cache.shard import RowKey, ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter, merge_small_shards, writing
from pipeline import augment, backbone
from pipeline.augment import Views
from pipeline.config import ExtractConfig
from pipeline.console import Say, duration, progress, silent, size
from pipeline.decode import DECODING_POLICY, Pixels, decode_rgb
from pipeline.errors import DecodeError, ImageSetError, PipelineError
from pipeline.images import ImageSet
from pipeline.weights import tensor_digest


@dataclass
class ExtractResult:
    """What `extract` did; the fields of its JSON. Seconds are wall-clock, those of `phases` overlap."""

    set: str
    images: int
    rows: int
    computed: int
    reused: int
    seconds: float = 0.0
    warmup_seconds: float = 0.0
    images_per_second: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "compute": 0.0, "write": 0.0})
    skipped: list[dict[str, str]] = field(default_factory=list)
    cache: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class _Work:
    """One file to decode once, and the views of it that have no row."""

    path: Path
    digest: bytes
    views: tuple[str, ...]


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
        return _dry_run(plan, say)
    cache = FeatureCache.create(config.cache, plan.manifest)
    with writing(cache.path):
        work, result = _missing(plan, cache)
        _announce(plan, result, work, say)
        bad = _compute(plan, cache, work, result, say) if work else []
        cache = FeatureCache.open(cache.path)
        merge_small_shards(cache.shards)
        cache.save_index(plan.images.index(plan.name, bad))
    result.skipped = [{"path": image.path, "reason": image.reason} for image in bad]
    result.rows = result.computed + result.reused
    result.bytes = FeatureCache.open(cache.path).bytes
    result.seconds = time.perf_counter() - start
    return result


def _plan(config: ExtractConfig, say: Say) -> _Plan:
    images = ImageSet.scan(config.data, config.split_seed)
    stored = _stored_manifest(config.cache)
    device = backbone.resolve_device(config.device)
    precision = backbone.resolve_precision(config.precision, device, stored.base.precision if stored else None)
    name = layout.check_set_name(config.set or images.data.name)
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
        known = FeatureCache.open(config.cache).index(name)
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


def _missing(plan: _Plan, cache: FeatureCache | None) -> tuple[list[_Work], ExtractResult]:
    """Files to decode, and the counts before the run; `cache` None stands for an empty one."""
    index = plan.images.index(plan.name)
    keys = index.row_keys(plan.config.passes)
    missing = cache.missing(keys) if cache else keys
    views: dict[bytes, list[str]] = {}
    for digest, view in missing:
        views.setdefault(digest, []).append(view)
    paths = {image.key: index.root / image.path for image in reversed(index.images)}
    work = [_Work(paths[digest], digest, tuple(names)) for digest, names in views.items()]
    reused = len(keys) - len(missing)
    return work, ExtractResult(plan.name, len(index.images), len(keys), 0, reused, cache=str(plan.config.cache))


def _announce(plan: _Plan, result: ExtractResult, work: list[_Work], say: Say) -> int:
    """Say what is there and what it will take; refuse what the disk cannot hold. Returns the missing rows."""
    missing = sum(len(item.views) for item in work)
    base = plan.manifest.base
    needed = missing * 2 * int(torch.tensor(base.row_shape).prod())
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
    missing = _announce(plan, result, work, say)
    if missing:
        network = _load(plan, missing)
        size_, runs = plan.config.image_size, []
        views = [torch.zeros(size_, size_, 3, dtype=torch.uint8).numpy()] * min(2, network.batch_size)
        for _ in range(2):
            began = time.perf_counter()
            network(views)
            runs.append(time.perf_counter() - began)
        say(f"about {duration(min(runs) / len(views) * missing)}, from one batch on this {network.device.type}")
    return result


def _load(plan: _Plan, rows: int) -> backbone.Backbone:
    config = plan.config
    torch.set_num_threads(config.threads or backbone.available_cpus())
    return backbone.load_backbone(
        config.backbone,
        plan.tensors,
        device=plan.device,
        precision=plan.manifest.base.precision,
        batch_size=config.batch_size,
        compiled=rows >= backbone.ROWS_WORTH_COMPILING and not config.dry_run,
    )


def _compute(
    plan: _Plan, cache: FeatureCache, work: list[_Work], result: ExtractResult, say: Say
) -> list[SkippedImage]:
    """Decode, compute and write `work`; fills in the counts and seconds, returns the files that were skipped."""
    rows = sum(len(item.views) for item in work)
    network = _load(plan, rows)
    base, recipe = plan.manifest.base, plan.manifest.augmentation
    views = Views(base.input_size, base.resize, recipe.seed if recipe else 0)
    provenance = {**network.provenance, "weights": backbone.weights_source(plan.config.backbone, plan.config.weights)}
    header = ShardHeader(base.digest, base.row_shape, provenance=provenance)
    decoder = _Decoder(views, 1 if plan.config.workers is None else plan.config.workers)
    bad: list[tuple[_Work, str]] = []
    with (
        ShardWriter(cache.path, header, recipe.digest if recipe else "") as writer,
        progress(rows, "rows", say) as advance,
        decoder,
    ):
        batch: list[tuple[RowKey, Pixels]] = []
        for item, outcome in decoder.run(work):
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
    result.phases["decode"], result.phases["write"] = decoder.seconds, writer.seconds
    steady = result.phases["compute"] - result.warmup_seconds
    result.images_per_second = (result.computed - network.batch_size) / steady if steady > 0 else 0.0
    if bad and not plan.config.skip_bad:
        remaining = work[work.index(bad[0][0]) + 1 :]
        raise _all_bad(bad + [(i, str(o)) for i, o in _Decoder(views, 2).check(remaining)])
    return _skipped(plan, bad)


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
    seconds = time.perf_counter() - start
    result.phases["compute"] += seconds
    if result.computed == 0:
        result.warmup_seconds = seconds
    finite = torch.isfinite(torch.from_numpy(rows)).all(dim=1)
    if not finite.all():
        digest, view = keys[int((~finite).nonzero()[0])]
        raise PipelineError(
            f"a feature of the image with SHA-256 {digest.hex()} ({view}) is not finite: check the weights"
        )
    writer.add(keys, rows)
    result.computed += len(keys)
    advance(len(keys))
    return batch[network.batch_size :]


class _Decoder:
    """Decodes each file once and renders its views, `workers` threads ahead of the backbone; 0 is in line."""

    AHEAD = 16  # files a worker

    def __init__(self, views: Views, workers: int) -> None:
        self.views = views
        self.workers = workers
        self.seconds = 0.0  # over all workers
        self._pool = ThreadPoolExecutor(max(1, workers), "decode")

    def __enter__(self) -> "_Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, work: Iterable[_Work]) -> Iterator[tuple[_Work, list[tuple[str, Pixels]] | DecodeError]]:
        """Each item with its (view, pixels) or the reason it has none, in order."""
        waiting: deque[tuple[_Work, Future[Any]]] = deque()
        for item in work:
            if not self.workers:
                yield item, self._decode(item)
                continue
            waiting.append((item, self._pool.submit(self._decode, item)))
            if len(waiting) >= self.AHEAD * self.workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()

    def check(self, work: Iterable[_Work]) -> Iterator[tuple[_Work, DecodeError]]:
        """Those of `work` that cannot be decoded."""
        with self:
            for item, outcome in self.run(_Work(item.path, item.digest, ()) for item in work):
                if isinstance(outcome, DecodeError):
                    yield item, outcome

    def _decode(self, item: _Work) -> list[tuple[str, Pixels]] | DecodeError:
        start = time.perf_counter()
        try:
            data = item.path.read_bytes()
            if hashlib.sha256(data).digest() != item.digest:
                raise ImageSetError(f"{item.path} changed while it was being extracted: run the same command again")
            pixels = decode_rgb(data)
            return [(view, self.views.render(pixels, item.digest, view)) for view in item.views]
        except OSError as error:
            return DecodeError(f"cannot be read: {error.strerror}")
        except DecodeError as error:
            return error
        finally:
            self.seconds += time.perf_counter() - start


def _all_bad(bad: list[tuple[_Work, str]]) -> DecodeError:
    lines = "\n".join(f"  {item.path}: {reason}" for item, reason in bad)
    return DecodeError(
        f"{len(bad)} image files cannot be decoded:\n{lines}\n"
        "Mend or remove them, or leave them out with --skip-bad; rows computed so far are kept."
    )


def _skipped(plan: _Plan, bad: list[tuple[_Work, str]]) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {item.digest: reason for item, reason in bad}
    return [SkippedImage(i.path, reasons[i.key]) for i in plan.images.images if i.key in reasons]
