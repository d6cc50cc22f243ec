"""Run → Bundle: calibrated on validation, through the parity gate."""

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
from pipeline.bundle import BUNDLE_FORMAT, write_bundle
from pipeline.config import ExportConfig
from pipeline.console import Say, silent
from pipeline.errors import RunError, WeightsError
from pipeline.evaluate import log_probs_of_split, record_scores, score
from pipeline.machine.device import available_cpus
from pipeline.model.calibration import at_temperature, cooled, error_of, fit_temperature
from pipeline.model.card import PREPROCESSING
from pipeline.model.gate import Trained, check_parity
from pipeline.predict import read_names
from pipeline.run import Run, refuse_other_kind, refuse_to_overwrite

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


def export(config: ExportConfig, say: Say = silent) -> ExportResult:
    """Write the combined model of a run; ParityError, and no file, where it does not predict what was trained."""
    refuse_other_kind(config.model, folder=False)
    refuse_to_overwrite(config.model, config.overwrite)
    torch.set_num_threads(available_cpus())
    run = Run.load(config.run)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record["set"])
    names = read_names(config.names) if config.names else {}
    calibration = calibrate(run, cache, index, say) if config.calibrate else Calibration()
    root = Path(index.root) if config.data is None else config.data if config.data.is_dir() else config.data.parent
    tensors = _backbone_tensors(cache, index, say)
    config.model.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.model.with_name(f".{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        card = _card(run, cache, index, names, calibration)
        write_bundle(temporary, tensors, cooled(run.folded_head(), calibration.temperature), card)
        trained = Trained(run, calibration.temperature, cache, tensors)
        parity = check_parity(temporary, trained, index.split("valid"), root, say)
        temporary.replace(config.model)
    finally:
        temporary.unlink(missing_ok=True)
    return ExportResult(str(config.model), config.model.stat().st_size, parity, calibration)


def calibrate(run: Run, cache: FeatureCache, index: SetIndex, say: Say = silent) -> Calibration:
    """The temperature that validation asks for, and the calibration error of validation and test with and without it.

    Looking at test images is put on the run's record.
    """
    valid, labels = log_probs_of_split(run, cache, index, "valid")
    temperature = fit_temperature(valid, labels)
    if temperature is None:
        say("the validation images leave the temperature open, most are right: it stays 1")
        return Calibration()
    errors = {"valid": _errors(valid, labels, temperature)}
    if index.split("test"):
        test, labels = log_probs_of_split(run, cache, index, "test")
        errors["test"] = _errors(test, labels, temperature)
        record_scores(run, score(test, labels, "test"))
    return Calibration(temperature, errors)


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
        "preprocessing": {name: base[name] for name in PREPROCESSING},
        "basis": record["basis"],
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
