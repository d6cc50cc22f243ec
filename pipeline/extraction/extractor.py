"""Views through the frozen backbone into shards: decoding ahead of computing, and writing behind it."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from cache.keys import RowKey
from cache.shard import Float16Array
from cache.store import FeatureCache
from cache.writer import ShardWriter
from pipeline.backbones.backbone import Backbone, Pending
from pipeline.backbones.golden import VERSIONS, differ
from pipeline.backbones.sources import weights_source
from pipeline.bases.reduced import reduce_rows, reduction_basis
from pipeline.console import counted, named, progress
from pipeline.errors import DecodeError, PipelineError
from pipeline.extraction.plan import ExtractionContext
from pipeline.inputs.device_views import DeviceViews
from pipeline.inputs.loader import DecodeTask, Loader, Renderer
from pipeline.inputs.remarks import Remarks
from pipeline.inputs.views import Views
from pipeline.machine.device import available_cpus

T = TypeVar("T")


@dataclass
class Tally:
    """What computing rows took so far.

    Attributes:
        rows: computed, and written or about to be.
        phases: wall seconds of decoding, computing and writing, which overlap.
        bound: the phase that the others waited for; "" before anything was computed.
        warmup_seconds: until the backbone was ready.
        seconds: from then on.
        remarks: on files that were decoded.
        bad: files that cannot be decoded, by digest, and why.
    """

    rows: int = 0
    phases: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "compute": 0.0, "write": 0.0})
    bound: str = ""
    warmup_seconds: float = 0.0
    seconds: float = 0.0
    remarks: Remarks = field(default_factory=Remarks)
    bad: dict[bytes, tuple[DecodeTask, str]] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Rows in a second, startup left out."""
        return self.rows / self.seconds if self.seconds else 0.0

    def add(self, other: "Tally") -> None:
        """Count what another process has computed."""
        self.rows += other.rows
        self.remarks.merge(other.remarks)
        self.bad.update(other.bad)
        for phase, seconds in other.phases.items():
            self.phases[phase] += seconds
        self.bound = _longest(self.phases)


class Extractor:
    """Computes the rows of files and writes them into `cache`, by a backbone that is ready."""

    def __init__(self, context: ExtractionContext, cache: FeatureCache, network: Backbone) -> None:
        _refuse_other_numbers(cache, network)
        self._context, self._cache, self._network = context, cache, network
        self._renderer = _renderer(context)
        self._basis = reduction_basis(cache)

    def run(self, tasks: list[DecodeTask], tally: Tally, one_shard: bool = False) -> None:
        """Rows of all tasks; shards are written as they fill, or with `one_shard` all at the end.

        Ends at the first file that cannot be decoded, unless those are skipped. PipelineError where the memory of a
        device does not suffice.
        """
        try:
            self._run(tasks, tally, one_shard)
        except torch.OutOfMemoryError:
            raise PipelineError(
                f"the memory of this {self._context.device.type} does not hold a batch of {self._network.batch_size} "
                f"beside its images: use --batch-size {max(1, self._network.batch_size // 2)}; rows so far are kept"
            ) from None

    def _run(self, tasks: list[DecodeTask], tally: Tally, one_shard: bool) -> None:
        context, rows = self._context, sum(len(task.views) for task in tasks)
        start = time.perf_counter()
        loader = Loader(self._renderer, _workers(context), tally.remarks)
        writer = self._writer(rows, one_shard)

        def bound() -> str:
            """What this thread spent most of its time on: waiting for views, computing, or waiting for the disk."""
            computed = tally.phases["compute"] + self._renderer.seconds
            return _longest({"decode": loader.waited, "compute": computed, "write": writer.waited})

        with writer, progress(rows, "rows", lambda: f", bound by {bound()}") as advance, loader:
            for keys, features in self._rows(self._renderer.finish(self._views(loader, tasks, tally)), tally):
                finite = _finite(features)
                if not finite.all():
                    digest, view = keys[int(np.argmin(finite))]
                    raise PipelineError(
                        f"a feature of the image with SHA-256 {digest.hex()} ({view}) is not finite: check the weights"
                    )
                writer.add(keys, reduce_rows(self._basis, features) if self._basis else features)
                tally.rows += len(keys)
                advance(len(keys))
        tally.phases["decode"] += loader.seconds
        tally.phases["compute"] += self._renderer.seconds
        tally.phases["write"] += writer.seconds
        tally.bound = bound()
        tally.seconds += time.perf_counter() - start

    def _views(self, loader: Loader, tasks: list[DecodeTask], tally: Tally) -> Iterator[tuple[RowKey, Any]]:
        """Every view of `tasks`; what has none goes into `tally.bad`: the first ends it, unless these are skipped."""
        for task, outcome in loader.run(tasks):
            if not isinstance(outcome, DecodeError):
                yield from (((task.digest, view), pixels) for view, pixels in outcome)
                continue
            tally.bad[task.digest] = task, str(outcome)
            if not self._context.config.skip_bad:
                return

    def _rows(
        self, views: Iterator[tuple[RowKey, Any]], tally: Tally
    ) -> Iterator[tuple[tuple[RowKey, ...], Float16Array]]:
        """Rows of `views` in their order, by batches; a device is given the next one before the last has come back."""
        network = self._network
        flying: deque[tuple[tuple[RowKey, ...], Pending]] = deque()
        while batch := list(islice(views, network.batch_size)):
            keys, pixels = zip(*batch, strict=True)
            flying.append((keys, _timed(tally, network.start, pixels)))
            if len(flying) > network.batches_ahead:
                keys, pending = flying.popleft()
                yield keys, _timed(tally, pending)
        for keys, pending in flying:
            yield keys, _timed(tally, pending)

    def _writer(self, rows: int, one_shard: bool) -> ShardWriter:
        """Of rows as the cache keeps them: in full, or in the basis of a reduced one."""
        config, cache = self._context.config, self._cache
        weights = weights_source(config.backbone, config.weights)
        made = {**self._network.provenance, "views": self._renderer.place, "weights": weights}
        when: dict[str, Any] = {"rows_per_shard": rows + 1, "seconds_per_shard": None} if one_shard else {}
        return ShardWriter(cache.path, cache.header(made), **when)


