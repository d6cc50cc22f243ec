"""Views through the frozen backbone into shards: decoding ahead of computing, and writing behind it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch

from cache.index import SkippedImage
from cache.keys import RowKey
from cache.shard import Float16Array, ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter
from pipeline.backbones import backbone
from pipeline.backbones.compiled import worth_compiling
from pipeline.console import Say, duration, named, progress
from pipeline.errors import DecodeError, PipelineError
from pipeline.extraction.plan import ExtractResult, Plan, Share, shares_of
from pipeline.inputs.loader import Loader, Work
from pipeline.inputs.views import DeviceViews, Renderer, ViewPixels, Views
from pipeline.machine.device import available_cpus

T = TypeVar("T")


def bring_up(plan: Plan, share: Share, say: Say) -> tuple[backbone.Backbone, float]:
    """The backbone at speed, compiled where that pays and works, and the seconds it took to get there."""
    torch.set_num_threads(plan.config.threads or available_cpus())
    wanted = worth_compiling(plan.device, share.rows)
    network = _load(plan, share, wanted)
    if wanted and network.code_path != "compiled":
        say("no C++ compiler here, or nowhere to keep what it makes: computing goes on uncompiled")
    try:
        return network, _warm_up(network, share, say)
    except RuntimeError as error:  # the compiler is there but does not work: no headers, no room, another standard
        if network.code_path != "compiled":
            raise
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        say(f"torch could not compile here ({reason[:200]}): computing goes on uncompiled")
    network = _load(plan, share, compiled=False)
    return network, _warm_up(network, share, say)


def _warm_up(network: backbone.Backbone, share: Share, say: Say) -> float:
    """Bring the network to speed on blank views and say how long all will take; the seconds of the first run."""
    views = [np.zeros((share.size, share.size, 3), np.uint8)] * min(2, network.batch_size)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        network(views)
        seconds.append(time.perf_counter() - start)
    filled = network.batch_size if network.code_path == "compiled" else len(views)  # a compiled batch is always whole
    expected = duration(seconds[1] / filled * share.rows)
    say(f"{network.code_path} {network.precision} at {share.size} on this {network.device.type}: about {expected}")
    return seconds[0]


def _load(plan: Plan, share: Share, compiled: bool) -> backbone.Backbone:
    return backbone.load_backbone(
        plan.config.backbone,
        plan.tensors,
        device=plan.device,
        precision=plan.manifest.base.precision,
        batch_size=plan.config.batch_size,
        compiled=compiled,
        pooled=share.row_shape == plan.manifest.base.row_shape,
    )


def compute(plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say) -> list[SkippedImage]:
    """Decode, compute and write `work`; fills in the counts and seconds, returns the files that were skipped."""
    bad: dict[bytes, tuple[Work, str]] = {}
    seconds = 0.0
    for share in shares_of(plan, work):
        network, warmup = bring_up(plan, share, say)
        result.warmup_seconds += warmup
        start = time.perf_counter()
        _compute_share(plan, cache, share, network, bad, result, say)
        seconds += time.perf_counter() - start
    result.images_per_second = result.computed / seconds
    return _skipped(plan, list(bad.values()))


def _compute_share(
    plan: Plan,
    cache: FeatureCache,
    share: Share,
    network: backbone.Backbone,
    bad: dict[bytes, tuple[Work, str]],
    result: ExtractResult,
    say: Say,
) -> None:
    """Views of one size; adds to the counts and seconds, and to the `bad` files by digest."""
    recipe = plan.manifest.augmentation
    renderer = _renderer(plan)
    provenance = {
        **network.provenance,
        "weights": backbone.weights_source(plan.config.backbone, plan.config.weights),
        "views": renderer.place,
    }
    header = ShardHeader(plan.manifest.base.digest, share.row_shape, provenance=provenance)
    loader = Loader(renderer, _workers(plan))
    with (
        ShardWriter(cache.path, header, recipe.digest if recipe else "") as writer,
        progress(share.rows, "rows", say, lambda: f", bound by {_bound(loader, writer, result)}") as advance,
        loader,
    ):
        for keys, rows in _rows(network, _views(loader, share.work, bad, plan.config.skip_bad), result):
            _keep(keys, rows, writer, result)
            advance(len(keys))
    result.phases["decode"] += loader.seconds
    result.phases["write"] += writer.seconds
    result.bound = _bound(loader, writer, result)
    if bad and not plan.config.skip_bad:
        found = list(bad.values())
        remaining = share.work[share.work.index(found[0][0]) + 1 :]
        raise _all_bad(found + [(i, str(o)) for i, o in Loader(renderer, 2).check(remaining)])


def _renderer(plan: Plan) -> Renderer:
    """Views are rendered where the backbone computes, unless that is the processor."""
    base, recipe = plan.manifest.base, plan.manifest.augmentation
    views = Views(base.input_size, base.resize, recipe.seed if recipe else 0)
    return views if plan.device.type == "cpu" else DeviceViews(views, plan.device)


def _workers(plan: Plan) -> int:
    """Decoding threads: they work no more than the backbone asks of them, so half the processors are not too many."""
    if plan.config.workers is not None:
        return plan.config.workers
    return max(1, available_cpus() // 2) if plan.device.type == "cpu" else available_cpus()


def _views(
    loader: Loader, work: list[Work], bad: dict[bytes, tuple[Work, str]], skip_bad: bool
) -> Iterator[tuple[RowKey, ViewPixels]]:
    """Every view of `work`; files that have none go into `bad`, of which the first ends it unless `skip_bad`."""
    for item, outcome in loader.run(work):
        if isinstance(outcome, DecodeError):
            bad[item.digest] = item, str(outcome)
            if not skip_bad:
                return
            continue
        for view, pixels in outcome:
            yield (item.digest, view), pixels


def _rows(
    network: backbone.Backbone, views: Iterator[tuple[RowKey, ViewPixels]], result: ExtractResult
) -> Iterator[tuple[tuple[RowKey, ...], Float16Array]]:
    """Rows of `views` in their order, by batches; a device is given the next batch before the last has come back."""
    flying: deque[tuple[tuple[RowKey, ...], backbone.Pending]] = deque()
    while batch := list(islice(views, network.batch_size)):
        keys, pixels = zip(*batch, strict=True)
        flying.append((keys, _timed(result, network.start, pixels)))
        if len(flying) > network.batches_ahead:
            yield _landed(*flying.popleft(), result)
    while flying:
        yield _landed(*flying.popleft(), result)


def _landed(
    keys: tuple[RowKey, ...], pending: backbone.Pending, result: ExtractResult
) -> tuple[tuple[RowKey, ...], Float16Array]:
    return keys, _timed(result, pending)


def _timed(result: ExtractResult, function: Callable[..., T], *given: object) -> T:
    """What the function returns, its time counted as computing."""
    start = time.perf_counter()
    found = function(*given)
    result.phases["compute"] += time.perf_counter() - start
    return found


def _keep(keys: Sequence[RowKey], rows: Float16Array, writer: ShardWriter, result: ExtractResult) -> None:
    """Hand a batch to the writer, if its numbers are finite."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        digest, view = keys[int(np.argmin(finite))]
        raise PipelineError(
            f"a feature of the image with SHA-256 {digest.hex()} ({view}) is not finite: check the weights"
        )
    writer.add(keys, rows)
    result.computed += len(keys)


def _bound(loader: Loader, writer: ShardWriter, result: ExtractResult) -> str:
    """What this thread spent most of its time on: waiting for views, computing, or waiting for the disk."""
    spent = {"decode": loader.waited, "compute": result.phases["compute"], "write": writer.waited}
    return max(spent, key=lambda phase: spent[phase])


def _all_bad(bad: list[tuple[Work, str]]) -> DecodeError:
    lines = "\n".join(f"  {named(item.path)}: {reason}" for item, reason in bad)
    return DecodeError(
        f"{len(bad)} image files cannot be decoded:\n{lines}\n"
        "Mend or remove them, or leave them out with --skip-bad; rows computed so far are kept."
    )


def _skipped(plan: Plan, bad: list[tuple[Work, str]]) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {item.digest: reason for item, reason in bad}
    return [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]
