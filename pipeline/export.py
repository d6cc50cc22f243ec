"""Run → Bundle: calibrated on validation, through the parity gate."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from pipeline.config import ExportConfig
from pipeline.console import counted
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.inputs.display_names import read_names
from pipeline.inputs.images import root_now
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import available_cpus
from pipeline.model.bundle import Bundle
from pipeline.model.file import BUNDLE_FORMAT, load_bundle, write_bundle
from pipeline.model.markdown import errors_in_words
from pipeline.model.onnx import require_packages, write_onnx
from pipeline.model.parity import Trained, check_files, check_parity, chosen_images, device_of
from pipeline.model.prior import class_prior
from pipeline.run import Run
from pipeline.run_folder import check_target
from pipeline.statistics.calibration import at_temperature, calibrate, error_of, floor_of, temperature_scaled
from pipeline.statistics.scoring import score

logger = logging.getLogger("headgraft.export")

WEIGHTS_LICENCE = "that of their source; torchvision's were trained on ImageNet, whose terms of access apply"


@dataclass(frozen=True)
class Calibration:
    """What the card says of the temperatures.

    Attributes:
        temperature: folded into the last layer.
        ece: `{split: [before, after]}`, calibration errors; on validation `after` is cross-fitted: each fifth of the
            images at the temperature of the others.
        floor: `{split: [before, after]}`, what each error would be on average if the probabilities were right.
        flip_temperature: for `--tta flip`; None without it.
    """

    temperature: float = 1.0
    ece: dict[str, tuple[float, float]] = field(default_factory=dict)
    floor: dict[str, tuple[float, float]] = field(default_factory=dict)
    flip_temperature: float | None = None


@dataclass
class ExportResult:
    """What `export` wrote.

    Attributes:
        model: path of the model file.
        bytes: its size.
        parity: largest difference of log-probabilities from the run, at the cache's precision, which is the gate:
            `{images, precision, max_abs_diff, top1_agreement, batch_sizes}`; for information, of the model in float32
            `float32_abs_diff, float32_p99_diff, float32_top1_agreement`, and of a reduced cache `reduced_abs_diff,
            reduced_top1_agreement`: what rounding the stored rows did.
        calibration: by split: `valid`, with `--test` also `test`, with `--tta flip` also `valid_flip`.
        onnx: `{file, bytes, max_abs_diff}`; empty without `--onnx`.
        class_prior: class frequencies that probabilities are for.
    """

    model: str
    bytes: int
    parity: dict[str, Any]
    calibration: Calibration
    onnx: dict[str, Any] = field(default_factory=dict)
    class_prior: str = "none"

    def in_words(self) -> str:
        """A line on the model, and one each on its temperature, its class prior and the ONNX file."""
        parity, onnx, scaled = self.parity, self.onnx, self.calibration
        lines = [
            f"{self.model}: {self.bytes / 1e6:.0f} MB; {parity['images']} images agree with the run within "
            f"{parity['max_abs_diff']:.1g} in log-probability"
        ]
        if scaled.ece:
            lines.append(f"temperature {scaled.temperature:.3f}, {errors_in_words(asdict(scaled))}")
        if self.class_prior != "none":
            lines.append(f"class prior: {self.class_prior}")
        if onnx:
            within = f"the model within {onnx['max_abs_diff']:.1g}"
            lines.append(f"{onnx['file']}: {onnx['bytes'] / 1e6:.0f} MB, {within}")
        return "\n".join(lines)


def export(config: ExportConfig) -> ExportResult:
    """Write the combined model of a run; ParityError, and no file, where it does not predict what was trained."""
    check_target(config.model, config.overwrite)
    if config.onnx:
        if config.onnx.absolute() == config.model.absolute():
            raise ConfigError(f"--onnx {config.onnx} is the model file itself: choose another path")
        require_packages()
        check_target(config.onnx, config.overwrite)
    torch.set_num_threads(available_cpus())
    run = Run.load(config.run)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record.set)
    prior = class_prior(run, index, config.class_prior)
    names = read_names(config.names, run.classes) if config.names else {}
    shift = prior.of_training_images if prior else None
    calibration = _of_validation(run, cache, index, shift) if config.calibrate else Calibration()
    calibration, looks = _of_test(calibration, run, cache, index, shift) if config.test else (calibration, [])
    run = prior.corrected(run, calibration.temperature) if prior else run
    root = root_now(index, config.data)
    tensors = _backbone_tensors(cache, index)
    head = temperature_scaled(run.folded_head(), calibration.temperature)
    if config.tta == "flip":
        bundle = Bundle(config.model, _card(run, cache, index, names, calibration), tensors, head)
        calibration = _of_flip(calibration, bundle, index, root, prior.from_wanted if prior else None)
    with _beside(config.model) as temporary, _beside(config.onnx or config.model) as graph:
        run.record.scored += looks  # saved when there is something to show for them
        card = {**_card(run, cache, index, names, calibration), "class_prior": config.class_prior}
        write_bundle(temporary, tensors, head, card)
        trained = Trained(run, calibration.temperature, cache, tensors)
        images = chosen_images(index.split("valid"))
        parity = check_parity(temporary, trained, images, root)
        size = temporary.stat().st_size
        result = ExportResult(str(config.model), size, parity, calibration, class_prior=config.class_prior)
        if config.onnx:
            logger.info("writing the ONNX file, and comparing it with the model")
            difference = write_onnx(load_bundle(temporary), graph, [root / image.path for image in images])
            result.onnx = {"file": str(config.onnx), "bytes": graph.stat().st_size, "max_abs_diff": difference}
            graph.replace(config.onnx)
        temporary.replace(config.model)
    if looks:
        run.add_scores(looks)
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


def _of_validation(run: Run, cache: FeatureCache, index: SetIndex, shift: Tensor | None) -> Calibration:
    """The temperature of least loss on validation, 1 where every image is classified correctly, or is in train too."""
    found = calibrate(*run.log_probs(cache, index, "valid"), index, shift)
    if found.temperature is None:
        logger.warning("no validation image that is not in train is misclassified: the temperature stays 1")
    errors, floors = (found.ece, found.scaled_ece), (found.floor, found.scaled_floor)
    return Calibration(found.temperature or 1.0, {"valid": errors}, {"valid": floors})


def _of_test(
    known: Calibration, run: Run, cache: FeatureCache, index: SetIndex, shift: Tensor | None
) -> tuple[Calibration, list[dict[str, Any]]]:
    """The same with the errors of the test images, and the evaluation of the run's own head, as it records it."""
    if not index.split("test"):
        raise RunError(f"set {index.name!r} has no test images: leave out --test")
    log_probs, labels = run.log_probs(cache, index, "test")
    before, after = (at_temperature(log_probs, value, shift) for value in (1.0, known.temperature))
    errors, floors = (error_of(before, labels), error_of(after, labels)), (floor_of(before), floor_of(after))
    found = replace(known, ece={**known.ece, "test": errors}, floor={**known.floor, "test": floors})
    return found, [score(log_probs, labels, "test", [image.digest for image in index.split("test")]).as_record()]


