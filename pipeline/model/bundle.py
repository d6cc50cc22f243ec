"""An exported model in memory: backbone, head, preprocessing and classes; from images to probabilities."""

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import TypedDict  # which pydantic wants before Python 3.12

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.golden import VERSIONS, differ
from pipeline.backbones.trunk import build_trunk
from pipeline.console import named
from pipeline.errors import BundleError, DecodeError
from pipeline.heads.head import Head
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import ImageSource, Preprocessing
from pipeline.inputs.remarks import Remarks, catching_warnings
from pipeline.machine.device import computes, resolve_device, resolve_precision
from pipeline.model.card import ModelCard

logger = logging.getLogger("headgraft.model")

AnyImage = ImageSource | Pixels  # a file, its bytes, an image of Pillow, or a view
_BATCH = 32  # images, on a device: nearly its full rate, and one image does not wait for hundreds
_AHEAD = 2  # batches that are decoded before they are asked for


# As `predict --json` and the service give it; `class` is `label` under its earlier name, until 1.0.
ScoreJson = TypedDict("ScoreJson", {"label": str, "class": str, "name": str, "probability": float})


@dataclass(frozen=True)
class ClassScore:
    """A class, its display name and its probability."""

    label: str
    name: str
    probability: float

    def as_json(self) -> ScoreJson:
        """With the label under both of its names."""
        return {"label": self.label, "class": self.label, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the likeliest first; `path` is None where it was not given as one."""

    path: Path | None
    top: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Bundle:
    """A model file in memory.

    Attributes:
        path: of the file.
        card: what it says of itself.
        backbone_tensors: float32, by name.
        head: over rows of the backbone, (B, D) → log-probabilities (B, C).
        stored: the card's JSON as it was read, with what a later version added.
    """

    path: Path
    card: ModelCard
    backbone_tensors: dict[str, Tensor]
    head: Head
    stored: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the head's outputs."""
        return self.card.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the input, as in stage one."""
        return Preprocessing.of(self.card.manifest.base)

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

    def top(self, log_probs: Tensor, top_k: int) -> tuple[ClassScore, ...]:
        """The most probable classes of log-probabilities (C,), the likeliest first."""
        values, indexes = log_probs.exp().topk(min(top_k, len(self.classes)))
        found = [(self.classes[index], value) for index, value in zip(indexes.tolist(), values.tolist(), strict=True)]
        return tuple(ClassScore(label, self.card.names.get(label, label), value) for label, value in found)

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
        given = _listed(images)
        paths = [Path(image) if isinstance(image, str | Path) else None for image in given]
        rows = self.log_probs(given)
        return [Prediction(path, self.bundle.top(row, top_k)) for path, row in zip(paths, rows, strict=True)]

    def log_probs(
        self,
        images: Sequence[AnyImage],
        mirrored: bool = False,
        failed: dict[int, str] | None = None,
        remarks: Remarks | None = None,
    ) -> Tensor:
        """Log-probabilities of images (N, C) float32, `mirrored` as in `of_views`.

        Images that cannot be decoded are in `failed`, with the reason by index, and their rows are NaN; without
        `failed`, DecodeError names them. What is odd in files that are read goes into `remarks`.
        """
        if mirrored and self.bundle.card.calibration.flip_temperature is None:
            logger.warning(
                "the model has no temperature for --tta flip, so its averaged probabilities are not calibrated: "
                "export it with --tta flip"
            )
        found = torch.full((len(images), len(self.bundle.classes)), float("nan"))
        network = self.backbone
        for indexes, views in view_batches(network.preprocessing, images, network.batch_size, failed, remarks):
            found[indexes] = self.of_views(views, mirrored)
        return found

    def features(self, images: Sequence[AnyImage]) -> Tensor:
        """Rows of the backbone, unrounded: (N, D) float32; DecodeError as of `log_probs`."""
        batches = view_batches(self.backbone.preprocessing, images, self.backbone.batch_size)
        return torch.cat([self.backbone.features(views) for _, views in batches])

    @torch.inference_mode()
    def of_views(self, views: Sequence[Pixels], mirrored: bool = False) -> Tensor:
        """Log-probabilities (B, C) of one batch of views.

        With `mirrored`, each is seen as it is and mirrored, and the probabilities are averaged, then scaled by
        `flip_temperature`. BundleError where they are not finite.
        """
        found: Tensor = self.bundle.head(self.backbone.features(views))
        if mirrored:
            other = self.bundle.head(self.backbone.features([view[:, ::-1] for view in views]))
            temperature = self.bundle.card.calibration.flip_temperature or 1.0
            found = torch.log_softmax(torch.logaddexp(found, other) / temperature, 1)
        if not found.isfinite().all():
            raise BundleError(f"{self.bundle.path} produced NaN or infinite probabilities: its weights are too large")
        return found


def view_batches(
    preprocessing: Preprocessing,
    images: Sequence[AnyImage],
    size: int,
    failed: dict[int, str] | None = None,
    remarks: Remarks | None = None,
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Views of images in batches of at most `size`, decoded ahead in a thread: (indexes, views).

    `failed` and `remarks` are those of `Predictor.log_probs`.
    """
    reasons: dict[int, str] = {} if failed is None else failed
    noted = Remarks() if remarks is None else remarks
    stopped = Event()

    def decoded(start: int) -> tuple[list[int], list[Pixels]]:
        views: dict[int, Pixels] = {}
        for index, image in enumerate(images[start : start + size], start):
            if stopped.is_set():
                break
            odd: dict[str, str] = {}
            try:
                views[index] = _view(preprocessing, image, odd)
                noted.add(_name(image, index), odd)
            except DecodeError as error:
                reasons[index] = str(error)
        return [*views.keys()], [*views.values()]

    with catching_warnings(), ThreadPoolExecutor(1, "decode") as pool:
        starts = iter(range(0, len(images), size))
        waiting = deque(pool.submit(decoded, start) for start in islice(starts, _AHEAD))
        try:
            while waiting:
                indexes, views = waiting.popleft().result()
                waiting.extend(pool.submit(decoded, start) for start in islice(starts, 1))
                if views:
                    yield indexes, views
        finally:
            stopped.set()  # an interrupt does not wait for images that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
    if failed is None and reasons:
        lines = [f"  {_name(images[index], index)}: {reason}" for index, reason in reasons.items()]
        found = f"{len(reasons)} of {len(images)} images cannot be decoded; fix or remove them:"
        raise DecodeError("\n".join([found, *lines]))


def _view(preprocessing: Preprocessing, image: AnyImage, odd: dict[str, str]) -> Pixels:
    if not isinstance(image, np.ndarray):
        return preprocessing.view(preprocessing.decode(image, odd))
    shape = (preprocessing.input_size, preprocessing.input_size, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise DecodeError(
            f"an array {image.shape} of {image.dtype}, expected a view {shape} of uint8; give the pixels of a whole "
            "image as PIL.Image.fromarray(pixels)"
        )
    return image


def _listed(images: AnyImage | Iterable[AnyImage]) -> list[AnyImage]:
    one = isinstance(images, str | Path | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
    return [images] if one else list(images)  # type: ignore[list-item, arg-type]  # as `one` says


def _name(image: AnyImage, index: int) -> str:
    return named(image) if isinstance(image, str | Path) else f"image {index}"
