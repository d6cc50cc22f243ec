"""An exported model in memory: backbone, head, preprocessing and classes; from images to probabilities."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.golden import VERSIONS, differ
from pipeline.backbones.trunk import build_trunk, layer_with_cells
from pipeline.errors import BundleError
from pipeline.evidence.attribution import Evidence, evidence_of, has_cells
from pipeline.heads.head import Head
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.remarks import Remarks
from pipeline.machine.device import computes, resolve_device, resolve_precision
from pipeline.model.card import ModelCard
from pipeline.model.prediction import Outputs, Prediction, prediction_of
from pipeline.model.views import AnyImage, listed, view_batches
from pipeline.row_layout import RowLayout, layout_of
from pipeline.unknown.detector import UnknownDetector, pooled

logger = logging.getLogger("headgraft.model")

_BATCH = 32  # images, on a device: nearly its full rate, and one image does not wait for hundreds


@dataclass(frozen=True)
class Bundle:
    """An exported model in memory, as `load_model` returns it.

    Attributes:
        path: of the file.
        card: its model card, typed: classes, training, scores, thresholds.
        backbone_tensors: float32, by name.
        head: over rows of the backbone, (B, D) → log-probabilities (B, C).
        stored: the card's JSON as it was read, with what a later version added.
        detector: of unknown images; None of a model without one.
        mean_row: mean of the training images, (D,), that evidence is measured from; None of a model without it, whose
            rows have no cells.
    """

    path: Path
    card: ModelCard
    backbone_tensors: dict[str, Tensor]
    head: Head
    stored: dict[str, Any] = field(default_factory=dict, repr=False)
    detector: UnknownDetector | None = field(default=None, repr=False)
    mean_row: Tensor | None = field(default=None, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the head's outputs."""
        return self.card.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the input, as in stage one."""
        return Preprocessing.of(self.card.manifest.base)

    @property
    def layout(self) -> RowLayout:
        """How the features of its rows lie."""
        return layout_of(self.card.manifest)

    def backbone(self, device: torch.device, precision: str, batch_size: int | None = None) -> Backbone:
        """The bundle's backbone, ready to compute rows; on a device in smaller batches than extraction's."""
        if batch_size is None and device.type != "cpu":
            batch_size = _BATCH
        backbone = load_backbone(
            self.card.backbone,
            self.backbone_tensors,
            self.preprocessing,
            layer=self.card.manifest.base.layer,
            device=device,
            precision=precision,
            batch_size=batch_size,
        )
        if self.card.golden and differ(self.card.golden, backbone.golden):
            had = ", ".join(f"{name} {version}" for name, version in self.card.versions.items() if name in VERSIONS)
            raise BundleError(
                f"{self.card.backbone} computes other features here than where {self.path} was exported, with {had}: "
                "install these versions, or use the ONNX file that export --onnx writes"
            )
        return backbone

    def on(
        self, device: str | torch.device = "auto", precision: str = "auto", batch_size: int | None = None
    ) -> "Predictor":
        """The model on a device, ready to predict. PipelineError where the device is not there, or lacks `precision`.

        `auto` is the accelerator if there is one; as a precision, the model's, or float32 where the device does not
        compute in that, which is logged.
        """
        resolved, trained = resolve_device(str(device)), self.card.manifest.base.precision
        if precision == "auto" and not computes(resolved, trained):
            precision = "float32"
            logger.warning(
                f"the model was trained on {trained} features; this {resolved.type} does not compute in it, "
                "so float32 is used"
            )
        return Predictor(self, self.backbone(resolved, resolve_precision(precision, resolved, trained), batch_size))

    @cached_property
    def _on_cpu(self) -> "Predictor":
        return self.on("cpu", "float32")

    def predict(self, images: AnyImage | Iterable[AnyImage], top_k: int = 5) -> list[Prediction]:
        """As `Predictor.predict`, in float32 on the CPU."""
        return self._on_cpu.predict(images, top_k)

    def log_probs(
        self, backbone: Backbone, images: Sequence[AnyImage], mirrored: bool = False, remarks: Remarks | None = None
    ) -> tuple[Tensor, dict[int, str]]:
        """As `Predictor.log_probs`, and the reasons by index; kept until 1.0 for programs that call it."""
        failed: dict[int, str] = {}
        return Predictor(self, backbone).log_probs(images, mirrored, failed, remarks), failed

    def prediction(self, outputs: Outputs, top_k: int, path: Path | None = None) -> Prediction:
        """What it says of the one image that `outputs` are of."""
        return prediction_of(self.card, outputs, top_k, path)

    def name(self, place: int) -> str:
        """The display name of the class at a place of the outputs."""
        return self.card.names.get(self.classes[place], self.classes[place])

    def evidence(self, rows: Tensor) -> list[Evidence]:
        """Why the most probable class rather than the runner-up, of rows of the backbone (N, D).

        BundleError as of `refuse_without_evidence`.
        """
        self.refuse_without_evidence()
        assert self.mean_row is not None
        return evidence_of(self.head, rows, self.mean_row, self.layout)

    @cached_property
    def without_evidence(self) -> str:
        """Why there is no evidence: the model has no mean image, or rows have no cells; "" where there is."""
        base = self.card.manifest.base
        if not has_cells(self.layout):
            other = layer_with_cells(base.backbone, base.input_size)
            advice = f"extract with --layer {other}" if other else "extract with another backbone"
            return f"{base.layer} of {base.backbone} has no map of several cells, which evidence needs: {advice}"
        if self.mean_row is None:
            return f"{self.path.name} was exported without the mean image that evidence needs: export it again"
        return ""

    def refuse_without_evidence(self) -> None:
        """BundleError where there is no evidence."""
        if self.without_evidence:
            raise BundleError(self.without_evidence)

    def as_module(self) -> nn.Module:
        """The whole model in float32: normalised images (B, 3, S, S) → log-probabilities (B, C).

        Images are resized, cropped and normalised as `card.preprocessing` says.
        """
        base = self.card.manifest.base
        trunk = build_trunk(base.backbone, base.input_size, base.layer, self.backbone_tensors)
        return nn.Sequential(OrderedDict(backbone=trunk, head=self.head)).eval().requires_grad_(False)


@dataclass(frozen=True)
class Predictor:
    """A model on a device. An image is a path, the bytes of a file, an image of Pillow, or a view.

    A view is an array (S, S, 3) of uint8, S = `preprocessing.input_size`: RGB, resized and cropped already.
    """

    bundle: Bundle
    backbone: Backbone

    def predict(self, images: AnyImage | Iterable[AnyImage], top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of each image, or of the one; DecodeError as of `log_probs`."""
        given = listed(images)
        paths = [Path(image) if isinstance(image, str | Path) else None for image in given]
        found = self.outputs(given)
        return [self.bundle.prediction(found[number], top_k, path) for number, path in enumerate(paths)]

    def log_probs(
        self,
        images: Sequence[AnyImage],
        mirrored: bool = False,
        failed: dict[int, str] | None = None,
        remarks: Remarks | None = None,
    ) -> Tensor:
        """Log-probabilities of images (N, C) float32, as of `outputs`."""
        return self.outputs(images, mirrored, failed, remarks).log_probs

    def outputs(
        self,
        images: Sequence[AnyImage],
        mirrored: bool = False,
        failed: dict[int, str] | None = None,
        remarks: Remarks | None = None,
        each: Callable[[int, Pixels, Outputs], None] | None = None,
    ) -> Outputs:
        """All that the model computes of images, `mirrored` as in `of_views`.

        Images that cannot be decoded are in `failed`, with the reason by index, and their rows are NaN; without
        `failed`, DecodeError names them. What is odd in files that are read goes into `remarks`. `each` is called with
        the index, the view and the outputs of one image, which have its row; the rows of all are not kept.
        """
        if mirrored and self.bundle.card.calibration.flip_temperature is None:
            logger.warning(
                "the model has no temperature for --tta flip, so its averaged probabilities are not calibrated: "
                "export it with --tta flip"
            )
        if mirrored and (self.bundle.card.rejection or self.bundle.card.sets):
            logger.warning("the model's thresholds are for predictions without --tta flip: what they promise is not")
        found = Outputs.empty(len(images), len(self.bundle.classes), self.bundle.detector is not None)
        network = self.backbone
        for indexes, views in view_batches(network.preprocessing, images, network.batch_size, failed, remarks):
            some = self.of_views(views, mirrored)
            found.fill(indexes, some)
            for number, index in enumerate(indexes if each else []):
                each(index, views[number], some[number])  # type: ignore[misc]  # there are none without it
        return found

    def features(self, images: Sequence[AnyImage]) -> Tensor:
        """Rows of the backbone, unrounded: (N, D) float32; DecodeError as of `log_probs`."""
        batches = view_batches(self.backbone.preprocessing, images, self.backbone.batch_size)
        return torch.cat([self.backbone.features(views) for _, views in batches])

    @torch.inference_mode()
    def of_views(self, views: Sequence[Pixels], mirrored: bool = False) -> Outputs:
        """What the model computes of one batch of views.

        With `mirrored`, each is seen as it is and mirrored, and the probabilities are averaged, then scaled by
        `flip_temperature`; p-values are of the view as it is. BundleError where log-probabilities are not finite.
        """
        head, detector = self.bundle.head, self.bundle.detector
        rows = self.backbone.features(views)
        found: Tensor = head(rows)
        p_values = detector.p_values(pooled(self.bundle.layout, rows), found) if detector else None
        if mirrored:
            other = head(self.backbone.features([view[:, ::-1] for view in views]))
            temperature = self.bundle.card.calibration.flip_temperature or 1.0
            found = torch.log_softmax(torch.logaddexp(found, other) / temperature, 1)
        if not found.isfinite().all():
            raise BundleError(f"{self.bundle.path} produced NaN or infinite probabilities: its weights are too large")
        return Outputs(found, p_values, rows)