def _of_flip(known: Calibration, bundle: Bundle, index: SetIndex, root: Path, shift: Tensor | None) -> Calibration:
    """The same with a temperature for --tta flip, fitted on the validation images themselves: the cache has no mirrored
    views.
    """
    images = index.split("valid")
    check_files(images, root)
    logger.info(f"--tta flip: the backbone sees {counted(len(images), 'validation image')}, as they are and mirrored")
    backbone = bundle.backbone(device_of(bundle.precision), bundle.precision)
    log_probs = bundle.log_probs_of_all(backbone, [root / image.path for image in images], mirrored=True)
    found = calibrate(log_probs, torch.from_numpy(index.labels(images)), index, shift)
    return replace(
        known,
        ece={**known.ece, "valid_flip": (found.ece, found.scaled_ece)},
        floor={**known.floor, "valid_flip": (found.floor, found.scaled_floor)},
        flip_temperature=found.temperature or 1.0,
    )


def _backbone_tensors(cache: FeatureCache, index: SetIndex) -> dict[str, Tensor]:
    """The tensors the cache was made with, from where stage one found them."""
    base = cache.manifest.base
    # Provenance is free: a shard that does not say where its weights were stands for the named ones.
    named = (made.get("weights") for made in cache.provenance(index.row_keys(0)))
    sources = list(dict.fromkeys(name for name in named if name is None or isinstance(name, str)))
    for source in sources:
        try:
            tensors = load_tensors(base.backbone, source)
        except WeightsError as error:
            logger.warning(str(error))
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
        "preprocessing": Preprocessing.of(cache.manifest.base).as_card(),
        "basis": run.whole_basis.name,
        "manifest": asdict(cache.manifest),
        "set_digest": record.set_digest,
        "skipped": [asdict(image) for image in index.skipped],
        "set": index.name,
        "images": {split: len(index.split(split)) for split in ("train", "valid", "test")},
        "split_seed": index.split_seed,
        "training": asdict(record.config),
        "scores": {"valid_accuracy": record.valid_accuracy, "scored": record.scored},
        "calibration": asdict(calibration),
        "versions": record.versions,
    }
