"""How an option is declared: its default, help, choices and limits beside the field of its config. Free of torch."""

import math
import operator
import re
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
ENGINES = ("local", "ray")
TTA = ("none", "flip")

# Beyond a limit, a number is a slip of the hand; it would end in an overflow or take all of the memory.
LARGEST_SEED = (1 << 32) - 1  # seeds.py counts on it
MOST_GB = 10**9

T = TypeVar("T")

_LIMITS = {
    "above": (operator.gt, "above {:,}"),
    "least": (operator.ge, "of {:,} or more"),
    "below": (operator.lt, "under {:,}"),
    "most": (operator.le, "at most {:,}"),
}


@dataclass(frozen=True)
class Option:
    """What the command line says of a field, and what the field may hold.

    Attributes:
        help: one sentence; where the default is found at run time, it ends in "[default: ...]".
        choices: the texts it may hold; () for any.
        above, least, below, most: limits of a number; those of `least` and `most` are allowed themselves.
        metavar: what stands for the value in the help, where that is not its type.
    """

    help: str
    choices: tuple[str, ...] = ()
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    metavar: str | None = None

    def check(self, name: str, value: Any, kind: type) -> None:
        """ConfigError unless the field `name`, of this `kind`, may hold `value`; a number is finite."""
        if self.choices:
            allowed, expected = value in self.choices, f"one of {', '.join(self.choices)}"
        elif kind in (int, float):
            limits = {limit: known for limit in _LIMITS if (known := getattr(self, limit)) is not None}
            number = isinstance(value, Integral if kind is int else Real)
            finite = number and abs(value) < math.inf
            allowed = finite and all(_LIMITS[limit][0](value, known) for limit, known in limits.items())
            within = " and ".join(_LIMITS[limit][1].format(known) for limit, known in limits.items())
            expected = f"{'an integer' if kind is int else 'a number'} {within}"
        else:
            return
        require(allowed, f"{flag(name)} is {value!r}, expected {expected}")


def option(default: T, help: str, **limits: Any) -> T:
    """A field of a config that is an option of its command, with what `Option` says of it."""
    return field(default=default, metadata=required(help, **limits))


def required(help: str, **limits: Any) -> dict[str, Option]:
    """Metadata of a field that is an option and has no default."""
    return {"option": Option(help, **limits)}


def argument(help: str, metavar: str | None = None) -> dict[str, str | None]:
    """Metadata of a field that is an argument of its command."""
    return {"help": help, "metavar": metavar}


def option_of(config: Any, name: str) -> Any:
    """The same field as another config has, with its default, help and limits."""
    known = config.__dataclass_fields__[name]
    return field(default=known.default, metadata=known.metadata)


def check_option(config: Any, name: str, value: object, kind: type) -> None:
    """ConfigError where the option of this field of a config cannot have the value."""
    config.__dataclass_fields__[name].metadata["option"].check(name, value, kind)


def kind_of(declared: Field[Any]) -> type:
    """bool, int, float, str or Path, of a field that may hold None as well; tuple for several texts."""
    return next((kind for kind in (bool, int, float, str, Path) if declared.type in (kind, kind | None)), tuple)


def flag(name: str) -> str:
    """The option of a field, as it is typed."""
    return f"--{name.replace('_', '-')}"


def require(ok: bool, message: str) -> None:
    """ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


def check_capture(name: str, expression: str) -> None:
    """ConfigError unless the option `name` is a regular expression with a capture."""
    try:
        captures = re.compile(expression).groups
    except re.error as error:
        raise ConfigError(f"{name} {expression!r} is not a regular expression: {error}") from error
    require(captures > 0, f"{name} {expression!r} captures nothing: put what names a group in (), as in camera_(\\d+)/")


class Checked:
    """Base of the configs: a path may be given as text, and every option is checked as it is declared."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]  # those below are dataclasses
            value, kind = getattr(self, one.name), kind_of(one)
            if kind is Path and isinstance(value, str):
                object.__setattr__(self, one.name, Path(value))
            if "option" in one.metadata and not (value is None and one.default is None):
                one.metadata["option"].check(one.name, value, kind)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Checked):
    """What computes: this process, or the workers of a Ray cluster."""

    engine: str = option("local", "Run in this process, or on Ray workers.", choices=ENGINES)
    ray_address: str | None = option(None, "Ray cluster address.  [default: start a local cluster]")
    ray_workers: int | None = option(None, "Number of Ray workers.  [default: as many as fit]", least=1, most=100_000)
    cpus_per_worker: int | None = option(
        None, "CPUs per Ray worker.  [default: 1; 4 with a GPU]", least=1, most=100_000
    )
    gpus_per_worker: float = option(0.0, "GPUs per Ray worker, also a fraction; 0 = no GPU.", least=0, most=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = [one.name for one in fields(ClusterConfig) if getattr(self, one.name) != one.default]
        if asked and self.engine != "ray":
            raise ConfigError(f"{flag(asked[0])} is for --engine ray: add that, or leave it out")

    @property
    def cpus(self) -> int:
        """Processors of a worker."""
        return self.cpus_per_worker or (4 if self.gpus_per_worker else 1)
