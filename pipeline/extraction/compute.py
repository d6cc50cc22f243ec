"""Views through the frozen backbone into shards: decoding ahead of computing, and writing behind it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from cache.index import SkippedImage
from cache.keys import RowKey
from cache.shard import Float16Array, ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter
from pipeline.backbones import backbone
from pipeline.backbones.compiled import worth_compiling
from pipeline.bases.reduced import reduce_rows, reduction_basis
from pipeline.console import Say, duration, named, progress
from pipeline.errors import DecodeError, PipelineError
from pipeline.extraction.plan import ExtractResult, Making, Plan, Share, shares_of
from pipeline.inputs.loader import Loader, Work
from pipeline.inputs.views import DeviceViews, Renderer, ViewPixels, Views
from pipeline.machine.device import available_cpus

T = TypeVar("T")
BadFiles = dict[bytes, tuple[Work, str]]  # by digest: the file, and why it cannot be decoded


def bring_up(making: Making, share: Share, say: Say, rows: int | None = None) -> tuple[backbone.Backbone, float]:
    """The backbone at speed, compiled where that pays and works, and the seconds it took to get there.

    `rows` are those it will compute, the share's unless said.
    """
    torch.set_num_threads(making.config.threads or available_cpus())
    wanted = worth_compiling(making.device, rows or share.rows)
    network = _load(making, share, wanted)
    if wanted and network.code_path != "compiled":
        say("no C++ compiler here, or nowhere to keep what it makes: computing goes on uncompiled")
    try:
        return network, _warm_up(network, share, say)
    except RuntimeError as error:  # the compiler is there but does not work: no headers, no room, another standard
        if network.code_path != "compiled":
            raise
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        say(f"torch could not compile here ({reason[:200]}): computing goes on uncompiled")
    network = _load(making, share, compiled=False)
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


def _load(making: Making, share: Share, compiled: bool) -> backbone.Backbone:
    return backbone.load_backbone(
        making.config.backbone,
        making.tensors,
        device=making.device,
        precision=making.manifest.base.precision,
        batch_size=making.config.batch_size,
        compiled=compiled,
        pooled=share.row_shape == making.manifest.base.row_shape,
    )


def compute(plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say) -> list[SkippedImage]:
    """Decode, compute and write `work`; fills in the counts and seconds, returns the files that were skipped."""
    bad: BadFiles = {}
    seconds = 0.0
    for share in shares_of(plan, work):
        network, warmup = bring_up(plan, share, say)
        result.warmup_seconds += warmup
        start = time.perf_counter()
        compute_share(plan, cache, share, network, bad, result, say)
        seconds += time.perf_counter() - start
        if bad and not plan.config.skip_bad:
            first = next(iter(bad.values()))[0]
            raise all_bad(plan, bad, share.work[share.work.index(first) + 1 :])
    result.images_per_second = result.computed / seconds
    return skipped(plan, bad)


def compute_share(
    making: Making,
    cache: FeatureCache,
    share: Share,
    network: backbone.Backbone,
    bad: BadFiles,
    result: ExtractResult,
    say: Say,
    one_shard: bool = False,
) -> None:
    """Views of one size; adds to the counts and seconds, and to the `bad` files.

    Shards are written as they fill, or with `one_shard` all at the end. Unless bad files are skipped, one ends it.
    """
    renderer = _renderer(making)
    basis = reduction_basis(cache)
    loader = Loader(renderer, _workers(making), making.decoding, result.remarks)
    with (
        _writer(making, cache, share, {**network.provenance, "views": renderer.place}, one_shard) as writer,
        progress(share.rows, "rows", say, lambda: f", bound by {_bound(loader, writer, result)}") as advance,
        loader,
    ):
        for keys, rows in _rows(network, _views(loader, share.work, bad, making.config.skip_bad), result):
            _refuse_not_finite(keys, rows)
            _keep(keys, reduce_rows(basis, rows) if basis else rows, writer, result)
            advance(len(keys))
    result.phases["decode"] += loader.seconds
    result.phases["write"] += writer.seconds
    result.bound = _bound(loader, writer, result)


def _writer(
    making: Making, cache: FeatureCache, share: Share, provenance: Mapping[str, str], one_shard: bool
) -> ShardWriter:
    """Of rows as the cache keeps them: whole, or in the basis of a reduced one."""
    weights = backbone.weights_source(making.config.backbone, making.config.weights)
    stored = cache.row_shape if cache.reduction else share.row_shape
    made = {**provenance, "weights": weights}
    header = ShardHeader(making.manifest.base.digest, stored, basis=cache.basis_digest, provenance=made)
    recipe = making.manifest.augmentation
    when: dict[str, Any] = {"rows_per_shard": share.rows + 1, "seconds_per_shard": None} if one_shard else {}
    return ShardWriter(cache.path, header, recipe.digest if recipe else "", **when)


def _renderer(making: Making) -> Renderer:
    """Views are rendered where the backbone computes, unless that is the processor."""
    base, recipe = making.manifest.base, making.manifest.augmentation
    views = Views(base.input_size, base.resize, recipe.seed if recipe else 0)
    return views if making.device.type == "cpu" else DeviceViews(views, making.device)


def _workers(making: Making) -> int:
    """Decoding threads: they work no more than the backbone asks of them, so half the processors are not too many."""
    if making.config.workers is not None:
        return making.config.workers
    cpus = making.config.threads or available_cpus()
    return max(1, cpus // 2) if making.device.type == "cpu" else cpus


def _views(loader: Loader, work: list[Work], bad: BadFiles, skip_bad: bool) -> Iterator[tuple[RowKey, ViewPixels]]:
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


def _refuse_not_finite(keys: Sequence[RowKey], rows: Float16Array) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        digest, view = keys[int(np.argmin(finite))]
        raise PipelineError(
            f"a feature of the image with SHA-256 {digest.hex()} ({view}) is not finite: check the weights"
        )


def _keep(keys: Sequence[RowKey], rows: Float16Array, writer: ShardWriter, result: ExtractResult) -> None:
    """Hand a batch to the writer."""
    writer.add(keys, rows)
    result.computed += len(keys)


def _bound(loader: Loader, writer: ShardWriter, result: ExtractResult) -> str:
    """What this thread spent most of its time on: waiting for views, computing, or waiting for the disk."""
    spent = {"decode": loader.waited, "compute": result.phases["compute"], "write": writer.waited}
    return max(spent, key=lambda phase: spent[phase])


def all_bad(making: Making, bad: BadFiles, remaining: list[Work]) -> DecodeError:
    """One error for all files that cannot be decoded: those found, and those of `remaining`, which are tried."""
    rest = [(item, str(error)) for item, error in Loader(_renderer(making), 2, making.decoding).check(remaining)]
    found = [*bad.values(), *rest]
    lines = "\n".join(f"  {named(item.path)}: {reason}" for item, reason in found)
    return DecodeError(
        f"{len(found)} image files cannot be decoded:\n{lines}\n"
        "Mend or remove them, or leave them out with --skip-bad; rows computed so far are kept."
    )


def skipped(plan: Plan, bad: BadFiles) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {digest: reason for digest, (_, reason) in bad.items()}
    return [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]
