"""Run → Bundle: calibrated on validation, through the parity gate."""

import logging
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.errors import MissingRows
from cache.files import replacing
from cache.index import SPLITS, SetIndex
from cache.result import Result
from cache.store import FeatureCache
from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.facts import licence_of
from pipeline.backbones.fastest import golden_at
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.weights import tensor_digest
from pipeline.config.models import ExportConfig
from pipeline.console import counted
from pipeline.errors import ConfigError, RunError, WeightsError
from pipeline.evidence.reference import mean_row
from pipeline.inputs.display_names import read_names
from pipeline.inputs.images import root_now
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import available_cpus
from pipeline.model.abstaining import Abstaining, abstaining_in_words, fit_abstaining
from pipeline.model.bundle import Bundle
from pipeline.model.calibrating import calibrate_run, with_flip
from pipeline.model.card import Calibration, ModelCard, TrainedScores
from pipeline.model.file import load_model, write_bundle
from pipeline.model.markdown import errors_in_words
from pipeline.model.onnx import require_packages, write_onnx
from pipeline.model.parity import Trained, check_files, check_parity, chosen_images
from pipeline.model.prior import class_prior
from pipeline.run import Run
from pipeline.run_folder import check_target

logger = logging.getLogger("headgraft.export")

_FREE = ("apache", "bsd", "mit", "cc-by-4.0")  # licences that let anyone pass the weights on


@dataclass
class ExportResult(Result):
    """What `export` wrote.

    Attributes:
        model: path of the model file.
        bytes: its size.
        parity: largest difference of log-probabilities from the run, at the cache's precision, or in float32 where this
            CPU lacks it, which is the gate:
            `{images, precision, max_abs_diff, top1_agreement, batch_sizes}`; for information, of the model in float32
            `float32_abs_diff, float32_p99_diff, float32_top1_agreement`, and of a reduced cache `reduced_abs_diff,
            reduced_top1_agreement`: what rounding the stored rows did.
        calibration: by split: `valid`, or `out_of_fold` of a choice over folds, with `--test` also `test`, with `--tta
            flip` also `valid_flip`.
        onnx: `{file, bytes, max_abs_diff}`; empty without `--onnx`.
        class_prior: class frequencies that probabilities are for.
        rejection: `{max_error, confidence, threshold, images, answered, wrong, digest}`: `images` fitted the threshold,
            `digest` is theirs, `answered` and `wrong` are of them; or `{reason, images_needed}` where they do not
            support that; empty without `--max-error`.
        unknown: `{score, false_alarms, images, auroc_left_out}`, or `{reason}`; empty with `--no-unknown`.
            `auroc_left_out` is null of fewer than three classes.
        sets: `{coverage, images, mean_size, covered}`, the last two of images that thresholds were not fitted on; empty
            without `--sets`.
    """

    model: str
    bytes: int
    parity: dict[str, Any]
    calibration: Calibration
    onnx: dict[str, Any] = field(default_factory=dict)
    class_prior: str = "none"
    rejection: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)

    def in_words(self) -> str:
        """A line on the model, and one each on its temperature, its class prior, what it answers and the ONNX file."""
        parity, onnx, scaled = self.parity, self.onnx, self.calibration
        lines = [
            f"{self.model}: {self.bytes / 1e6:.0f} MB; {counted(parity['images'], 'image')} compared, within "
            f"{parity['max_abs_diff']:.1g} of the run in log-probability"
        ]
        if scaled.ece:
            lines.append(f"temperature {scaled.temperature:.3f}, {errors_in_words(scaled)}")
        if self.class_prior != "none":
            lines.append(f"class prior: {self.class_prior}")
        lines += abstaining_in_words(self.rejection, self.unknown, self.sets)
        if onnx:
            within = f"the model within {onnx['max_abs_diff']:.1g}"
            lines.append(f"{onnx['file']}: {onnx['bytes'] / 1e6:.0f} MB, {within}")
        return "\n".join(lines)


def export(config: ExportConfig) -> ExportResult:
    """Write the combined model of a run, verified on image files in a fresh process.

    Raises:
        ParityError: the model does not predict what was trained; no file is written.
        RunError: the run or its cache is missing, or the model exists and `overwrite` is not set.
        DataChanged: images that the check needs are not as they were extracted.
    """
    _check_targets(config)
    torch.set_num_threads(available_cpus())
    run = Run.load(config.run)
    if config.tta == "flip" and run.record.refit:
        raise RunError(
            f"{config.run} was trained on its validation images too, and --tta flip has none for a temperature: leave "
            "that out"
        )
    cache = run.open_cache(config.cache)
    index = cache.index(run.record.set).labelled
    root = root_now(index, config.data)
    images = chosen_images(run.held_out_images(index))
    check_files(images, root)  # before heads are trained, which takes longer
    made = _assemble(config, run, cache, index, root)
    bundle, tensors = made.bundle, made.bundle.backbone_tensors
    with ExitStack() as files:
        temporary = files.enter_context(replacing(config.model))
        inside = {} if config.without_backbone else tensors
        write_bundle(temporary, inside, bundle.head, asdict(bundle.card), bundle.detector, bundle.mean_row)
        source = made.source
        weights = source if config.without_backbone and os.path.isabs(source) else None  # noqa: PTH117  # also a name
        trained = Trained(made.run, bundle.card.calibration.temperature, cache, tensors, weights)
        result = ExportResult(
            model=str(config.model),
            bytes=temporary.stat().st_size,
            parity=check_parity(temporary, trained, images, root),
            calibration=bundle.card.calibration,
            class_prior=config.class_prior,
            **made.abstaining.as_json(),
        )
        if config.onnx:
            logger.info("writing the ONNX file, and comparing it with the model")
            graph = files.enter_context(replacing(config.onnx))
            difference = write_onnx(load_model(temporary, weights), graph, [root / image.path for image in images])
            result.onnx = {"file": str(config.onnx), "bytes": graph.stat().st_size, "max_abs_diff": difference}
    if made.evaluations:
        run.add_scores(made.evaluations)
    return result


