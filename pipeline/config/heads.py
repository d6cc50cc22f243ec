"""What is asked of heads: their settings, and the commands that train them from a cache."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path

from cache.layout import MOST_PASSES
from pipeline.basis_name import BasisName
from pipeline.config.options import (
    DEVICES,
    LARGEST_SEED,
    MOST_GB,
    Checked,
    ClusterConfig,
    argument,
    option,
    option_of,
    require,
    required,
)

CLASS_WEIGHTS = ("none", "balanced")
METRIC_NAMES = {"top1": "accuracy", "mean-per-class": "mean accuracy per class"}
METRICS = tuple(METRIC_NAMES)
SEARCHES = ("random", "grid", "optuna")
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 20, 100  # of a head whose epochs are not given: measured, docs/performance.md
WIDEST = 8192  # features whose covariance is held and decomposed
VECTOR_BASIS = "full+white"  # of a head on rows that are no map
POOLED_BASIS = "pool+white"  # on maps of so many channels that a pyramid is wider than that
REDUCED_BASIS = "full"  # on rows that are reduced already


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
        None, "Memory for features in GB; more is streamed.  [default: half of free RAM]", above=0, most=MOST_GB
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

    caches: Sequence[Path] = field(metadata=argument("Folders of the caches, two or more.", "CACHE..."))
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

    cache: Path = field(metadata=argument("Folder of the feature cache."))
    out: Path = field(metadata=required("Folder of the reduced cache."))
    basis: str = option("pyramid+pca:512", "Basis: pool or pyramid, then +white[:G], +pca:R or +lda[:G].")
    set: str | None = option(None, "Image set the basis is fitted on.  [default: the only one]")
    seeds: int = option(
        3, "Number of heads trained on both caches to measure the loss of accuracy; 0 = off.", least=0, most=100
    )
    memory: float | None = option(
        None, "Memory for features in GB.  [default: half of free RAM]", above=0, most=MOST_GB
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        reduces = BasisName.parse(self.basis) != BasisName("full")
        require(reduces, "--basis full reduces nothing: choose another, such as pyramid+pca:512")
