"""One frozen dataclass per command: its arguments, and its options with their defaults, help, choices and limits.

The command line takes its options from these fields, and the library its own. Free of torch, so that
`headgraft --help` starts at once.
"""

import re
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path

from cache.layout import LARGEST_SIDE, MOST_PASSES
from pipeline.basis_name import BasisName
from pipeline.options import (
    DEVICES,
    PRECISIONS,
    TTA,
    Checked,
    ClusterConfig,
    check_capture,
    option,
    option_of,
    require,
    required,
)

CLASS_WEIGHTS = ("none", "balanced")
CLASS_PRIORS = ("none", "train", "uniform")
METRICS = ("top1", "mean-per-class")
SEARCHES = ("random", "grid", "optuna")
SPLITS = ("train", "valid", "test")
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 20, 100  # of a head whose epochs are not given: measured, docs/performance.md
WIDEST = 8192  # features whose covariance is held and decomposed
VECTOR_BASIS = "full+white"  # of a head on rows that are no map
POOLED_BASIS = "pool+white"  # on maps of so many channels that a pyramid is wider than that
REDUCED_BASIS = "full"  # on rows that are reduced already

# Beyond a limit, a number is a slip of the hand; it would end in an overflow or take all of the memory.
LARGEST_SEED = (1 << 32) - 1  # seeds.py counts on it
_MOST_GB = 10**9


