"""One frozen dataclass per stage: the options of the command line and of the library, their defaults and limits.

Free of torch, so that `headgraft --help` starts at once and both entry points share every default.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cache.layout import MOST_PASSES
from pipeline.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")
DEVICES = ("auto", "cpu", "cuda")

# Beyond these, a number is a slip of the hand; without them it would end in an overflow or the machine's memory.
LARGEST_SEED = (1 << 32) - 1
_EXTRACT_BOUNDS = {
    "passes": (0, MOST_PASSES),
    "image_size": (32, 1024),
    "seed": (0, LARGEST_SEED),
    "split_seed": (0, LARGEST_SEED),
    "batch_size": (1, 4096),
    "workers": (0, 256),
    "threads": (1, 1024),
}
_TRAIN_BOUNDS = {
    "passes": (0, MOST_PASSES),
    "hidden": (1, 1 << 16),
    "epochs": (1, 100_000),
    "batch_size": (1, 1 << 20),
    "seed": (0, LARGEST_SEED),
}

_BASIS = re.compile(
    r"(?:(?:full|pool|pyramid)(?:\+white(?::(?P<g>\d{1,9}(?:\.\d{1,9})?))?)?(?:\+pca:(?P<r>\d{1,9}))?|pca:(?P<r2>\d{1,9}))"
)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _require_count(name: str, value: int | None, least: int, most: int) -> None:
    """A count that was left open is chosen later."""
    option = f"--{name.replace('_', '-')}"
    _require(value is None or value >= least, f"{option} is {value}, expected {least} or more")
    _require(value is None or value <= most, f"{option} is {value}, expected at most {most:,}")


def _take_texts_as_paths(config: Any) -> None:
    """Let callers from Python give a path as text."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type in (Path, Path | None) and isinstance(value, str):
            object.__setattr__(config, field.name, Path(value))


def _check_computing(precision: str, device: str) -> None:
    _require(precision in PRECISIONS, f"--precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    _require(device in DEVICES, f"--device is {device!r}, expected one of {', '.join(DEVICES)}")


@dataclass(frozen=True)
class ExtractConfig:
    """Stage one. `passes` augmented views per training image; `image_size` in pixels; None counts are chosen."""

    data: Path
    cache: Path
    set: str | None = None
    passes: int = 0
    backbone: str = "vgg16"
    weights: str | None = None
    image_size: int = 224
    seed: int = 0
    split_seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None
    skip_bad: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        _take_texts_as_paths(self)
        _check_computing(self.precision, self.device)
        for name, (least, most) in _EXTRACT_BOUNDS.items():
            _require_count(name, getattr(self, name), least, most)


@dataclass(frozen=True)
class TrainConfig:
    """Stage two, one head: Linear(D, hidden), ReLU, Dropout, Linear(hidden, C), LogSoftmax, trained in `basis`.

    `passes` None takes every pass the cache has whole for the set. `memory`, in GB, is what rows may take; None is half
    of what is free. More rows than that are read from the cache in each epoch.
    """

    cache: Path
    run: Path
    set: str | None = None
    passes: int | None = None
    hidden: int = 512
    dropout: float = 0.5
    lr: float = 1e-3
    epochs: int = 20
    batch_size: int = 64
    weight_decay: float = 0.0
    basis: str = "pyramid+white"
    seed: int = 0
    memory: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        _take_texts_as_paths(self)
        for name, (least, most) in _TRAIN_BOUNDS.items():
            _require_count(name, getattr(self, name), least, most)
        _require(self.memory is None or 0 < self.memory < 1e9, f"--memory is {self.memory}, expected GB above 0")
        _require(0 <= self.dropout < 1, f"--dropout is {self.dropout}, expected 0 or more and under 1")
        _require(0 < self.lr < float("inf"), f"--lr is {self.lr}, expected a number above 0")
        _require(0 <= self.weight_decay < float("inf"), f"--weight-decay is {self.weight_decay}, expected 0 or more")
        BasisName.parse(self.basis)


@dataclass(frozen=True)
class BasisName:
    """A basis as its name says: regions, then shrinkage of the whitening if any, then components if any."""

    regions: str
    shrinkage: float | None
    components: int | None

    @classmethod
    def parse(cls, name: str) -> "BasisName":
        """`full`, `pool` or `pyramid`, each with `+white[:G]`, each then with `+pca:R`; `pca:R` is `full+pca:R`."""
        match = _BASIS.fullmatch(name)
        _require(
            match is not None,
            f"{name!r} is not a basis: expected full, pool or pyramid, optionally +white or +white:G, then +pca:R",
        )
        assert match is not None
        parts = name.split("+")
        white = next((part for part in parts if part.startswith("white")), None)
        components = match["r"] or match["r2"]
        shrinkage = None if white is None else float(match["g"] or DEFAULT_SHRINKAGE)
        _require(shrinkage is None or shrinkage > 0, f"{name!r}: the shrinkage must be above 0")
        _require(components is None or int(components) > 0, f"{name!r}: pca needs one component or more")
        regions = "full" if parts[0].startswith("pca") else parts[0]
        return cls(regions, shrinkage, int(components) if components else None)


DEFAULT_SHRINKAGE = 6.0


@dataclass(frozen=True)
class ExportConfig:
    """Run → one model file. `cache` and `data` None: where the run and its set recorded them."""

    run: Path
    model: Path
    cache: Path | None = None
    data: Path | None = None
    names: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        _take_texts_as_paths(self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores of one split: of a run from the cache, of a model from image files in `data`."""

    target: Path
    data: Path | None = None
    cache: Path | None = None
    split: str = "test"
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _take_texts_as_paths(self)
        _check_computing(self.precision, self.device)
        _require(self.split in ("train", "valid", "test"), f"--split is {self.split!r}, expected train, valid or test")


@dataclass(frozen=True)
class PredictConfig:
    """Image files → the `top_k` most probable classes; `images` are files, folders or globs."""

    model: Path
    images: tuple[str, ...]
    top_k: int = 5
    names: Path | None = None
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _take_texts_as_paths(self)
        _check_computing(self.precision, self.device)
        _require(self.top_k >= 1, f"--top-k is {self.top_k}, expected 1 or more")
