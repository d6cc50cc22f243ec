"""One safetensors file that predicts from image files: writing it, and reading it into a `Bundle`."""

import json
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cache.files import write_atomically
from cache.records import fault
from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.trunk import layer_of, state_dict_mismatch
from pipeline.backbones.weights import tensor_digest, weights_folder
from pipeline.errors import BundleError, ConfigError, PipelineError
from pipeline.heads.head import Head
from pipeline.model.bundle import Bundle
from pipeline.model.card import BUNDLE_FORMAT, ModelCard
from pipeline.row_layout import layout_of
from pipeline.unknown.detector import UnknownDetector, pooled

METADATA_KEY = "headgraft"
MEAN_ROW = "evidence.mean"


def write_bundle(
    path: Path,
    backbone: dict[str, Tensor],
    head: Head,
    card: dict[str, Any],
    detector: UnknownDetector | None = None,
    mean_row: Tensor | None = None,
) -> None:
    """Write tensors `backbone.*`, `head.*`, `unknown.*` and the mean row, if any, the JSON `card` and their digest.

    As one file, whole or not at all.
    """
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    if detector:
        tensors |= {f"unknown.{name}": tensor for name, tensor in detector.tensors().items()}
    if mean_row is not None:
        tensors[MEAN_ROW] = mean_row
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


def load_model(path: str | Path, weights: str | None = None) -> Bundle:
    """Read a model file.

    Args:
        path: of the file that `export` wrote.
        weights: file of the backbone's weights; for a model without them that are neither in its folder nor in the
            weights folder.

    Raises:
        BundleError: it is not such a file, or the weights are missing.
    """
    path = Path(path)
    stored, tensors = _read(path)
    if "digest" in stored and stored["digest"] != _digest(tensors, stored):
        raise BundleError(f"{path} is damaged: it has changed since it was exported; copy it or export it again")
    try:
        card = ModelCard.of(stored)
    except ValueError as error:
        raise BundleError(
            f"{path} has an unusable card ({fault(error)}): export it again, or update headgraft"
        ) from error
    try:
        backbone_spec(card.backbone)
    except ConfigError as error:  # a library is missing, or a program's own backbone: no fault of the file
        raise BundleError(f"{path} needs a backbone that is not here: {error}") from error
    backbone, layers = _part(tensors, "backbone."), _part(tensors, "head.")
    if card.without_backbone and not backbone:
        backbone = _backbone_elsewhere(path, card, weights)
    try:
        head = _fitting_head(card, backbone, layers)
        detector, mean = _fitting_extras(card, tensors)
    except (RuntimeError, ValueError, ConfigError) as error:
        raise BundleError(
            f"{path} holds tensors that do not fit its card ({card.backbone}): {fault(error)}; export it again"
        ) from error
    return Bundle(path, card, backbone, head, stored, detector, mean)


def _backbone_elsewhere(path: Path, card: ModelCard, weights: str | None) -> dict[str, Tensor]:
    """The tensors that the head was trained on: named ones, or of a file beside the model or in the weights folder."""
    base, name = card.manifest.base, card.weights.get("source", "")
    wanted = f"{path} holds the head alone, without {base.backbone} (digest {base.weights_digest[:16]})"
    places = [folder / name for folder in (path.absolute().parent, weights_folder())]
    if name != backbone_spec(base.backbone, name).weights.name:
        found = [weights, *(str(place) for place in places if place.is_file())] if name else []
        name = next(filter(None, found), "")
    if not name:
        raise BundleError(f"{wanted}: put its weights file at {' or '.join(map(str, places))}")
    try:
        tensors = load_tensors(base.backbone, name, base.input_size)
    except PipelineError as error:
        raise BundleError(f"{wanted}: {error}") from error
    if tensor_digest(tensors) != base.weights_digest:
        raise BundleError(f"{wanted}: {name} holds other weights, put those of the digest there")
    return tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card as it is stored, and the tensors by name."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise BundleError(f"{path} {found}, expected a model file: make one from a run with export")
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        with open(path, "rb") as begin:
            ours = f'"{METADATA_KEY}"'.encode() in begin.read(64)
        found = "is damaged: copy it again, or" if ours else "is not a model that headgraft exported:"
        raise BundleError(f"{path} {found} make one from a run with export") from error
    if card is None:
        raise BundleError(f"{path} holds tensors but no model card, expected a model file: make one with export")
    if not isinstance(card, dict) or card.get("format") != BUNDLE_FORMAT:
        raise BundleError(f"{path} is not of bundle format {BUNDLE_FORMAT}: export it again")
    return card, tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fitting_head(card: ModelCard, backbone: dict[str, Tensor], layers: dict[str, Tensor]) -> Head:
    """The head; ValueError where a tensor of it or of the backbone is of another shape or type than the card says."""
    tensors, base = [*backbone.values(), *layers.values()], card.manifest.base
    if types := {str(tensor.dtype) for tensor in tensors} - {"torch.float32"}:
        raise ValueError(f"{', '.join(sorted(types))} in place of torch.float32")
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("numbers that are not finite")
    if wrong := state_dict_mismatch(base.backbone, backbone, base.input_size):
        raise ValueError(wrong)
    try:
        head = Head.from_tensors(layers)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"no complete head ({fault(error)})") from error
    found, wanted = head.in_features, prod(layer_of(base.backbone, base.input_size, base.layer)[1])
    if found != wanted:
        raise ValueError(f"the head takes {found} features, the backbone gives {wanted}")
    if head.num_classes != len(card.classes):
        raise ValueError(f"the head has {head.num_classes} outputs for {len(card.classes)} classes")
    return head


def _fitting_extras(card: ModelCard, tensors: dict[str, Tensor]) -> tuple[UnknownDetector | None, Tensor | None]:
    """The detector and the mean row, if any; ValueError where one is of another shape or type than the card says."""
    layout, extras = layout_of(card.manifest), _part(tensors, "unknown.")
    mean = tensors.get(MEAN_ROW)
    every = [*extras.values(), *([] if mean is None else [mean])]
    if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in every):
        raise ValueError("numbers of unknown images or of the mean image that are no finite float32")
    if mean is not None and mean.shape != (layout.in_features,):
        raise ValueError(f"a mean image of {tuple(mean.shape)} for {layout.in_features} features")
    if not card.unknown:
        return None, mean
    width = pooled(layout, torch.zeros(1, layout.in_features)).shape[1]
    try:
        return UnknownDetector.from_tensors(extras, width), mean
    except KeyError as error:
        raise ValueError(f"no complete detector of unknown images ({error})") from error
