"""An exported model in memory: backbone, head, preprocessing and classes; from image files to probabilities."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache.layout import CLEAN_VIEW
from cache.manifest import Manifest
from pipeline.backbones.backbone import Backbone, build_trunk, load_backbone
from pipeline.errors import BundleError, DecodeError
from pipeline.heads.head import Head
from pipeline.inputs.loader import DecodeTask, Loader
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.remarks import Remarks
from pipeline.inputs.views import ViewPixels, Views
from pipeline.machine.device import computes_bfloat16, resolve_precision

logger = logging.getLogger("headgraft.model")


@dataclass(frozen=True)
class ClassScore:
    """A class, its display name and its probability."""

    label: str
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """An image file and its most probable classes, the likeliest first."""

    path: Path
    top: tuple[ClassScore, ...]


@dataclass(frozen=True)
class Bundle:
    """A model file in memory; `card` is its JSON: classes, names, preprocessing, manifest, training, scores."""

    path: Path
    card: dict[str, Any]
    backbone_tensors: dict[str, Tensor]
    head: Head

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the head's outputs."""
        return tuple(self.card["classes"])

    @property
    def names(self) -> dict[str, str]:
        """Display names by class, as far as there are any."""
        return dict(self.card["names"])

    @property
    def precision(self) -> str:
        """The precision its training rows were computed in."""
        return str(self.card["manifest"]["base"]["precision"])

    @property
    def flip_temperature(self) -> float | None:
        """That of probabilities averaged over an image and its mirror image; None where export fitted none."""
        found = self.card.get("calibration", {}).get("flip_temperature")
        return None if found is None else float(found)

    @property
    def preprocessing(self) -> Preprocessing:
        """How image files become the input, as in stage one."""
        return Preprocessing.of(Manifest.parse(self.card["manifest"]).base)

    @cached_property
    def _cpu_backbone(self) -> Backbone:
        return self.backbone(torch.device("cpu"), "float32")

    def backbone(self, device: torch.device, precision: str, batch_size: int | None = None) -> Backbone:
        """The bundle's backbone, ready to compute rows."""
        return load_backbone(
            self.card["backbone"],
            self.backbone_tensors,
            self.preprocessing,
            device=device,
            precision=precision,
            batch_size=batch_size,
        )

    def precision_on(self, device: torch.device, asked: str) -> str:
        """`auto` is the model's precision where `device` computes in it, else float32, which is logged."""
        if asked == "auto" and self.precision == "bfloat16" and not computes_bfloat16(device):
            logger.warning(
                f"the model was trained on bfloat16 features; this {device.type} does not compute in it, "
                "so float32 is used"
            )
            return "float32"
        return resolve_precision(asked, device, self.precision)

    def mirrors(self, tta: str) -> bool:
        """Whether images are seen mirrored as well; that the model has no temperature for it is logged."""
        if tta == "flip" and self.flip_temperature is None:
            logger.warning(
                "the model has no temperature for --tta flip, so its averaged probabilities are not calibrated: "
                "export it with --tta flip"
            )
        return tta == "flip"

    def rows(
        self, backbone: Backbone, paths: Sequence[Path], failed: dict[int, str]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Backbone outputs of image files, batch by batch: (places in `paths`, (B, D) float32).

        The places of files that cannot be decoded go into `failed`, with the reason.
        """
        for places, views in self._batches(paths, backbone.batch_size, failed):
            yield places, backbone.features(views)

    def _batches(
        self, paths: Sequence[Path], size: int, failed: dict[int, str], remarks: Remarks | None = None
    ) -> Iterator[tuple[list[int], list[ViewPixels]]]:
        """Clean views of image files, decoded ahead in a thread: (places in `paths`, views)."""
        places: list[int] = []
        views: list[ViewPixels] = []
        with Loader(Views(self.preprocessing), 1, remarks) as loader:
            work = (DecodeTask(path, b"", (CLEAN_VIEW,)) for path in paths)
            for place, (_, outcome) in enumerate(loader.run(work)):
                if isinstance(outcome, DecodeError):
                    failed[place] = str(outcome)
                    continue
                places.append(place)
                views.append(outcome[0][1])
                if len(views) == size:
                    yield places, views
                    places, views = [], []
        if views:
            yield places, views

    @torch.inference_mode()
    def log_probs(
        self, backbone: Backbone, paths: Sequence[Path], mirrored: bool = False, remarks: Remarks | None = None
    ) -> tuple[Tensor, dict[int, str]]:
        """Log-probabilities of image files (N, C) float32, and the reason by place for those that have none.

        With `mirrored`, each image is seen as it is and mirrored, and the probabilities are averaged, then scaled by
        `flip_temperature`. What is odd in files that are read goes into `remarks`.
        """
        result = torch.full((len(paths), len(self.classes)), float("nan"))
        failed: dict[int, str] = {}
        for places, views in self._batches(paths, backbone.batch_size, failed, remarks):
            result[places] = self.head(backbone.features(views))
            if mirrored:
                other = self.head(backbone.features([view[:, ::-1] for view in views]))
                both = torch.logaddexp(result[places], other)
                result[places] = torch.log_softmax(both / (self.flip_temperature or 1.0), 1)
        if not result[[place for place in range(len(paths)) if place not in failed]].isfinite().all():
            raise BundleError(f"{self.path} produced NaN or infinite probabilities: its weights are too large")
        return result, failed

    def log_probs_of_all(self, backbone: Backbone, paths: Sequence[Path], mirrored: bool = False) -> Tensor:
        """As `log_probs`, (N, C); DecodeError names the files that cannot be decoded."""
        log_probs, failed = self.log_probs(backbone, paths, mirrored)
        if failed:
            lines = "\n".join(f"  {paths[place]}: {reason}" for place, reason in failed.items())
            raise DecodeError(f"{len(failed)} of {len(paths)} images cannot be decoded:\n{lines}\nFix or remove them.")
        return log_probs

    def predict(self, paths: str | Path | Sequence[str | Path], top_k: int = 5) -> list[Prediction]:
        """The `top_k` most probable classes of each image file, or of the one, in float32 on the CPU.

        DecodeError names the first file that cannot be read; then none is predicted.
        """
        files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        log_probs, failed = self.log_probs(self._cpu_backbone, files)
        if failed:
            place, reason = next(iter(failed.items()))
            raise DecodeError(f"{files[place]}: {reason}")
        return [Prediction(path, self.top(row, top_k)) for path, row in zip(files, log_probs, strict=True)]

    def top(self, log_probs: Tensor, top_k: int, names: Mapping[str, str] | None = None) -> tuple[ClassScore, ...]:
        """The most probable classes of log-probabilities (C,), the likeliest first; `names` in place of its own."""
        shown = self.names if names is None else names
        values, places = log_probs.exp().topk(min(top_k, len(self.classes)))
        found = [(self.classes[place], p) for place, p in zip(places.tolist(), values.tolist(), strict=True)]
        return tuple(ClassScore(label, shown.get(label, label), p) for label, p in found)

    def as_module(self) -> nn.Module:
        """The whole model in float32: normalised images (B, 3, S, S) → log-probabilities (B, C).

        Images are resized, cropped and normalised as `card["preprocessing"]` says.
        """
        with torch.device("meta"):
            trunk = build_trunk(self.card["backbone"])
        trunk.load_state_dict(self.backbone_tensors, assign=True)
        return _Combined(trunk, self.head).eval().requires_grad_(False)


class _Combined(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        log_probs: Tensor = self.head(self.backbone(images))
        return log_probs