def _refuse_other_numbers(cache: FeatureCache, network: Backbone) -> None:
    """PipelineError where the network computes others from the same weights than it did for the rows that are there."""
    base, here = cache.manifest.base, network.provenance
    for shard in cache.shards:
        made = shard.header.provenance
        if "golden" in made and differ(made["golden"], network.golden):
            changed = [name for name in VERSIONS if name in here and made.get(name) != here[name]]
            versions = [f"{name} {made.get(name)} there, {here[name]} here" for name in changed]
            raise PipelineError(
                f"{base.backbone} computes other features now than for the rows in {cache.path} "
                f"({'; '.join(versions) or 'by the same versions'}): extract with what it had, or into another folder"
            )


def _renderer(context: ExtractionContext) -> Renderer:
    """Views are rendered where the backbone computes, unless that is the processor."""
    recipe = context.manifest.augmentation
    views = Views(context.preprocessing, recipe.seed if recipe else 0)
    return views if context.device.type == "cpu" else DeviceViews(views, context.device)


def _workers(context: ExtractionContext) -> int:
    """Decoding threads: they work no more than the backbone asks of them, so half the processors are not too many.

    Beside a device more of them gain nothing, since each waits for Python's lock.
    """
    if context.config.workers is not None:
        return context.config.workers
    return max(1, (context.config.threads or available_cpus()) // 2)


def _finite(rows: Float16Array) -> npt.NDArray[np.bool_]:
    """Of rows (B, D), whether each has no inf and no NaN, (B,): by their bits, in a tenth of the time."""
    largest: npt.NDArray[np.uint16] = (rows.view(np.uint16) & 0x7FFF).max(axis=1)
    return largest < 0x7C00


def _timed(tally: Tally, function: Callable[..., T], *given: object) -> T:
    """What the function returns, its time counted as computing."""
    start = time.perf_counter()
    found = function(*given)
    tally.phases["compute"] += time.perf_counter() - start
    return found


def _longest(seconds: dict[str, float]) -> str:
    return max(seconds, key=lambda phase: seconds[phase])


def refuse_bad(context: ExtractionContext, tally: Tally, remaining: list[DecodeTask]) -> None:
    """DecodeError for all files that cannot be decoded: those found, and those of `remaining`, which are tried."""
    if context.config.skip_bad or not tally.bad:
        return
    found = list(tally.bad.values())
    with Loader(_renderer(context), 2) as loader:
        for task, outcome in loader.run(replace(task, views=()) for task in remaining):
            if isinstance(outcome, DecodeError):
                found.append((task, str(outcome)))
    lines = "\n".join(f"  {named(task.path)}: {reason}" for task, reason in found)
    raise DecodeError(
        f"{counted(len(found), 'image file')} cannot be decoded:\n{lines}\n"
        "Fix or remove them, or leave them out with --skip-bad; rows computed so far are kept."
    )
