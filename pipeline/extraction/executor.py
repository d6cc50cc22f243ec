"""What computes the rows of a run: this process, or the workers of a Ray cluster."""

import logging
from contextlib import ExitStack
from typing import Any, Protocol, Self

import torch

from cache.store import FeatureCache
from pipeline.config import ExtractConfig
from pipeline.extraction.extractor import Extractor, Tally, refuse_bad
from pipeline.extraction.plan import ExtractionPlan, Workload
from pipeline.extraction.startup import start_backbone
from pipeline.extraction.units import compute_units, place_of
from pipeline.machine.cluster import connected
from pipeline.machine.device import resolve_device, resolve_precision

logger = logging.getLogger("headgraft.extraction")


class Engine(Protocol):
    """A context manager: leaving it lets go of what it holds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        """The device and the precision that rows will be computed in; `stored` is the precision of those there are."""

    def compute(self, plan: ExtractionPlan, cache: FeatureCache, work: Workload, tally: Tally) -> None:
        """Compute and write the rows of `work`; DecodeError for files that cannot be decoded and are not skipped."""

    def estimate(self, plan: ExtractionPlan, work: Workload) -> None:
        """Say how long that would take."""


def executor_of(config: ExtractConfig) -> Engine:
    """The engine that is asked for."""
    return RayExecutor(config) if config.engine == "ray" else LocalExecutor()


class LocalExecutor:
    """This process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to let go of."""

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        device = resolve_device(config.device)
        return device, resolve_precision(config.precision, device, stored)

    def compute(self, plan: ExtractionPlan, cache: FeatureCache, work: Workload, tally: Tally) -> None:
        network, tally.warmup_seconds = start_backbone(plan, work.missing)
        Extractor(plan, cache, network).run(work.tasks, tally)
        tried = next((number for number, task in enumerate(work.tasks) if task.digest in tally.bad), 0)
        refuse_bad(plan, tally, work.tasks[tried + 1 :])

    def estimate(self, plan: ExtractionPlan, work: Workload) -> None:
        if work.tasks:
            start_backbone(plan, work.missing)


class RayExecutor:
    """Workers of a Ray cluster, connected to when they are needed first."""

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._held = ExitStack()
        self._package: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def _ray(self) -> Any:
        if self._package is None:
            self._package = self._held.enter_context(connected(self._config))
        return self._package

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        if stored and not config.gpus_per_worker:  # nothing to ask: it may be that nothing is to be computed, either
            return torch.device("cpu"), stored if config.precision == "auto" else config.precision
        return place_of(self._ray, config, stored)

    def compute(self, plan: ExtractionPlan, cache: FeatureCache, work: Workload, tally: Tally) -> None:
        compute_units(self._ray, plan, work, tally)

    def estimate(self, plan: ExtractionPlan, work: Workload) -> None:
        logger.info("how long it takes depends on the cluster: not estimated with --engine ray")
