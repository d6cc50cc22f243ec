"""What is asked of a trained head and of the model it becomes: scores, report, export, predictions, service, labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.heads import TrainConfig
from pipeline.config.options import (
    DEVICES,
    MOST_GB,
    PRECISIONS,
    TTA,
    Checked,
    argument,
    option,
    option_of,
    require,
    required,
)

CLASS_PRIORS = ("none", "train", "uniform")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Run → one model file."""

    run: Path = field(metadata=argument("Folder of the run."))
    model: Path = field(metadata=argument("Path of the model file to write."))
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
    memory: float | None = option_of(TrainConfig, "memory")
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

    target: Path = field(metadata=argument("Folder of a run, or path of a model file.", "RUN_OR_MODEL"))
    data: Path | None = field(default=None, metadata=argument("Images to score a model on; a run has its own."))
    cache: Path | None = option(None, "Folder of the feature cache.  [default: the path recorded in the run]")
    split: str = option("test", "Split to score.", choices=SPLITS)
    precision: str = option("auto", "Compute precision of the backbone (models only).", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone (models only).", choices=DEVICES)
    tta: str = option("none", "Test-time augmentation (models only); flip: average with the mirror image.", choices=TTA)
    seeds: int = option(
        1, "Score heads of this many seeds, the others retrained like the run's (runs only).", least=1, most=100
    )


@dataclass(frozen=True)
class ReportConfig(Checked):
    """Run → one page."""

    run: Path = field(metadata=argument("Folder of the run."))
    output: Path | None = option(None, "Path of the page.  [default: report.html in RUN]")
    cache: Path | None = option(None, "Folder of the feature cache.  [default: the path recorded in the run]")
    data: Path | None = option(None, "Folder of the images.  [default: the path recorded in the cache]")
    names: Path | None = option(None, "JSON file of display names by class.")
    overwrite: bool = option(False, "Overwrite an existing file at --output.")


@dataclass(frozen=True)
class PredictConfig(Checked):
    """Image files → classes; `images` are files, folders, globs, or `-` for a list on standard input."""

    model: Path = field(metadata=argument("Path of the model file."))
    images: Sequence[str | Path] = field(
        metadata=argument("Image files, folders, globs, or - for a list on standard input.", "IMAGE...")
    )
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

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.images] if isinstance(self.images, str | Path) else self.images
        object.__setattr__(self, "images", tuple(map(str, given)))


@dataclass(frozen=True)
class LabelConfig(Checked):
    """A page to label and correct the images of a set. `run` is what its button Finish writes."""

    cache: Path = field(metadata=required("Folder of the feature cache."))
    set: str | None = option_of(TrainConfig, "set")
    run: Path | None = option(None, "Folder of the run that Finish writes.  [default: runs/labelled, then -2, -3]")
    overwrite: bool = option(False, "Overwrite an existing run.")
    data: Path | None = option_of(ReportConfig, "data")
    names: Path | None = option_of(ReportConfig, "names")
    memory: float | None = option(
        None, "Memory for features in GB.  [default: half of free RAM]", above=0, most=MOST_GB
    )
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(8001, "Port to listen on.", least=0, most=65535)


@dataclass(frozen=True)
class ServeConfig(Checked):
    """A model over HTTP. `max_waiting` counts images of all requests, the other limits are of one."""

    model: Path = field(metadata=argument("Path of the model file."))
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
