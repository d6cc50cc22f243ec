"""One frozen dataclass per stage: the options of the command line and of the library, their defaults and limits.

Free of torch, so that `headgraft --help` starts at once and both entry points share every default.
"""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from cache.layout import LARGEST_SIDE, MOST_PASSES
from pipeline.basis_name import BasisName
from pipeline.options import (
    ClusterConfig,
    check_computing,
    check_device,
    check_training,
    check_tta,
    require,
    require_count,
    require_number,
    take_texts_as_paths,
)

CLASS_WEIGHTS = ("none", "balanced")
CLASS_PRIORS = ("none", "train", "uniform")
METRICS = ("top1", "mean-per-class")
SEARCHES = ("random", "grid", "optuna")
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 20, 100  # of a head whose epochs are not given: measured, docs/performance.md
REDUCED_BASIS = "full"  # of a head on rows that are reduced already

# Beyond these, a number is a slip of the hand; without them it would end in an overflow or the machine's memory.
LARGEST_SEED = (1 << 32) - 1  # seeds.py counts on it
_EXTRACT_BOUNDS = {
    "passes": (0, MOST_PASSES),
    "image_size": (32, LARGEST_SIDE),
    "seed": (0, LARGEST_SEED),
    "split_seed": (0, LARGEST_SEED),
    "batch_size": (1, 4096),
    "workers": (0, 256),
    "threads": (1, 1024),
    "unit_rows": (1, 1_000_000),
}
_HEAD_BOUNDS = {"hidden": (0, 1 << 16), "batch_size": (1, 1 << 20)}
TRAIN_BOUNDS = {
    "passes": (0, MOST_PASSES),
    "epochs": (1, 100_000),
    "seed": (0, LARGEST_SEED),
}
_SWEEP_BOUNDS = {**TRAIN_BOUNDS, "heads": (1, 100_000), "seeds": (1, 100)}


