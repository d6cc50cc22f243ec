"""Stage one on Ray: units of work, the worker that makes their rows, and handing them out.

A worker writes a unit's rows itself, as one shard at the end of the unit: features never travel, and a worker that goes
takes no more than its unit with it.
"""

import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cache.manifest import Manifest
from cache.store import FeatureCache
from pipeline.backbones.sources import weights_source
from pipeline.config.extract import ExtractConfig
from pipeline.console import counted, named, progress
from pipeline.errors import PipelineError
from pipeline.extraction.extractor import Extractor, Tally, refuse_bad
from pipeline.extraction.plan import ExtractionContext, ExtractionPlan, Workload
from pipeline.extraction.startup import start_backbone
from pipeline.inputs.loader import DecodeTask
from pipeline.machine.cluster import Workers, workers_of
from pipeline.machine.device import resolve_device, resolve_precision

logger = logging.getLogger("headgraft.extraction")

UNIT_ROWS, DEVICE_UNIT_ROWS = 128, 1000  # at most: some 20 seconds of one processor; a whole shard
_UNITS_A_WORKER = 8  # at least: while the last of them are done, the others have nothing to do
_LEAST_UNIT_ROWS = 16
WorkUnit = tuple[DecodeTask, ...]
Arrays = dict[str, npt.NDArray[np.float32]]


class Worker:
    """Makes rows, unit after unit, with a backbone that it loads once: what runs as an actor.

    `arrays` are the backbone's tensors, handed over with each call, since a worker that Ray begins anew has none; they
    lie in memory that the workers of a machine share. All else is made when it is needed first: what fails while a
    worker is begun, Ray tells without its reason.
    """

    def __init__(self, config: ExtractConfig, manifest: Manifest, expected_rows: int) -> None:
        self._config, self._manifest, self._expected = config, manifest, expected_rows
        self._extractor: Extractor | None = None

    def ready(self, arrays: Arrays) -> None:
        """Returns when it can compute at speed, by the cache as it is seen here.

        PipelineError where the images are not to be seen, each of which would pass for one that cannot be decoded, or
        where this machine does not compute in the cache's precision; CacheError where the cache is not to be seen.
        """
        config = self._config
        if not config.data.exists():
            raise PipelineError(
                f"{config.data} is not there on {platform.node()}, where a worker of Ray runs: "
                "images and cache must lie at the same places on all machines"
            )
        if self._extractor is None:
            cache, device = FeatureCache.open(config.cache), _device_here(config)
            resolve_precision(self._manifest.base.precision, device)  # machines of a cluster may differ
            own = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}  # Ray's are not writable
            # What cannot be decoded is the run's concern, not the unit's.
            here = replace(config, skip_bad=True, threads=config.threads or config.cpus)
            context = ExtractionContext(here, own, device, self._manifest)
            self._extractor = Extractor(context, cache, start_backbone(context, self._expected)[0])

    def run(self, unit: WorkUnit, arrays: Arrays) -> Tally:
        """Decode, compute and write the rows of a unit."""
        self.ready(arrays)
        assert self._extractor is not None
        tally = Tally()
        self._extractor.run(list(unit), tally, one_shard=True)
        return tally


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


def cut(tasks: list[DecodeTask], rows: int) -> Iterator[WorkUnit]:
    """`tasks` in their order as units of `rows` views or a few more: what an image needs is never divided."""
    unit: list[DecodeTask] = []
    count = 0
    for task in tasks:
        unit.append(task)
        count += len(task.views)
        if count >= rows:
            yield tuple(unit)
            unit, count = [], 0
    if unit:
        yield tuple(unit)


def _unit_rows(rows: int, workers: int, device: torch.device) -> int:
    """Of a unit, where nothing is asked: fewer where there are few rows for so many workers."""
    shared_out = -(-rows // (_UNITS_A_WORKER * workers))
    return min(UNIT_ROWS if device.type == "cpu" else DEVICE_UNIT_ROWS, max(_LEAST_UNIT_ROWS, shared_out))


def compute_units(ray: Any, plan: ExtractionPlan, work: Workload, tally: Tally) -> None:
    """Rows of `work`, by workers of a Ray cluster that sees images and cache at the same paths as this machine."""
    start = time.perf_counter()
    tensors = ray.put({name: tensor.numpy() for name, tensor in plan.tensors.items()})
    rows = work.missing
    done: set[bytes] = set()
    given = (_for_workers(plan.config), plan.manifest, rows)
    with Workers[WorkUnit, Tally](ray, Worker, given, plan.config, _name_of, (tensors,)) as workers:
        units = list(cut(work.tasks, plan.config.unit_rows or _unit_rows(rows, workers.count, plan.device)))
        logger.info(f"{counted(len(units), 'unit')} of work for {counted(workers.count, 'worker')}")
        workers.first_ready()
        tally.warmup_seconds = time.perf_counter() - start
        with progress(rows, "rows", lambda: f" by {counted(workers.count, 'worker')}") as advance:
            # A bad file ends the run, unless they are skipped.
            for unit, outcome in workers.run(units, lambda: bool(tally.bad) and not plan.config.skip_bad):
                done |= {task.digest for task in unit}
                tally.add(outcome)
                tally.seconds = time.perf_counter() - start - tally.warmup_seconds
                advance(outcome.rows)
    refuse_bad(plan, tally, [task for task in work.tasks if task.digest not in done])


def _for_workers(config: ExtractConfig) -> ExtractConfig:
    """Options whose paths mean the same from any folder."""
    weights = weights_source(config.backbone, config.weights)
    return replace(config, data=config.data.absolute(), cache=config.cache.absolute(), weights=weights)


def _name_of(unit: WorkUnit) -> str:
    return f"the unit of {counted(len(unit), 'image')} from {named(unit[0].path)} on"
