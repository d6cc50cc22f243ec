"""What options of several stages have in common: choices, their checks, and what computes. Free of torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("local", "ray")
TTA = ("none", "flip")


def require(ok: bool, message: str) -> None:
    """ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


def require_count(name: str, value: int | None, least: int, most: int, optional: bool = True) -> None:
    """ConfigError unless `value` is an integer from `least` to `most`, or None where it is `optional`."""
    if value is None and optional:
        return
    option = f"--{name.replace('_', '-')}"
    require(isinstance(value, Integral), f"{option} is {value!r}, expected an integer")
    assert value is not None
    require(value >= least, f"{option} is {value}, expected {least} or more")
    require(value <= most, f"{option} is {value}, expected at most {most:,}")


def require_number(name: str, value: float, fits: Callable[[float], bool], expected: str) -> None:
    """ConfigError, which says what is `expected`, unless `value` is a number that `fits`; NaN fits nothing."""
    option = f"--{name.replace('_', '-')}"
    require(isinstance(value, Real), f"{option} is {value!r}, expected a number")
    require(fits(value), f"{option} is {value}, expected {expected}")


def take_texts_as_paths(config: Any) -> None:
    """Let callers from Python give a path as text."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in (Path, Path | None) and isinstance(value, str):
            object.__setattr__(config, field.name, Path(value))


def check_training(config: Any, bounds: Mapping[str, tuple[int, int]]) -> None:
    """What one head and a sweep have in common."""
    take_texts_as_paths(config)
    for name, (least, most) in bounds.items():
        require_count(name, getattr(config, name), least, most)
    memory = config.memory
    require(memory is None or 0 < memory < 1e9, f"--memory is {memory}, expected GB above 0")


def check_computing(precision: str, device: str) -> None:
    """Names of a precision and of a device."""
    require(precision in PRECISIONS, f"--precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    check_device(device)


def check_device(device: str) -> None:
    """The name of a device."""
    require(device in DEVICES, f"--device is {device!r}, expected one of {', '.join(DEVICES)}")


def check_tta(tta: str) -> None:
    """The name of how an image is seen when predicting."""
    require(tta in TTA, f"--tta is {tta!r}, expected one of {', '.join(TTA)}")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What computes: `engine` local is this process, ray the workers of a Ray cluster, at `ray_address` or begun here.

    `ray_workers` None is as many as there is room for. Each takes `cpus_per_worker` processors, None for one, or four
    beside a GPU, and `gpus_per_worker` GPUs.
    """

    engine: str = "local"
    ray_address: str | None = None
    ray_workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        require(self.engine in ENGINES, f"--engine is {self.engine!r}, expected {' or '.join(ENGINES)}")
        for name in ("ray_workers", "cpus_per_worker"):
            require_count(name, getattr(self, name), 1, 100_000)
        gpus = self.gpus_per_worker
        require(0 <= gpus <= 64, f"--gpus-per-worker is {gpus}, expected 0 to 64")
        if self.engine != "ray":
            asked = [f.name for f in fields(ClusterConfig) if getattr(self, f.name) != f.default]
            require(
                not asked, f"--{''.join(asked[:1]).replace('_', '-')} is for --engine ray: add that, or leave it out"
            )

    @property
    def cpus(self) -> int:
        """Processors of a worker."""
        return self.cpus_per_worker or (4 if self.gpus_per_worker else 1)