@dataclass(frozen=True)
class ExtractConfig(ClusterConfig):
    """Stage one. `passes` augmented views per training image; `image_size` in pixels; None counts are chosen.

    `shard_of` i/n computes the i-th of n parts alone, beside others that compute theirs; `finish` indexes what
    they have computed, and computes nothing; `hash_only` comes before them, so that each need not hash all. Workers of
    a cluster are handed `unit_rows` at once, which are lost with them. `grey_range` is the value of 16-bit grey that
    becomes white, or "auto"; None for 65535.
    """

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
    grey_range: str | None = None
    skip_bad: bool = False
    dry_run: bool = False
    shard_of: str | None = None
    finish: bool = False
    hash_only: bool = False
    unit_rows: int | None = None

    def __post_init__(self) -> None:
        take_texts_as_paths(self)
        super().__post_init__()
        check_computing(self.precision, self.device)
        for name, (least, most) in _EXTRACT_BOUNDS.items():
            require_count(name, getattr(self, name), least, most)
        grey = self.grey_range
        known = grey in (None, "auto") or (str(grey).isdecimal() and 255 <= int(str(grey)) <= 65535)
        require(
            known, f"--grey-range is {grey!r}, expected auto or a value from 255 to 65535, such as 4095 for 12 bits"
        )
        _ = self.part  # which checks it
        require(self.unit_rows is None or self.engine == "ray", "--unit-rows is for --engine ray: add that")
        alone = self.hash_only and (self.finish or self.shard_of or self.dry_run)
        require(not alone, "--hash-only goes before all others: leave out --shard-of, --finish and --dry-run")
        require(not (self.finish and self.shard_of), "--finish and --shard-of: parts first, then --finish without them")

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n): the i-th of n parts, from 1; None for all of it."""
        if self.shard_of is None:
            return None
        found = re.fullmatch(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})", self.shard_of)
        number, parts = (int(found[1]), int(found[2])) if found else (1, 0)
        require(number <= parts, f"--shard-of is {self.shard_of!r}, expected i/n with i from 1 to n, such as 3/8")
        return number, parts


@dataclass(frozen=True)
class HeadSettings:
    """One head, Linear(D, hidden) to Linear(hidden, C), and how it is trained: what a sweep varies.

    The head is trained in `basis`; `class_weights` balanced has every class weigh the same in the loss.
    """

    basis: str = "pyramid+white"
    hidden: int = 512
    dropout: float = 0.5
    lr: float = 1e-3
    batch_size: int = 128
    weight_decay: float = 0.0
    class_weights: str = "none"

    def __post_init__(self) -> None:
        for name, (least, most) in _HEAD_BOUNDS.items():
            require_count(name, getattr(self, name), least, most, optional=False)
        require_number("dropout", self.dropout, lambda value: 0 <= value < 1, "0 or more and under 1")
        require_number("lr", self.lr, lambda value: 0 < value < math.inf, "a number above 0")
        require_number("weight_decay", self.weight_decay, lambda value: 0 <= value < math.inf, "0 or more")
        known = ", ".join(CLASS_WEIGHTS)
        require(self.class_weights in CLASS_WEIGHTS, f"--class-weights is {self.class_weights!r}, expected {known}")
        BasisName.parse(self.basis)


@dataclass(frozen=True)
class TrainConfig:
    """Stage two, one head of `HeadSettings`.

    `basis` None is `HeadSettings.basis`, or on a reduced cache `REDUCED_BASIS`; None `epochs` make some `STEPS` steps.
    `passes` None takes every pass the cache has whole for the set.
    `memory`, in GB, is what rows may take; None is half of what is free. More rows than that are read in each epoch.
    """

    cache: Path
    run: Path
    set: str | None = None
    passes: int | None = None
    hidden: int = HeadSettings.hidden
    dropout: float = HeadSettings.dropout
    lr: float = HeadSettings.lr
    epochs: int | None = None
    batch_size: int = HeadSettings.batch_size
    weight_decay: float = HeadSettings.weight_decay
    class_weights: str = HeadSettings.class_weights
    basis: str | None = None
    seed: int = 0
    memory: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_training(self, TRAIN_BOUNDS)
        _ = self.settings  # which checks them

    @property
    def settings(self) -> HeadSettings:
        """What is said of the head."""
        said = {field.name: getattr(self, field.name) for field in fields(HeadSettings)}
        return HeadSettings(**{**said, "basis": self.basis or HeadSettings.basis})


@dataclass(frozen=True)
class SweepConfig(ClusterConfig):
    """Stage two, many heads: `heads` of a space, found by `search`, each for up to `epochs`.

    `space` is a TOML file, None the default space. The default head, and one in each basis, are among the heads. With
    `halving`, the worst of the others are stopped early. `time_limit`, in seconds, ends the search. The best head by
    `choose_by` and the default head are retrained with `seeds` seeds. The better one is kept, of the first of these
    seeds or, with `merge`, all as one head. The search runs on `device`, the rest on the CPU.
    """

    cache: Path
    run: Path
    set: str | None = None
    passes: int | None = None
    heads: int = 64
    epochs: int | None = None
    time_limit: float | None = None
    space: Path | None = None
    search: str = "random"
    halving: bool = True
    choose_by: str = "top1"
    seeds: int = 5
    merge: bool = False
    device: str = "auto"
    seed: int = 0
    memory: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_training(self, _SWEEP_BOUNDS)
        super().__post_init__()
        check_device(self.device)
        limit = self.time_limit
        require(limit is None or 0 < limit < float("inf"), f"--time-limit is {limit}, expected seconds above 0")
        metrics = ", ".join(METRICS)
        require(self.choose_by in METRICS, f"--choose-by is {self.choose_by!r}, expected one of {metrics}")
        require(self.search in SEARCHES, f"--search is {self.search!r}, expected one of {', '.join(SEARCHES)}")
        last = self.seed + self.seeds
        require(last <= LARGEST_SEED, f"--seed is {self.seed}, and {self.seeds} more follow: at most {LARGEST_SEED:,}")


@dataclass(frozen=True)
class ReduceConfig:
    """Cache → a smaller one, `out`, of rows in `basis`, fitted on the training rows of `set` with all its passes.

    What that costs is measured on validation, with heads of `seeds` seeds on either; 0 does not measure.
    """

    cache: Path
    out: Path
    basis: str = "pyramid+pca:512"
    set: str | None = None
    seeds: int = 3
    memory: float | None = None

    def __post_init__(self) -> None:
        check_training(self, {"seeds": (0, 100)})
        require(
            BasisName.parse(self.basis) != BasisName("full"),
            "--basis full reduces nothing: choose another, such as pyramid+pca:512",
        )


@dataclass(frozen=True)
class ExportConfig:
    """Run → one model file. `cache` and `data` None: where the run and its set recorded them.

    With `test`, the calibration error of the test images is computed too, and the run records that. With `tta` "flip",
    a temperature for predicting with it is fitted on the validation images, which the backbone sees both ways.
    With `class_prior` the probabilities are those for classes as frequent as in training, or all equally; "none" leaves
    them as the head was trained.
    """

    run: Path
    model: Path
    cache: Path | None = None
    data: Path | None = None
    names: Path | None = None
    onnx: Path | None = None
    calibrate: bool = True
    test: bool = False
    tta: str = "none"
    class_prior: str = "none"
    overwrite: bool = False

    def __post_init__(self) -> None:
        take_texts_as_paths(self)
        check_tta(self.tta)
        for option, asked in (("--test", self.test), ("--tta flip", self.tta == "flip")):
            require(
                self.calibrate or not asked, f"{option} needs the temperature: leave out --no-calibrate or {option}"
            )
        known = ", ".join(CLASS_PRIORS)
        require(self.class_prior in CLASS_PRIORS, f"--class-prior is {self.class_prior!r}, expected {known}")


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores of one split: of a run from the cache, of a model from image files in `data`; `tta` as for predicting."""

    target: Path
    data: Path | None = None
    cache: Path | None = None
    split: str = "test"
    precision: str = "auto"
    device: str = "auto"
    tta: str = "none"

    def __post_init__(self) -> None:
        take_texts_as_paths(self)
        check_computing(self.precision, self.device)
        check_tta(self.tta)
        require(self.split in ("train", "valid", "test"), f"--split is {self.split!r}, expected train, valid or test")


