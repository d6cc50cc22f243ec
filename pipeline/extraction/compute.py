"""Views through the frozen backbone into shards: decoding ahead of computing, and writing behind it."""

import time
from collections.abc import Callable

import numpy as np
import torch

from cache.index import SkippedImage
from cache.keys import RowKey
from cache.shard import ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter
from pipeline.backbones import backbone
from pipeline.console import Say, duration, named, progress
from pipeline.errors import DecodeError, PipelineError
from pipeline.extraction.plan import ExtractResult, Plan, Share, shares_of
from pipeline.inputs.augment import Views
from pipeline.inputs.decode import Pixels
from pipeline.inputs.loader import Loader, Work
from pipeline.machine.device import available_cpus


def bring_up(plan: Plan, share: Share, say: Say) -> tuple[backbone.Backbone, float]:
    """The backbone at speed, compiled where that pays and works, and the seconds it took to get there."""
    torch.set_num_threads(plan.config.threads or available_cpus())
    wanted = share.rows >= backbone.ROWS_WORTH_COMPILING
    network = _load(plan, share, wanted)
    if wanted and network.code_path == "eager":
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
    seconds = [_timed(network, views) for _ in range(2)]
    filled = network.batch_size if network.code_path == "compiled" else len(views)  # a compiled batch is always whole
    expected = duration(seconds[1] / filled * share.rows)
    say(f"{network.code_path} {network.precision} at {share.size} on this {network.device.type}: about {expected}")
    return seconds[0]


def _timed(network: backbone.Backbone, views: list[Pixels]) -> float:
    start = time.perf_counter()
    network(views)
    return time.perf_counter() - start


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
    base, recipe = plan.manifest.base, plan.manifest.augmentation
    views = Views(base.input_size, base.resize, recipe.seed if recipe else 0)
    provenance = {**network.provenance, "weights": backbone.weights_source(plan.config.backbone, plan.config.weights)}
    header = ShardHeader(base.digest, share.row_shape, provenance=provenance)
    loader = Loader(views, 1 if plan.config.workers is None else plan.config.workers)
    with (
        ShardWriter(cache.path, header, recipe.digest if recipe else "") as writer,
        progress(share.rows, "rows", say, lambda: f", bound by {_bound(loader, writer, result)}") as advance,
        loader,
    ):
        batch: list[tuple[RowKey, Pixels]] = []
        for item, outcome in loader.run(share.work):
            if isinstance(outcome, DecodeError):
                bad[item.digest] = item, str(outcome)
                if not plan.config.skip_bad:
                    break
                continue
            batch += [((item.digest, view), pixels) for view, pixels in outcome]
            while len(batch) >= network.batch_size:
                batch = _run_batch(network, batch, writer, result, advance)
        while batch:
            batch = _run_batch(network, batch, writer, result, advance)
    result.phases["decode"] += loader.seconds
    result.phases["write"] += writer.seconds
    result.bound = _bound(loader, writer, result)
    if bad and not plan.config.skip_bad:
        found = list(bad.values())
        remaining = share.work[share.work.index(found[0][0]) + 1 :]
        raise _all_bad(found + [(i, str(o)) for i, o in Loader(views, 2).check(remaining)])


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


def _skipped(plan: Plan, bad: list[tuple[Work, str]]) -> list[SkippedImage]:
    """Every file of the set with a content that cannot be decoded."""
    reasons = {item.digest: reason for item, reason in bad}
    return [SkippedImage(i.path, i.digest, reasons[i.key]) for i in plan.images.images if i.key in reasons]
