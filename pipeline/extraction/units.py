"""Stage one on Ray: units of work, the worker that makes their rows, and handing them out.

A worker writes a unit's rows itself, as one shard at the end of the unit: features never travel, and a worker that goes
takes no more than its unit with it.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cache.index import SkippedImage
from cache.manifest import Manifest
from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone, weights_source
from pipeline.config import ExtractConfig
from pipeline.console import Say, counted, named, progress, silent
from pipeline.errors import PipelineError
from pipeline.extraction.compute import BadFiles, all_bad, bring_up, compute_share, skipped
from pipeline.extraction.plan import ExtractResult, Making, Plan, Share, shares_of
from pipeline.inputs.loader import Work
from pipeline.machine.cluster import Workers, workers_of
from pipeline.machine.device import resolve_device, resolve_precision

UNIT_ROWS = {"cpu": 128, "cuda": 1000}  # some 20 seconds of one processor; a whole shard
Unit = tuple[Work, ...]


@dataclass(frozen=True)
class UnitDone:
    """What became of a unit: rows written, seconds by phase, files that could not be decoded."""

    rows: int
    phases: dict[str, float]
    bad: BadFiles


class Worker:
    """Makes rows, unit after unit, with a backbone that it loads once: what runs as an actor."""

    def __init__(self, config: ExtractConfig, manifest: Manifest, stored: Sequence[Any], expected_rows: int) -> None:
        """`stored` has one reference, to the backbone's tensors as arrays: within a list Ray leaves it as it is.

        All else is made when it is needed first: what fails in here, Ray tells without its reason.
        """
        self._given = config, manifest, stored[0]
        self._expected = expected_rows
        self._networks: dict[int, Backbone] = {}

    @cached_property
    def _making(self) -> Making:
        import ray

        config, manifest, stored = self._given
        arrays: dict[str, npt.NDArray[np.float32]] = ray.get(stored)
        own = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}  # Ray's are not writable
        # What cannot be decoded is the run's concern, not the unit's.
        here = replace(config, skip_bad=True, threads=config.threads or config.cluster.cpus)
        device = _device_here(config)
        resolve_precision(manifest.base.precision, device)  # machines of a cluster may differ
        return Making(here, own, device, manifest)

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.open(self._making.config.cache)

    def ready(self) -> None:
        """Returns when it can make rows at speed; CacheError where the cache is not to be seen from here."""
        _ = self._cache
        self._refuse_blind()
        base = self._making.manifest.base
        self._network(Share([], base.input_size, base.row_shape))

    def run(self, unit: Unit) -> UnitDone:
        """Decode, compute and write the rows of a unit."""
        self._refuse_blind()
        result, bad = ExtractResult("", 0, 0, 0, 0), BadFiles()
        for share in shares_of(self._making, list(unit)):
            compute_share(self._making, self._cache, share, self._network(share), bad, result, silent, one_shard=True)
        return UnitDone(result.computed, result.phases, bad)

    def _refuse_blind(self) -> None:
        """PipelineError where the images are not to be seen: each would pass for one that cannot be decoded."""
        data = self._making.config.data
        if not data.exists():
            raise PipelineError(
                f"{data} is not there on {platform.node()}, where a worker of Ray runs: "
                "images and cache must lie at the same places on all machines"
            )

    def _network(self, share: Share) -> Backbone:
        if share.size not in self._networks:
            self._networks[share.size], _ = bring_up(self._making, share, silent, self._expected)
        return self._networks[share.size]


def _device_here(config: ExtractConfig) -> torch.device:
    """A GPU only where one was asked for: without that, Ray gives none to a worker, and all would share one."""
    return resolve_device(config.device if config.gpus_per_worker else "cpu")


def place_of(ray: Any, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
    """The device and precision of a worker, asked of one: this machine may be another kind."""

    def ask() -> tuple[str, str]:
        device = _device_here(config)
        return device.type, resolve_precision(config.precision, device, stored)

    workers_of(ray, config.cluster)  # else the question would wait for ever
    needs = {"num_cpus": config.cluster.cpus, "num_gpus": config.gpus_per_worker}
    try:
        device, precision = ray.get(ray.remote(**needs)(ask).remote())
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return torch.device(device), precision


def cut(work: list[Work], rows: int) -> Iterator[Unit]:
    """`work` in its order as units of `rows` views or a few more: what an image needs is never divided."""
    unit: list[Work] = []
    count = 0
    for item in work:
        unit.append(item)
        count += len(item.views)
        if count >= rows:
            yield tuple(unit)
            unit, count = [], 0
    if unit:
        yield tuple(unit)


def compute_units(
    ray: Any, plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say
) -> list[SkippedImage]:
    """As `compute`, by workers of a Ray cluster that sees images and cache at the same places as this machine."""
    start = time.perf_counter()
    units = list(cut(work, plan.config.unit_rows or UNIT_ROWS[plan.device.type]))
    tensors = ray.put({name: tensor.numpy() for name, tensor in plan.tensors.items()})
    rows = sum(len(item.views) for item in work)
    bad: BadFiles = {}
    done: set[int] = set()
    given = (_for_workers(plan.config), plan.manifest, [tensors], rows)
    with Workers[Unit, UnitDone](ray, Worker, given, plan.config.cluster, _name_of) as workers:
        say(f"{counted(len(units), 'unit')} of work for {counted(workers.count, 'worker')}")
        workers.first_ready()
        result.warmup_seconds = time.perf_counter() - start
        begun = time.perf_counter()
        with progress(rows, "rows", say, lambda: f" by {counted(workers.count, 'worker')}") as advance:
            for unit, outcome in workers.run(units, _ended_by(bad, plan.config)):
                done |= {id(item) for item in unit}
                bad.update(outcome.bad)
                _add(outcome, result)
                advance(outcome.rows)
        result.images_per_second = result.computed / (time.perf_counter() - begun)
    if bad and not plan.config.skip_bad:
        raise all_bad(plan, bad, [item for item in work if id(item) not in done])
    return skipped(plan, bad)


def _ended_by(bad: BadFiles, config: ExtractConfig) -> Callable[[], bool]:
    """Whether no more units are to be begun: a bad file ends the run, unless they are skipped."""
    return lambda: bool(bad) and not config.skip_bad


def _for_workers(config: ExtractConfig) -> ExtractConfig:
    """Options whose paths mean the same from any folder."""
    weights = weights_source(config.backbone, config.weights)
    return replace(config, data=config.data.absolute(), cache=config.cache.absolute(), weights=weights)


def _name_of(unit: Unit) -> str:
    return f"the unit of {len(unit)} images from {named(unit[0].path)} on"


def _add(outcome: UnitDone, result: ExtractResult) -> None:
    result.computed += outcome.rows
    for phase, seconds in outcome.phases.items():
        result.phases[phase] += seconds
    result.bound = max(result.phases, key=lambda phase: result.phases[phase])