@dataclass(frozen=True)
class ReportConfig:
    """Run → one page, `report.html` in its folder or `output`; `cache` and `data` None: where they were."""

    run: Path
    output: Path | None = None
    cache: Path | None = None
    data: Path | None = None
    names: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        take_texts_as_paths(self)


@dataclass(frozen=True)
class PredictConfig:
    """Image files → the `top_k` most probable classes; `images` are files, folders, globs, or `-` for standard input.

    With `tta` "flip", each image is seen as it is and mirrored, and the probabilities are averaged.
    """

    model: Path
    images: tuple[str, ...]
    top_k: int = 5
    names: Path | None = None
    precision: str = "auto"
    device: str = "auto"
    tta: str = "none"

    def __post_init__(self) -> None:
        take_texts_as_paths(self)
        check_computing(self.precision, self.device)
        check_tta(self.tta)
        require(self.top_k >= 1, f"--top-k is {self.top_k}, expected 1 or more")


@dataclass(frozen=True)
class ServeConfig:
    """A model over HTTP on `host` and `port`. The limits are of a request, `max_waiting` is images of all requests."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    precision: str = "auto"
    device: str = "auto"
    max_mb: float = 32.0
    max_files: int = 16
    max_megapixels: float = 50.0
    max_waiting: int = 128

    def __post_init__(self) -> None:
        take_texts_as_paths(self)
        check_computing(self.precision, self.device)
        for name, least, most in (("port", 0, 65535), ("max_files", 1, 10_000), ("max_waiting", 1, 100_000)):
            require_count(name, getattr(self, name), least, most)
        for name in ("max_mb", "max_megapixels"):
            require(
                0 < getattr(self, name) <= 1000,
                f"--{name.replace('_', '-')} is {getattr(self, name)}, expected above 0",
            )
