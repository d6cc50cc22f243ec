"""Scores of one split: of a run from the cache, of a model from image files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache import layout
from cache.index import SetIndex, SkippedImage
from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone
from pipeline.bases.rows import label_tensor
from pipeline.bundle import Bundle, load_bundle
from pipeline.config import EvaluateConfig
from pipeline.console import Say, silent
from pipeline.errors import ConfigError, DecodeError, PipelineError, RunError
from pipeline.inputs.images import ImageSet
from pipeline.inputs.names import resembling
from pipeline.machine.device import available_cpus, resolve_device
from pipeline.model.calibration import error_of, floor_of
from pipeline.predict import also_mirrored, bundle_precision
from pipeline.reporting.intervals import accuracies
from pipeline.run import JOURNAL_FILE, RUN_FILE, Run


@dataclass
class EvaluateResult:
    """The fields of the command's JSON: fractions over `images` files of `classes` classes; `ece` over 15 equal bins.

    `ece_floor` is what it would be on average if the probabilities were right.
    `top5` is None with five classes or fewer. `intervals` has (low, high) of each accuracy, 95 % over images.
    """

    images: int
    classes: int
    split: str
    top1: float
    top5: float | None
    mean_per_class: float
    ece: float
    ece_floor: float
    intervals: dict[str, tuple[float, float]]


def evaluate(config: EvaluateConfig, say: Say = silent) -> EvaluateResult:
    """Score a run folder from its cache, or a model file on the images of `data`."""
    torch.set_num_threads(available_cpus())
    if any((config.target / name).is_file() for name in (RUN_FILE, JOURNAL_FILE)):
        _refuse_unused(config, "a run is scored from its cache", ("data", "precision", "device", "tta"))
        return _evaluate_run(config, say)
    if not config.target.is_file():
        found = f"holds no {RUN_FILE}" if config.target.is_dir() else "is no regular file"
        found = found if config.target.exists() else "does not exist"
        raise RunError(f"{config.target} {found}: expected a run folder or a model file")
    _refuse_unused(config, "a model is scored on image files", ("cache",))
    return _evaluate_model(config, say)


def _refuse_unused(config: EvaluateConfig, why: str, unused: tuple[str, ...]) -> None:
    """ConfigError for an option that this kind of target makes no use of."""
    for field in fields(config):
        if field.name in unused and getattr(config, field.name) != field.default:
            option = "DATA" if field.name == "data" else f"--{field.name}"
            raise ConfigError(f"{option} is not for {config.target}: {why}; leave it out")


def _evaluate_run(config: EvaluateConfig, say: Say) -> EvaluateResult:
    run = Run.load(config.target)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record["set"])
    images = index.split(config.split)
    if not images:
        raise RunError(f"set {index.name!r} has no {config.split} images")
    groups = [image.digest for image in images]
    result = score(*log_probs_of_split(run, cache, index, config.split), config.split, groups)
    run.add_scores([as_record(result)], say)
    return result


def log_probs_of_split(run: Run, cache: FeatureCache, index: SetIndex, split: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, C) of the clean views of a split's files, and their labels (N,)."""
    images = index.split(split)
    log_probs = torch.empty(len(images), len(run.classes))
    with torch.inference_mode():
        for positions, block in cache.blocks([(image.key, layout.CLEAN_VIEW) for image in images]):
            log_probs[torch.from_numpy(positions)] = run.head(run.basis.apply(block))
    return log_probs, label_tensor(index, images)


def as_record(result: EvaluateResult) -> dict[str, Any]:
    """Every look at a split is on a run's record: a split looked at often is no longer a test."""
    return {**asdict(result), "when": datetime.now(UTC).isoformat(timespec="seconds")}


def _evaluate_model(config: EvaluateConfig, say: Say) -> EvaluateResult:
    bundle = load_bundle(config.target)
    if config.data is None:
        raise ConfigError(f"{config.target} is a model, and holds no place of images: name DATA, what to score it on")
    data = config.data
    images = ImageSet.scan(data, bundle.card["split_seed"], bool(bundle.card["skipped"]), bundle.classes, say=say)
    _refuse_other_split(bundle, images)
    chosen = [image for image in images.images if image.split == config.split]
    unknown = sorted({image.label for image in chosen} - set(bundle.classes))
    if unknown or not chosen:
        found = "no images"
        if unknown:
            first = f"{unknown[0]!r}{resembling(unknown[0], bundle.classes)}"
            found = f"classes the model does not know, the first {first}"
        raise PipelineError(f"{config.split} of {data} has {found}; name the data the model was trained for")
    device = resolve_device(config.device)
    backbone = bundle.backbone(device, bundle_precision(bundle, config.precision, device, say))
    paths = [images.root / image.path for image in chosen]
    log_probs = log_probs_of_files(bundle, backbone, paths, also_mirrored(bundle, config.tta, say))
    place = {name: number for number, name in enumerate(bundle.classes)}
    labels = torch.tensor([place[image.label] for image in chosen])
    return score(log_probs, labels, config.split, [image.digest for image in chosen])


def log_probs_of_files(bundle: Bundle, backbone: Backbone, paths: list[Path], mirrored: bool) -> Tensor:
    """As `Bundle.log_probs`, (N, C) of all files; DecodeError names those that cannot be decoded."""
    log_probs, failed = bundle.log_probs(backbone, paths, mirrored)
    if failed:
        lines = "\n".join(f"  {paths[place]}: {reason}" for place, reason in failed.items())
        raise DecodeError(f"{len(failed)} of {len(paths)} images cannot be decoded:\n{lines}\nMend or remove them.")
    return log_probs


def _refuse_other_split(bundle: Bundle, images: ImageSet) -> None:
    """Data that has no splits of its own is split by its contents: after a change, a training image could be scored."""
    skipped = [SkippedImage(**image) for image in bundle.card["skipped"]]
    if not images.has_splits and images.index("data", skipped).digest != bundle.card["set_digest"]:
        raise PipelineError(
            f"{images.data} has no splits of its own and is not as it was when the model was trained: "
            "put the images to score under test/, or name them in a CSV"
        )


def score(log_probs: Tensor, labels: Tensor, split: str, groups: Sequence[str | int] | None = None) -> EvaluateResult:
    """Scores of log-probabilities (N, C) against labels (N,); images of one of `groups` (N,) are not independent."""
    found = accuracies(log_probs.double().numpy(), labels.numpy(), groups)
    return EvaluateResult(
        images=len(labels),
        classes=len(labels.unique()),
        split=split,
        top1=found["top1"].value,
        top5=found["top5"].value if "top5" in found else None,
        mean_per_class=found["mean_per_class"].value,
        ece=error_of(log_probs, labels),
        ece_floor=floor_of(log_probs),
        intervals={name: (one.low, one.high) for name, one in found.items()},
    )