@dataclass(frozen=True)
class _Assembled:
    """A model that is not yet written.

    Attributes:
        bundle: with its card.
        run: with the class prior that was asked for in its head.
        source: of the backbone's weights.
        abstaining: when the model does not answer.
        evaluations: that the card counts and the run is to record.
    """

    bundle: Bundle
    run: Run
    source: str
    abstaining: Abstaining
    evaluations: list[dict[str, Any]]


def _assemble(config: ExportConfig, run: Run, cache: FeatureCache, index: SetIndex, root: Path) -> _Assembled:
    """Calibrate, fit what abstaining needs, and fill in the card."""
    prior = class_prior(run, index, config.class_prior)
    names = read_names(config.names, run.classes) if config.names else {}
    shift = prior.of_training_images if prior else None
    calibration, evaluations = calibrate_run(config, run, cache, index, shift)
    abstaining = fit_abstaining(config, run, cache, prior, calibration.temperature)
    run = prior.corrected(run, calibration.temperature) if prior else run
    source, tensors = _backbone_tensors(cache, index)
    card = replace(
        _card(config, run, cache, index, source, tensors),
        names=names,
        calibration=calibration,
        class_prior=config.class_prior,
        scores=TrainedScores(run.record.valid_accuracy, [*run.record.scored, *evaluations]),
        rejection=abstaining.rejection,
        unknown=abstaining.unknown,
        sets=abstaining.sets,
    )
    head, mean = run.folded_head().temperature_scaled(calibration.temperature), _mean_row(cache, index, run)
    bundle = Bundle(config.model, card, tensors, head, detector=abstaining.detector, mean_row=mean)
    if config.tta == "flip":
        unscaled = replace(card, calibration=replace(calibration, flip_temperature=1.0))
        calibration = with_flip(replace(bundle, card=unscaled), index, root, prior.from_wanted if prior else None)
        bundle = replace(bundle, card=replace(card, calibration=calibration))
    return _Assembled(bundle, run, source, abstaining, evaluations)


def _mean_row(cache: FeatureCache, index: SetIndex, run: Run) -> Tensor | None:
    """Of the images that the head was trained on; None, which is logged, where the cache no longer has them all."""
    try:
        return mean_row(cache, index.split(*run.record.trained_splits))
    except MissingRows as error:
        logger.warning(f"without evidence: {error}")
        return None


def _check_targets(config: ExportConfig) -> None:
    """Refuse, before any work, what could not be written or may not be."""
    check_target(config.model, config.overwrite)
    if config.model.suffix != ".safetensors":
        logger.warning(f"{config.model} will be a safetensors file, whatever its name says: name it *.safetensors")
    if config.onnx:
        if config.onnx.absolute() == config.model.absolute():
            raise ConfigError(f"--onnx {config.onnx} is the model file itself: choose another path")
        require_packages()
        check_target(config.onnx, config.overwrite)


def _backbone_tensors(cache: FeatureCache, index: SetIndex) -> tuple[str, dict[str, Tensor]]:
    """Where stage one found the tensors that the cache was made with, and these."""
    base = cache.manifest.base
    # Provenance is free: a shard that does not say where its weights were stands for the named ones.
    named = (made.get("weights") for made in cache.provenance(index.row_keys(0)))
    sources = list(dict.fromkeys(name for name in named if name is None or isinstance(name, str)))
    for source in sources:
        try:
            tensors = load_tensors(base.backbone, source, base.input_size)
        except WeightsError as error:
            logger.warning(str(error))
            continue
        if tensor_digest(tensors) == base.weights_digest:
            return source or backbone_spec(base.backbone).weights.name, tensors
    raise RunError(
        f"the weights of {base.backbone} in {', '.join(map(str, sources))} are no longer those of the cache "
        f"(digest {base.weights_digest[:16]}): put that file back"
    )


def _card(
    config: ExportConfig, run: Run, cache: FeatureCache, index: SetIndex, source: str, tensors: dict[str, Tensor]
) -> ModelCard:
    """The card of a run's model, still without names, calibration and scores; a licence that binds is logged."""
    base = cache.manifest.base
    spec = backbone_spec(base.backbone, source)
    licence = licence_of(base.backbone, source)
    if not config.without_backbone and not (licence or "").lower().startswith(_FREE):
        logger.warning(
            f"the model holds the weights of {base.backbone}, licence: {licence or 'not known'}; see whether that lets "
            "you pass them on, or leave them out with --without-backbone"
        )
    return ModelCard(
        backbone=base.backbone,
        classes=run.classes,
        names={},
        preprocessing=Preprocessing.of(base).as_card(),
        manifest=cache.manifest,
        set_digest=run.record.set_digest,
        split_seed=index.split_seed,
        group_by=index.group_by,
        skipped=list(index.skipped),
        weights={"digest": base.weights_digest, "licence": licence or "not known", "source": Path(source).name},
        requires=dict([spec.built_by] if spec.built_by and spec.built_by[0] != "torchvision" else []),
        arguments=dict(spec.arguments(base.input_size)),
        golden=golden_at(base.backbone, base.layer, tensors, Preprocessing.of(base)),
        without_backbone=config.without_backbone,
        basis=run.whole_basis.name,
        set=index.name,
        images={split: len(index.split(split)) for split in SPLITS},
        training=asdict(run.record.config),
        refit=run.record.refit,
        folds=run.record.folds,
        versions={**run.record.versions, **dict([spec.built_by] if spec.built_by else [])},
    )
