"""What computes the rows of a run: this process, or the workers of a Ray cluster."""

import logging
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch

from cache.store import FeatureCache
from pipeline.config.extract import ExtractConfig
from pipeline.extraction.extractor import Extractor, Tally, refuse_bad
from pipeline.extraction.plan import ExtractionPlan, Workload
from pipeline.extraction.startup import start_backbone
from pipeline.extraction.units import compute_units, place_of
from pipeline.machine.cluster import connected
from pipeline.machine.device import resolve_device, resolve_precision

logger = logging.getLogger("headgraft.extraction")


class Executor(ExitStack):
    """Computes in this process. A context manager: leaving it lets go of what it holds."""

    def __init__(self, config: ExtractConfig) -> None:
        super().__init__()
        self._config = config

    def place(self, stored: str | None) -> tuple[torch.device, str]:
        """The device and the precision that rows will be computed in; `stored` is the precision of those there are."""
        device = resolve_device(self._config.device)
        return device, resolve_precision(self._config.precision, device, stored)

    def compute(self, plan: ExtractionPlan, cache: FeatureCache, work: Workload, tally: Tally) -> None:
        """Compute and write the rows of `work`; DecodeError for files that cannot be decoded and are not skipped."""
        network, tally.warmup_seconds = start_backbone(plan, work.missing)
        Extractor(plan, cache, network).run(work.tasks, tally)
        tried = next((number for number, task in enumerate(work.tasks) if task.digest in tally.bad), 0)
        refuse_bad(plan, tally, work.tasks[tried + 1 :])

    def estimate(self, plan: ExtractionPlan, work: Workload) -> None:
        """Log how long that would take."""
        if work.tasks:
            start_backbone(plan, work.missing)


class RayExecutor(Executor):
    """Computes by workers of a Ray cluster, connected to when they are needed first."""

    @cached_property
    def _ray(self) -> Any:
        return self.enter_context(connected(self._config))

    def place(self, stored: str | None) -> tuple[torch.device, str]:
        """That of a worker, which may be another kind of machine."""
        config = self._config
        if stored and not config.gpus_per_worker:  # nothing to ask: it may be that nothing is to be computed, either
            return torch.device("cpu"), stored if config.precision == "auto" else config.precision
        return place_of(self._ray, config, stored)

    def compute(self, plan: ExtractionPlan, cache: FeatureCache, work: Workload, tally: Tally) -> None:
        """The same, in units of work; workers open the cache themselves."""
        compute_units(self._ray, plan, work, tally)

    def estimate(self, plan: ExtractionPlan, work: Workload) -> None:
        """Not known here."""
        logger.info("how long it takes depends on the cluster: not estimated with --engine ray")


def executor_of(config: ExtractConfig) -> Executor:
    """The one that `--engine` asks for."""
    return RayExecutor(config) if config.engine == "ray" else Executor(config)
