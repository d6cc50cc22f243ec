"""What a sweep searches: for each setting of a head its values or a range, from a TOML file or by default."""

import difflib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from cache.files import read_regular
from cache.records import convert
from pipeline.basis_name import BasisName
from pipeline.config.heads import HeadSettings
from pipeline.config.options import flag
from pipeline.errors import ConfigError

Value = str | int | float

SETTINGS: Mapping[str, Any] = {field.name: type(field.default) for field in fields(HeadSettings)}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, even in their logarithm where `log`; a grid takes `steps` of them.

    Raises ValueError where `low` is not below `high`, or not above 0 where `log`.
    """

    low: float
    high: float
    log: bool = False
    steps: Annotated[int, Meta(ge=2, le=1000)] | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low is not below high, or not above 0")

    def at(self, share: float) -> float:
        """The number at `share`, 0 to 1, of the way."""
        if self.log:
            return math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        return self.low + share * (self.high - self.low)


Domain = tuple[Value, ...] | Range


@dataclass(frozen=True)
class Space:
    """The domain of every setting that is searched; the others keep their defaults. `source` is for messages.

    Random search draws a basis in proportion to its weight in `basis_weights`, all alike where there are none.
    """

    domains: Mapping[str, Domain]
    source: str = "the space"
    basis_weights: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Space":
        """Of a TOML file: a value, a list of values, or a table `low`, `high`, `log`, `steps` for each setting.

        ConfigError for a name that is no setting, and for a value that the setting cannot have.
        """
        try:
            stored = tomllib.loads(read_regular(path).decode("utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; expected a TOML file") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
        if unknown := sorted(stored.keys() - SETTINGS.keys()):
            near = difflib.get_close_matches(unknown[0], list(SETTINGS), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path} has {unknown[0]!r}, expected some of {', '.join(SETTINGS)}{hint}")
        if not stored:
            raise ConfigError(f"{path} names no setting, expected some of {', '.join(SETTINGS)}")
        return cls({name: _domain(path, name, value) for name, value in stored.items()}, str(path))

    def sample(self, numbers: np.random.Generator) -> HeadSettings:
        """One head at random."""
        values: dict[str, Value] = {}
        for name, domain in self.domains.items():
            if isinstance(domain, Range):
                values[name] = as_kind(name, domain.at(float(numbers.random())))
            else:
                drawn = domain
                if name == "basis" and self.basis_weights:
                    weighted = zip(domain, self.basis_weights, strict=True)
                    drawn = tuple(one for one, weight in weighted for _ in range(weight))
                values[name] = drawn[int(numbers.integers(len(drawn)))]
        return self.settings(values)

    def grid(self) -> list[HeadSettings]:
        """Every combination; ConfigError for a range that does not say how many steps it has."""
        columns = [self._steps(name, domain) for name, domain in self.domains.items()]
        return [self.settings(dict(zip(self.domains, point, strict=True))) for point in itertools.product(*columns)]

    def settings(self, values: Mapping[str, Any]) -> HeadSettings:
        """The head of these values."""
        return HeadSettings(**{name: SETTINGS[name](value) for name, value in values.items()})

    def _steps(self, name: str, domain: Domain) -> tuple[Value, ...]:
        if isinstance(domain, tuple):
            return domain
        if domain.steps is None:
            raise ConfigError(
                f"{self.source}: {name} is a range, and a grid needs to know how many of it: give it steps = 2 or "
                "more, in a --space file"
            )
        return tuple(dict.fromkeys(as_kind(name, domain.at(n / (domain.steps - 1))) for n in range(domain.steps)))

    def describe(self) -> dict[str, Any]:
        """As JSON, in one spelling."""
        return {
            name: list(domain) if isinstance(domain, tuple) else asdict(domain)
            for name, domain in sorted(self.domains.items())
        }


def _domain(path: Path, name: str, value: object) -> Domain:
    """ConfigError for values that the setting cannot have."""
    if isinstance(value, dict) and SETTINGS[name] is not str:
        try:
            found = convert(value, Range)
        except (ValueError, ConfigError) as error:
            expected = "{ low = A, high = B } with A < B, above 0 if log = true, perhaps with steps = 2 or more"
            raise ConfigError(f"{path}: {name} is {_as_toml(value)}, expected {expected}") from error
        _check_values(path, name, (value["low"], value["high"]))
        return found
    values = tuple(value) if isinstance(value, list) else (value,)
    _check_values(path, name, values)
    if not values or len(set(values)) != len(values):
        raise ConfigError(f"{path}: {name} is {_as_toml(value)}, expected one or more values, none of them twice")
    return values


def _check_values(path: Path, name: str, values: Iterable[Any]) -> None:
    for one in values:
        try:
            convert({name: one}, HeadSettings)
        except ConfigError as error:
            raise ConfigError(f"{path}: {str(error).replace(flag(name), name, 1)}") from error
        except ValueError as error:
            kind = {int: "an integer", float: "a number", str: "a text"}[SETTINGS[name]]
            raise ConfigError(f"{path}: {name} is {_as_toml(one)}, expected {kind}") from error


def _as_toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(one)}' for key, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return json.dumps(value, default=str)


def as_kind(name: str, number: float) -> Value:
    """A number of a range as the setting has it: whole, or to four digits."""
    return round(number) if SETTINGS[name] is int else float(f"{number:.4g}")


def first_trials(space: Space, default: HeadSettings) -> list[HeadSettings]:
    """Heads that every sweep of `space` tries and never stops: the default one, and one like it in each basis."""
    bases = space.domains.get("basis", ())
    names = [str(name) for name in bases] if isinstance(bases, tuple) else []
    others = (replace(default, basis=name, lr=NARROW_RATE if is_narrow(name) else default.lr) for name in names)
    return list(dict.fromkeys([default, *others]))


def is_narrow(basis: str) -> bool:
    """Whether a basis ends in a projection."""
    name = BasisName.parse(basis)
    return name.components is not None or name.discriminant is not None


# What follows was chosen on validation images: docs/performance.md.
NARROW_RATE = 2e-3  # learning rate of a contender in a narrow basis
_DIRECTIONS = 64  # principal ones beside the discriminants where there are no more classes
_WEIGHTS = 1, 7, 7  # a head in the basis itself takes about five times as long


def default_space(basis: str, classes: int, directions: int) -> Space:
    """What is searched where nothing else is asked for: `basis`, and narrow ones after it.

    With few classes, discriminants alone are too few features; `directions` are the most that the training rows have.
    Few shapes, so that most heads train side by side.
    """
    beside = f"+pca:{min(_DIRECTIONS, directions)}" if classes <= _DIRECTIONS else ""
    domains: dict[str, Domain] = {
        "basis": (basis, f"{basis}+lda:4{beside}", f"{basis}+lda:8{beside}"),
        "dropout": Range(0.4, 0.8),
        "lr": Range(5e-4, 6e-3, log=True),
        "batch_size": (128,),
        "weight_decay": Range(0.03, 3.0, log=True),
    }
    return Space(domains, "the default space", _WEIGHTS)
