"""Stage one on Ray: units of work, the worker that makes their rows, and handing them out.

A worker writes a unit's rows itself, as one shard at the end of the unit: features never travel, and a worker that goes
takes no more than its unit with it.
"""

import platform
import time
from collections.abc import Callable, Iterator
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
from pipeline.inputs.remarks import Remarks
from pipeline.machine.cluster import Workers, workers_of
from pipeline.machine.device import resolve_device, resolve_precision

UNIT_ROWS = {"cpu": 128, "cuda": 1000}  # at most: some 20 seconds of one processor; a whole shard
_UNITS_A_WORKER = 8  # at least: while the last of them are done, the others have nothing to do
_LEAST_UNIT_ROWS = 16
Unit = tuple[Work, ...]
Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class UnitDone:
    """What became of a unit: rows written, seconds by phase, files that could not be decoded."""

    rows: int
    phases: dict[str, float]
    bad: BadFiles
    remarks: Remarks


class Worker:
    """Makes rows, unit after unit, with a backbone that it loads once: what runs as an actor.

    `arrays` are the backbone's tensors, handed over with each call, since a worker that Ray begins anew has none; they
    lie in memory that the workers of a machine share. All else is made when it is needed first: what fails while a
    worker is begun, Ray tells without its reason.
    """

    def __init__(self, config: ExtractConfig, manifest: Manifest, expected_rows: int) -> None:
        self._config, self._manifest, self._expected = config, manifest, expected_rows
        self._making: Making | None = None
        self._networks: dict[int, Backbone] = {}

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache.open(self._config.cache)

    def ready(self, arrays: Arrays) -> None:
        """Returns when it can make rows at speed; CacheError where the cache is not to be seen from here."""
        _ = self._cache
        base = self._manifest.base
        self._network(Share([], base.input_size, base.row_shape), self._bring_up(arrays))

    def run(self, unit: Unit, arrays: Arrays) -> UnitDone:
        """Decode, compute and write the rows of a unit."""
        making = self._bring_up(arrays)
        result, bad = ExtractResult("", 0, 0, 0, 0), BadFiles()
        for share in shares_of(making, list(unit)):
            network = self._network(share, making)
            compute_share(making, self._cache, share, network, bad, result, silent, one_shard=True)
        return UnitDone(result.computed, result.phases, bad, result.remarks)

    def _bring_up(self, arrays: Arrays) -> Making:
        """How rows are made here; PipelineError where they cannot be."""
        self._refuse_blind()
        if self._making is None:
            config, device = self._config, _device_here(self._config)
            resolve_precision(self._manifest.base.precision, device)  # machines of a cluster may differ
            own = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}  # Ray's are not writable
            # What cannot be decoded is the run's concern, not the unit's.
            here = replace(config, skip_bad=True, threads=config.threads or config.cpus)
            self._making = Making(here, own, device, self._manifest)
        return self._making

    def _refuse_blind(self) -> None:
        """PipelineError where the images are not to be seen: each would pass for one that cannot be decoded."""
        if not self._config.data.exists():
            raise PipelineError(
                f"{self._config.data} is not there on {platform.node()}, where a worker of Ray runs: "
                "images and cache must lie at the same places on all machines"
            )

    def _network(self, share: Share, making: Making) -> Backbone:
        if share.size not in self._networks:
            self._networks[share.size], _ = bring_up(making, share, silent, self._expected)
        return self._networks[share.size]


def _device_here(config: ExtractConfig) -> torch.device:
    """A GPU only where one was asked for: without that, Ray gives none to a worker, and all would share one."""
    return resolve_device(config.device if config.gpus_per_worker else "cpu")


def place_of(ray: Any, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
    """The device and precision of a worker, asked of one: this machine may be another kind."""

    def ask() -> tuple[str, str]:
        device = _device_here(config)
        return device.type, resolve_precision(config.precision, device, stored)

    workers_of(ray, config)  # else the question would wait for ever
    needs = {"num_cpus": config.cpus, "num_gpus": config.gpus_per_worker}
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


def _unit_rows(rows: int, workers: int, device: torch.device) -> int:
    """Of a unit, where nothing is asked: fewer where there are few rows for so many workers."""
    shared_out = -(-rows // (_UNITS_A_WORKER * workers))
    return min(UNIT_ROWS[device.type], max(_LEAST_UNIT_ROWS, shared_out))


def compute_units(
    ray: Any, plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say
) -> list[SkippedImage]:
    """As `compute`, by workers of a Ray cluster that sees images and cache at the same places as this machine."""
    start = time.perf_counter()
    tensors = ray.put({name: tensor.numpy() for name, tensor in plan.tensors.items()})
    rows = sum(len(item.views) for item in work)
    bad: BadFiles = {}
    done: set[int] = set()
    given = (_for_workers(plan.config), plan.manifest, rows)
    with Workers[Unit, UnitDone](ray, Worker, given, plan.config, _name_of, (tensors,)) as workers:
        units = list(cut(work, plan.config.unit_rows or _unit_rows(rows, workers.count, plan.device)))
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
    return f"the unit of {counted(len(unit), 'image')} from {named(unit[0].path)} on"


def _add(outcome: UnitDone, result: ExtractResult) -> None:
    result.computed += outcome.rows
    result.remarks.merge(outcome.remarks)
    for phase, seconds in outcome.phases.items():
        result.phases[phase] += seconds
    result.bound = max(result.phases, key=lambda phase: result.phases[phase])
