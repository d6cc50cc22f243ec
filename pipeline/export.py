"""Run → Bundle: calibrated on validation, through the parity gate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from cache.index import SetIndex
from cache.layout import TEMPORARY_SUFFIX
from cache.store import FeatureCache
from pipeline.backbones.backbone import load_tensors
from pipeline.backbones.weights import tensor_digest
from pipeline.bundle import BUNDLE_FORMAT, load_bundle, write_bundle
from pipeline.config import ExportConfig
from pipeline.console import Say, silent
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.evaluate import as_record, log_probs_of_split, score
from pipeline.inputs.images import root_now
from pipeline.machine.device import available_cpus
from pipeline.model.calibration import at_temperature, cooled, error_of, fit_temperature
from pipeline.model.card import preprocessing_of
from pipeline.model.gate import Trained, check_parity, chosen_images
from pipeline.model.onnx import require_packages, write_onnx
from pipeline.model.prior import for_class_prior
from pipeline.predict import read_names
from pipeline.run import Run, check_target

WEIGHTS_LICENCE = "that of their source; torchvision's were trained on ImageNet, whose terms of access apply"


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the calibration error by split, (before, after)."""

    temperature: float = 1.0
    ece: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class ExportResult:
    """The fields of the command's JSON; `parity.float32_*` are those of the model in float32, not rounded."""

    model: str
    bytes: int
    parity: dict[str, Any]
    calibration: Calibration
    onnx: dict[str, Any] = field(default_factory=dict)
    class_prior: str = "none"


def export(config: ExportConfig, say: Say = silent) -> ExportResult:
    """Write the combined model of a run; ParityError, and no file, where it does not predict what was trained."""
    check_target(config.model, config.overwrite)
    if config.onnx:
        if config.onnx.absolute() == config.model.absolute():
            raise ConfigError(f"--onnx {config.onnx} is the model file itself: choose another place")
        require_packages()
        check_target(config.onnx, config.overwrite)
    torch.set_num_threads(available_cpus())
    run = Run.load(config.run)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record["set"])
    run = for_class_prior(run, index, config.class_prior)
    names = read_names(config.names, run.classes, say) if config.names else {}
    calibration, looks = calibrate(run, cache, index, say) if config.calibrate else (Calibration(), [])
    root = root_now(index, config.data)
    tensors = _backbone_tensors(cache, index, say)
    with _beside(config.model) as temporary, _beside(config.onnx or config.model) as graph:
        run.record["scored"] += looks  # saved when there is something to show for them
        card = {**_card(run, cache, index, names, calibration), "class_prior": config.class_prior}
        write_bundle(temporary, tensors, cooled(run.folded_head(), calibration.temperature), card)
        trained = Trained(run, calibration.temperature, cache, tensors)
        images = chosen_images(index.split("valid"))
        parity = check_parity(temporary, trained, images, root, say)
        size = temporary.stat().st_size
        result = ExportResult(str(config.model), size, parity, calibration, class_prior=config.class_prior)
        if config.onnx:
            say("writing the ONNX file, and comparing it with the model")
            difference = write_onnx(load_bundle(temporary), graph, [root / image.path for image in images])
            result.onnx = {"file": str(config.onnx), "bytes": graph.stat().st_size, "max_abs_diff": difference}
            graph.replace(config.onnx)
        temporary.replace(config.model)
    if looks:
        run.add_scores(looks, say)
    return result


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, for what will take its place; gone in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def calibrate(
    run: Run, cache: FeatureCache, index: SetIndex, say: Say = silent
) -> tuple[Calibration, list[dict[str, Any]]]:
    """The temperature that validation asks for, and the calibration error of validation and test with and without it.

    And the look at test images, as a run records it.
    """
    valid, labels = log_probs_of_split(run, cache, index, "valid")
    temperature = fit_temperature(valid, labels)
    if temperature is None:
        say("no temperature in [0.25, 4] improves the validation loss: keeping T = 1")
        return Calibration(), []
    errors, looks = {"valid": _errors(valid, labels, temperature)}, []
    if index.split("test"):
        test, labels = log_probs_of_split(run, cache, index, "test")
        errors["test"] = _errors(test, labels, temperature)
        looks.append(as_record(score(test, labels, "test")))
    return Calibration(temperature, errors), looks


def _errors(log_probs: Tensor, labels: Tensor, temperature: float) -> tuple[float, float]:
    cool = at_temperature(log_probs, temperature)
    return error_of(log_probs, labels), error_of(cool, labels)


def _backbone_tensors(cache: FeatureCache, index: SetIndex, say: Say) -> dict[str, Tensor]:
    """The tensors the cache was made with, from where stage one found them."""
    base = cache.manifest.base
    # Provenance is free: a shard that does not say where its weights were stands for the named ones.
    named = (made.get("weights") for made in cache.provenance(index.row_keys(0)))
    sources = list(dict.fromkeys(name for name in named if name is None or isinstance(name, str)))
    for source in sources:
        try:
            tensors = load_tensors(base.backbone, source, say)
        except WeightsError as error:
            say(str(error))
            continue
        if tensor_digest(tensors) == base.weights_digest:
            return tensors
    raise RunError(
        f"the weights of {base.backbone} in {', '.join(map(str, sources))} are no longer those of the cache "
        f"(digest {base.weights_digest[:16]}): put that file back"
    )


def _card(
    run: Run, cache: FeatureCache, index: SetIndex, names: dict[str, str], calibration: Calibration
) -> dict[str, Any]:
    base = asdict(cache.manifest.base)
    record = run.record
    return {
        "format": BUNDLE_FORMAT,
        "classes": list(run.classes),
        "names": {name: names[name] for name in run.classes if name in names},
        "backbone": base["backbone"],
        "weights": {"digest": base["weights_digest"], "licence": WEIGHTS_LICENCE},
        "preprocessing": preprocessing_of(cache.manifest.base),
        "basis": run.whole_basis.name,
        "manifest": asdict(cache.manifest),
        "set_digest": record["set_digest"],
        "skipped": [asdict(image) for image in index.skipped],
        "set": index.name,
        "images": {split: len(index.split(split)) for split in ("train", "valid", "test")},
        "split_seed": index.split_seed,
        "training": record["config"],
        "scores": {"valid_accuracy": record["valid_accuracy"], "scored": record["scored"]},
        "calibration": asdict(calibration),
        "versions": record["versions"],
    }