@dataclass(frozen=True)
class ExtractConfig(ClusterConfig):
    """Stage one, of images in `data`.

    Parts of it (`shard_of`) compute beside one another; `hash_only` comes before them, so that each need not hash all
    images, and `finish` after them. Workers of a cluster are handed `unit_rows` at once, which are lost with them.
    """

    data: Path
    cache: Path = field(metadata=required("Folder of the feature cache."))
    set: str | None = option(None, "Name of the image set.  [default: last component of DATA]")
    passes: int = option(0, "Number of augmented passes over the training images.", least=0, most=MOST_PASSES)
    backbone: str = option("vgg16", "Network of torchvision, such as resnet50, or timm/ and one of timm.")
    layer: str | None = option(
        None,
        "Layer of the rows: avgpool, pooled, map, cls, mean, cls+mean, cls4+mean, tokens.  [default: by backbone]",
    )
    weights: str | None = option(
        None, "Name of the weights, their file, or the folder of a timm model.  [default: ImageNet]"
    )
    image_size: int | None = option(
        None, "Input size of the backbone in pixels.  [default: that of its weights]", least=32, most=LARGEST_SIDE
    )
    seed: int = option(0, "Random seed of the augmented passes.", least=0, most=LARGEST_SEED)
    split_seed: int = option(0, "Random seed of the split, where DATA has none.", least=0, most=LARGEST_SEED)
    group_by: str | None = option(
        None, "Regular expression on paths: images of the same first capture are one group.", metavar="REGEX"
    )
    unlabelled: bool = option(False, "Add the images of the folder DATA, at any depth, to the set without labels.")
    precision: str = option("auto", "Compute precision of the backbone.", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone.", choices=DEVICES)
    batch_size: int | None = option(None, "Images per batch.  [default: 8; 256 on a GPU]", least=1, most=4096)
    workers: int | None = option(
        None,
        "Decoding threads; 0 = decode in the main thread.  [default: half of the CPUs]",
        least=0,
        most=256,
    )
    threads: int | None = option(None, "Compute threads.  [default: all CPUs]", least=1, most=1024)
    grey_range: str | None = option(
        None,
        "White level of 16-bit grey images, or auto; 4095 for 12-bit data.  [default: 65535]",
        metavar="MAX|auto",
    )
    skip_bad: bool = option(False, "Skip undecodable files (they are recorded) instead of failing.")
    dry_run: bool = option(False, "Print the plan and the time of a pass, and exit; weights are fetched.")
    shard_of: str | None = option(None, "i/n: compute part i of n; other processes compute the others.")
    hash_only: bool = option(False, "Hash the images once, before the parts; compute nothing.")
    finish: bool = option(False, "Write the index after all parts are computed; compute nothing.")
    _: KW_ONLY
    unit_rows: int | None = option(
        None, "Rows per unit of work (Ray).  [default: up to 128; 1000 with a GPU]", least=1, most=1_000_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        grey = self.grey_range
        known = grey in (None, "auto") or (str(grey).isdecimal() and 255 <= int(str(grey)) <= 65535)
        require(
            known, f"--grey-range is {grey!r}, expected auto or a value from 255 to 65535, such as 4095 for 12 bits"
        )
        if self.group_by is not None:
            check_capture("--group-by", self.group_by)
        grouped = self.unlabelled and self.group_by is not None
        require(not grouped, "--group-by is for images with labels: leave out --unlabelled or --group-by")
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
class HeadSettings(Checked):
    """One head, Linear(D, hidden) to Linear(hidden, C), or Linear(D, C) with `hidden` 0: what a sweep varies."""

    basis: str = option("pyramid+white", "Basis the head is trained in.")
    hidden: int = option(512, "Hidden units; 0 = logistic regression.", least=0, most=1 << 16)
    dropout: float = option(0.5, "Dropout probability.", least=0, below=1)
    lr: float = option(1e-3, "Initial learning rate of the cosine schedule.", above=0)
    batch_size: int = option(128, "Images per step.", least=1, most=1 << 20)
    weight_decay: float = option(0.0, "Weight decay of AdamW.", least=0)
    class_weights: str = option("none", "balanced: weight loss by inverse class frequency.", choices=CLASS_WEIGHTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        BasisName.parse(self.basis)


@dataclass(frozen=True)
class _TrainingConfig(Checked):
    """What one head and a sweep are asked alike: from where, into which run, on which rows."""

    cache: Path = field(metadata=required("Folder of the feature cache."))
    run: Path = field(metadata=required("Folder of the run: the trained head and its records."))
    set: str | None = option(None, "Image set.  [default: the only one]")
    passes: int | None = option(
        None, "Augmented passes to train on.  [default: all complete passes]", least=0, most=MOST_PASSES
    )
    memory: float | None = option(
        None, "Memory for features in GB; more is streamed.  [default: half of free RAM]", above=0, most=_MOST_GB
    )
    refit: bool = option(False, "Retrain the final head on training and validation images.")


def scored_by(folds: int) -> str:
    """What kind of accuracy the figures of a head are, that was chosen over so many folds, or by validation (0)."""
    return "out-of-fold" if folds else "validation"


class WithHead:
    """A config that has the fields of `HeadSettings`, of which the basis may be None."""

    basis: str | None

    @property
    def settings(self) -> HeadSettings:
        """The head's hyper-parameters."""
        found = {field.name: getattr(self, field.name) for field in fields(HeadSettings)}
        return HeadSettings(**{**found, "basis": self.basis or HeadSettings.basis})


@dataclass(frozen=True)
class TrainConfig(_TrainingConfig, WithHead):
    """Stage two, one head of `HeadSettings`."""

    hidden: int = option_of(HeadSettings, "hidden")
    dropout: float = option_of(HeadSettings, "dropout")
    lr: float = option_of(HeadSettings, "lr")
    epochs: int | None = option(
        None, f"Epochs.  [default: about 1,000 steps, {FEWEST_EPOCHS} to {MOST_EPOCHS} epochs]", least=1, most=100_000
    )
    batch_size: int = option_of(HeadSettings, "batch_size")
    weight_decay: float = option_of(HeadSettings, "weight_decay")
    class_weights: str = option_of(HeadSettings, "class_weights")
    basis: str | None = option(
        None,
        "full, pool, pyramid, cls or mean, then +white[:G], then +pca:R, +lda[:G] or +lda[:G]+pca:R.  "
        f"[default: {HeadSettings.basis} of maps, {VECTOR_BASIS} of vectors; on a reduced cache {REDUCED_BASIS}]",
    )
    seed: int = option(0, "Random seed of weights, shuffling and dropout.", least=0, most=LARGEST_SEED)
    overwrite: bool = option(False, "Overwrite an existing run.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.settings  # which checks them


@dataclass(frozen=True)
class SweepConfig(ClusterConfig, _TrainingConfig):
    """Stage two, many heads of a search space, the default head and one in each basis among them.

    The best head and the default head are retrained with `seeds` seeds, on the CPU. The better one is kept, of the
    first of these seeds or, with `merge`, all as one head.
    """

    heads: int = option(64, "Number of heads to try.", least=1, most=100_000)
    epochs: int | None = option(
        None, "Epochs of a head that is not stopped early.  [default: as for train-head]", least=1, most=100_000
    )
    time_limit: float | None = option(None, "Seconds until the search ends; the best head so far is chosen.", above=0)
    space: Path | None = option(None, "TOML file of the search space.  [default: bases, dropout, rates, decay]")
    search: str = option("random", "Search strategy.", choices=SEARCHES)
    halving: bool = option(True, "Stop the worst heads early (successive halving).")
    choose_by: str = option("top1", "Validation metric that decides.", choices=METRICS)
    seeds: int = option(5, "Retrain the best head, and the default one, with this many seeds.", least=1, most=100)
    device: str = option("auto", "Device of the search.", choices=DEVICES)
    merge: bool = option(False, "Merge the heads of all seeds into one head (mean of their logits).")
    folds: int = option(
        0, "Choose over this many folds, and train the choice on all of them; 0 = by validation.", least=0, most=100
    )
    group_near_duplicates: bool = option(False, "Keep near-duplicates in one fold (with --folds).")
    _: KW_ONLY
    seed: int = option(0, "Random seed of the search and its heads.", least=0, most=LARGEST_SEED)
    overwrite: bool = option(False, "Overwrite an existing run.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.folds) or not self.group_near_duplicates, "--group-near-duplicates is for --folds: add that")
        require(self.folds != 1, "--folds is 1, expected 2 to 100, or 0")
        require(not (self.folds and self.refit), "--folds trains the choice on all images: leave out --refit")
        last = self.seed + self.seeds
        require(last <= LARGEST_SEED, f"--seed is {self.seed}, and {self.seeds} more follow: at most {LARGEST_SEED:,}")

    @property
    def scored_by(self) -> str:
        """What kind of accuracy heads are compared by."""
        return scored_by(self.folds)


@dataclass(frozen=True)
class CompareConfig(Checked):
    """Backbones by the caches of one image set, `caches`: the default head is trained on each, with the same seeds."""

    caches: tuple[Path, ...] = field(metadata={"metavar": "CACHE..."})
    set: str | None = option_of(_TrainingConfig, "set")
    passes: int | None = option(
        None, "Augmented passes to train on.  [default: all that every cache has]", least=0, most=MOST_PASSES
    )
    seeds: int = option(3, "Number of heads trained on each cache.", least=1, most=100)
    memory: float | None = option_of(_TrainingConfig, "memory")
    svg: Path | None = option(None, "Path of an SVG file to write: accuracy against extraction time.")
    overwrite: bool = option(False, "Overwrite an existing file at --svg.")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "caches", tuple(map(Path, self.caches)))
        require(len(self.caches) > 1, f"one cache, {self.caches[0]}, compares with nothing: name two or more")
        known: dict[Path, Path] = {}
        for cache in self.caches:
            same = known.setdefault(cache.resolve(), cache)
            require(same is cache, f"{cache} is the same cache as {same}: name each once")


@dataclass(frozen=True)
class ReduceConfig(Checked):
    """Cache → a smaller one, of rows in a basis that is fitted on the training rows of a set with all its passes."""

    cache: Path
    out: Path = field(metadata=required("Folder of the reduced cache."))
    basis: str = option("pyramid+pca:512", "Basis: pool or pyramid, then +white[:G], +pca:R or +lda[:G].")
    set: str | None = option(None, "Image set the basis is fitted on.  [default: the only one]")
    seeds: int = option(
        3, "Number of heads trained on both caches to measure the loss of accuracy; 0 = off.", least=0, most=100
    )
    memory: float | None = option(
        None, "Memory for features in GB.  [default: half of free RAM]", above=0, most=_MOST_GB
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        reduces = BasisName.parse(self.basis) != BasisName("full")
        require(reduces, "--basis full reduces nothing: choose another, such as pyramid+pca:512")


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Run → one model file."""

    run: Path
    model: Path
    cache: Path | None = option(None, "Folder of the feature cache.  [default: the path recorded in the run]")
    data: Path | None = option(None, "Folder of the images.  [default: the path recorded in the cache]")
    names: Path | None = option(None, "JSON file of display names by class.")
    onnx: Path | None = option(None, "Path of an ONNX file to write as well, verified against the model.")
    without_backbone: bool = option(
        False, "Write the head alone; the model opens where the weights are beside it or fetched."
    )
    calibrate: bool = option(
        True, "Temperature scaling, fitted on the validation images and folded into the last layer."
    )
    test: bool = option(False, "Also compute the calibration error of the test images; recorded as a test evaluation.")
    tta: str = option("none", "flip: also fit a temperature for predictions with --tta flip.", choices=TTA)
    max_error: float | None = option(
        None,
        "Fraction of answers that may be wrong; the model does not answer where it is less sure.",
        above=0,
        below=1,
    )
    confidence: float = option(0.95, "Confidence that --max-error holds.", above=0, below=1)
    sets: float | None = option(
        None, "Coverage of prediction sets: fraction of images whose set holds the true class.", above=0, below=1
    )
    unknown: bool = option(True, "Detector of images of none of the classes, and its AUROC on classes left out.")
    false_alarms: float = option(0.01, "Fraction of known images that the detector may flag.", above=0, below=1)
    memory: float | None = option_of(_TrainingConfig, "memory")
    class_prior: str = option(
        "none",
        "Class frequencies to correct probabilities for: train, uniform, or none (as trained).",
        choices=CLASS_PRIORS,
    )
    overwrite: bool = option(False, "Overwrite an existing model.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, asked in (("--test", self.test), ("--tta flip", self.tta == "flip")):
            possible = self.calibrate or not asked
            require(possible, f"{flag} needs the temperature: leave out --no-calibrate or {flag}")
        alarms = self.unknown or self.false_alarms == type(self).false_alarms
        require(alarms, "--false-alarms is for the detector: leave out --no-unknown or --false-alarms")
        asked = self.max_error is not None or self.confidence == type(self).confidence
        require(asked, "--confidence is for --max-error: add that, or leave it out")


@dataclass(frozen=True)
class EvaluateConfig(Checked):
    """Scores of one split: of a run from its cache, of a model from image files in `data`."""

    target: Path = field(metadata={"metavar": "RUN_OR_MODEL"})
    data: Path | None = None
    cache: Path | None = option(None, "Folder of the feature cache.  [default: the path recorded in the run]")
    split: str = option("test", "Split to score.", choices=SPLITS)
    precision: str = option("auto", "Compute precision of the backbone (models only).", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone (models only).", choices=DEVICES)
    tta: str = option("none", "Test-time augmentation (models only); flip: average with the mirror image.", choices=TTA)


@dataclass(frozen=True)
class ReportConfig(Checked):
    """Run → one page."""

    run: Path
    output: Path | None = option(None, "Path of the page.  [default: report.html in RUN]")
    cache: Path | None = option(None, "Folder of the feature cache.  [default: the path recorded in the run]")
    data: Path | None = option(None, "Folder of the images.  [default: the path recorded in the cache]")
    names: Path | None = option(None, "JSON file of display names by class.")
    overwrite: bool = option(False, "Overwrite an existing file at --output.")


@dataclass(frozen=True)
class PredictConfig(Checked):
    """Image files → classes; `images` are files, folders, globs, or `-` for a list on standard input."""

    model: Path
    images: tuple[str, ...] = field(metadata={"metavar": "IMAGE..."})
    top_k: int = option(5, "Number of classes per image.", least=1)
    names: Path | None = option(None, "JSON file of display names by class.")
    precision: str = option("auto", "Compute precision of the backbone.", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone.", choices=DEVICES)
    tta: str = option("none", "Test-time augmentation; flip: average with the mirror image.", choices=TTA)
    explain: Path | None = option(
        None, "New folder of pictures: which cells speak for the class rather than the runner-up.", metavar="DIR"
    )
    drift: Path | None = option(
        None, "Path of an SVG file to write: p-values of the images, as a curve.", metavar="SVG"
    )


@dataclass(frozen=True)
class LabelConfig(Checked):
    """A page to label and correct the images of a set. `run` is what its button Finish writes."""

    cache: Path = field(metadata=required("Folder of the feature cache."))
    set: str | None = option_of(_TrainingConfig, "set")
    run: Path | None = option(None, "Folder of the run that Finish writes.  [default: runs/labelled, then -2, -3]")
    overwrite: bool = option(False, "Overwrite an existing run.")
    data: Path | None = option_of(ReportConfig, "data")
    names: Path | None = option_of(ReportConfig, "names")
    memory: float | None = option(
        None, "Memory for features in GB.  [default: half of free RAM]", above=0, most=_MOST_GB
    )
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8001, "Port to listen on.", least=0, most=65535)


@dataclass(frozen=True)
class ServeConfig(Checked):
    """A model over HTTP. `max_waiting` counts images of all requests, the other limits are of one."""

    model: Path
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8000, "Port to listen on.", least=0, most=65535)
    precision: str = option("auto", "Compute precision of the backbone.", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone.", choices=DEVICES)
    max_mb: float = option(32.0, "Maximum size of a request in MB.", above=0, most=1000)
    max_files: int = option(16, "Maximum number of files per request.", least=1, most=10_000)
    max_megapixels: float = option(50.0, "Maximum size of an image in megapixels.", above=0, most=1000)
    max_waiting: int = option(
        128, "Maximum number of queued images; further requests get status 503.", least=1, most=100_000
    )
