"""What computes the rows of a run: this process, or the workers of a Ray cluster."""

from contextlib import ExitStack
from typing import Any, Protocol, Self

import torch

from cache.index import SkippedImage
from cache.store import FeatureCache
from pipeline.config import ExtractConfig
from pipeline.console import Say
from pipeline.extraction.compute import bring_up, compute
from pipeline.extraction.plan import ExtractResult, Plan, shares_of
from pipeline.extraction.units import compute_units, place_of
from pipeline.inputs.loader import Work
from pipeline.machine.cluster import connected
from pipeline.machine.device import resolve_device, resolve_precision


class Engine(Protocol):
    """A context manager: leaving it lets go of what it holds."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        """The device and the precision that rows will be computed in; `stored` is the precision of those there are."""

    def compute(
        self, plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say
    ) -> list[SkippedImage]:
        """Make and keep the rows of `work`; fills in counts and seconds, returns the files that were skipped."""

    def estimate(self, plan: Plan, work: list[Work], say: Say) -> None:
        """Say how long that would take."""


def engine_of(config: ExtractConfig, say: Say) -> Engine:
    """The engine that is asked for."""
    return RayEngine(config, say) if config.engine == "ray" else LocalEngine()


class LocalEngine:
    """This process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to let go of."""

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        device = resolve_device(config.device)
        return device, resolve_precision(config.precision, device, stored)

    def compute(
        self, plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say
    ) -> list[SkippedImage]:
        return compute(plan, cache, work, result, say)

    def estimate(self, plan: Plan, work: list[Work], say: Say) -> None:
        for share in shares_of(plan, work):
            bring_up(plan, share, say)


class RayEngine:
    """Workers of a Ray cluster, connected to when they are needed first."""

    def __init__(self, config: ExtractConfig, say: Say) -> None:
        self._config, self._say = config, say
        self._held = ExitStack()
        self._package: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def _ray(self) -> Any:
        if self._package is None:
            self._package = self._held.enter_context(connected(self._config, self._say))
        return self._package

    def place(self, config: ExtractConfig, stored: str | None) -> tuple[torch.device, str]:
        if stored and not config.gpus_per_worker:  # nothing to ask: it may be that nothing is to be computed, either
            return torch.device("cpu"), stored if config.precision == "auto" else config.precision
        return place_of(self._ray, config, stored)

    def compute(
        self, plan: Plan, cache: FeatureCache, work: list[Work], result: ExtractResult, say: Say
    ) -> list[SkippedImage]:
        return compute_units(self._ray, plan, cache, work, result, say)

    def estimate(self, plan: Plan, work: list[Work], say: Say) -> None:
        say("how long it takes depends on the cluster: not estimated with --engine ray")
