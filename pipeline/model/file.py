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
from pipeline.backbones.backbone import row_shape, state_dict_mismatch
from pipeline.console import first_line
from pipeline.errors import BundleError
from pipeline.heads.head import Head
from pipeline.model.bundle import Bundle
from pipeline.model.card import card_fault

BUNDLE_FORMAT = 1
METADATA_KEY = "headgraft"


def write_bundle(path: Path, backbone: dict[str, Tensor], head: Head, card: dict[str, Any]) -> None:
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


def load_bundle(path: str | Path) -> Bundle:
    """Read a model file; BundleError if it is not one that `export` wrote."""
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
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
        head = Head.from_tensors(_floats(_part(tensors, "head.")))
    except (KeyError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} holds no whole head ({first_line(error)}): export it again") from error
    if wrong := card_fault(card, outputs=head.num_classes):
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
    wrong = state_dict_mismatch(name, bundle.backbone_tensors)
    tensors = [*bundle.backbone_tensors.values(), *bundle.head.state_dict().values()]
    types = {str(tensor.dtype) for tensor in tensors} - {"torch.float32"}
    if wrong or types:
        return wrong or f"{', '.join(sorted(types))} in place of torch.float32"
    if not all(tensor.isfinite().all() for tensor in tensors):
        return "numbers that are not finite"
    found, wanted = bundle.head.in_features, prod(row_shape(name, size))
    return "" if found == wanted else f"the head takes {found} features, the backbone gives {wanted}"
