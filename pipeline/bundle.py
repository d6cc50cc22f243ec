"""One safetensors file that predicts from image files: backbone, head, preprocessing and classes; write and read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cache.files import write_atomically
from cache.layout import CLEAN_VIEW
from pipeline.backbones.backbone import Backbone, build_trunk, load_backbone, misfit, row_shape
from pipeline.console import first_line
from pipeline.errors import BundleError, DecodeError
from pipeline.heads.head import head_from_tensors
from pipeline.inputs.decode import Decoding
from pipeline.inputs.loader import DecodeTask, Loader
from pipeline.inputs.remarks import Remarks
from pipeline.inputs.views import ViewPixels, Views
from pipeline.model.card import card_fault

BUNDLE_FORMAT = 1
METADATA_KEY = "headgraft"


def write_bundle(path: Path, backbone: dict[str, Tensor], head: nn.Sequential, card: dict[str, Any]) -> None:
    """Write tensors `backbone.*` and `head.*`, the JSON `card` and their digest as one file, whole or not at all."""
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    card = {**card, "digest": _digest(contiguous, card)}
    write_atomically(path, save(contiguous, {METADATA_KEY: json.dumps(card, sort_keys=True)}))


def _digest(tensors: dict[str, Tensor], card: dict[str, Any]) -> str:
    """Of the card without its digest, and of the name, type, shape and bytes of every tensor."""
    others = {name: value for name, value in card.items() if name != "digest"}
    state = xxhash.xxh3_128(json.dumps(others, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return f"xxh3-128:{state.hexdigest()}"


@dataclass(frozen=True)
class Guess:
    """A class, its display name and its probability."""

    label: str
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """An image file and its most probable classes, the likeliest first."""

    path: Path
    top: tuple[Guess, ...]


@dataclass(frozen=True)
class Bundle:
    """A model file in memory; `card` is its JSON: classes, names, preprocessing, manifest, training, scores."""

    path: Path
    card: dict[str, Any]
    backbone_tensors: dict[str, Tensor]
    head: nn.Sequential

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
    def views(self) -> Views:
        """The preprocessing, the same object that stage one uses."""
        return Views(self.card["preprocessing"]["input_size"], self.card["preprocessing"]["resize"])

    @property
    def decoding(self) -> Decoding:
        """How image files become pixels, as in stage one."""
        return Decoding.parse(self.card["preprocessing"]["decoding"])

    @cached_property
    def _cpu_backbone(self) -> Backbone:
        return self.backbone(torch.device("cpu"), "float32")

    def backbone(self, device: torch.device, precision: str, batch_size: int | None = None) -> Backbone:
        """The bundle's backbone, ready to compute rows."""
        return load_backbone(
            self.card["backbone"], self.backbone_tensors, device=device, precision=precision, batch_size=batch_size
        )

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
        with Loader(self.views, 1, self.decoding, remarks) as loader:
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
            raise BundleError(f"{self.path} gives probabilities that are no numbers: its weights are too large")
        return result, failed

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

    def top(self, log_probs: Tensor, top_k: int, names: Mapping[str, str] | None = None) -> tuple[Guess, ...]:
        """The most probable classes of log-probabilities (C,), the likeliest first; `names` in place of its own."""
        shown = self.names if names is None else names
        values, places = log_probs.exp().topk(min(top_k, len(self.classes)))
        found = [(self.classes[place], p) for place, p in zip(places.tolist(), values.tolist(), strict=True)]
        return tuple(Guess(label, shown.get(label, label), p) for label, p in found)

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


def load_bundle(path: str | Path) -> Bundle:
    """Read a model file; BundleError if it is not one that `export` wrote."""
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise BundleError(f"{path} is {kind}, expected a model file: make one from a run with export")
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist, expected a model file: make one with export") from error
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a model that headgraft exported: {first_line(error)}") from error
    if card is None:
        raise BundleError(f"{path} holds tensors but no model card, expected a model file: make one with export")
    if not isinstance(card, dict) or card.get("format") != BUNDLE_FORMAT:
        raise BundleError(f"{path} is not of bundle format {BUNDLE_FORMAT}: export it again")
    if "digest" in card and card["digest"] != _digest(tensors, card):
        raise BundleError(f"{path} is damaged: it has changed since it was exported; copy it or export it again")
    try:
        head = head_from_tensors(_floats(_part(tensors, "head.")))
    except (KeyError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} holds no whole head ({first_line(error)}): export it again") from error
    if wrong := card_fault(card, outputs=len(head.state_dict()["3.bias"])):
        raise BundleError(f"{path} has {wrong}: export it again")
    bundle = Bundle(path, card, _part(tensors, "backbone."), head)
    if wrong := _misfit(bundle):
        raise BundleError(f"{path} holds tensors that do not fit {card['backbone']}: {wrong}; export it again")
    return bundle


def _floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same; ValueError where one is of another type, which a head would take over in silence."""
    types = {str(tensor.dtype) for tensor in tensors.values()} - {"torch.float32"}
    if types:
        raise ValueError(f"{', '.join(sorted(types))} in place of torch.float32")
    return tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _misfit(bundle: Bundle) -> str:
    """What of the backbone or between it and the head is of another shape or type; "" where all fit."""
    name, size = bundle.card["backbone"], bundle.card["preprocessing"]["input_size"]
    wrong = misfit(name, bundle.backbone_tensors)
    tensors = [*bundle.backbone_tensors.values(), *bundle.head.state_dict().values()]
    types = {str(tensor.dtype) for tensor in tensors} - {"torch.float32"}
    if wrong or types:
        return wrong or f"{', '.join(sorted(types))} in place of torch.float32"
    if not all(tensor.isfinite().all() for tensor in tensors):
        return "numbers that are not finite"
    found, wanted = bundle.head.state_dict()["0.weight"].shape[1], prod(row_shape(name, size))
    return "" if found == wanted else f"the head takes {found} features, the backbone gives {wanted}"
