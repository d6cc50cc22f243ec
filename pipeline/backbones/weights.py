"""Pretrained weights on this machine: their names, files and digests."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.console import first_line
from pipeline.errors import WeightsError


@dataclass(frozen=True)
class NamedWeights:
    """Weights known by name: torchvision's enum member, if they are of it, and how the package-index archive has them.

    `digest` is that of the feature tensors (see `tensor_digest`), None where it was never pinned;
    `archive_member` names the file in the archive, `archive_layers` the feature layers it holds, in order.
    """

    backbone: str
    name: str
    enum: Any
    digest: str | None = None
    archive_member: str | None = None
    archive_layers: tuple[int, ...] = ()

    @property
    def path(self) -> Path:
        """Where these weights lie once fetched."""
        stem = self.backbone.replace("/", "-")  # of timm's, whose names end in that of the weights
        stem += "" if stem.endswith(f".{self.name}") else f"-{self.name}"
        return weights_folder() / f"{stem}.safetensors"

    @property
    def present(self) -> bool:
        """Whether they are there, where this user may look."""
        return os.access(self.path, os.R_OK)


def weights_folder() -> Path:
    """The user's weights folder, `$XDG_CACHE_HOME/headgraft/weights`, by default under `~/.cache`.

    WeightsError where there is neither, as for a user of a container that its system does not know.
    """
    folder = os.environ.get("XDG_CACHE_HOME")
    if not folder:
        try:
            folder = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise WeightsError(
                "this user has no home folder, which weights are kept in: set XDG_CACHE_HOME to a folder "
                "that can be written"
            ) from error
    return Path(folder) / "headgraft" / "weights"


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: name, dtype, shape and little-endian bytes of each, by name."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().contiguous().cpu().numpy()
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors`, or a `.pth` without running code; WeightsError if it is neither."""
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a regular file, expected a .safetensors file, or a state dict of torch.save")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on garbage torch.load raises KeyError, IndexError and others; nothing has run
        if path.suffix == ".safetensors":
            raise WeightsError(f"{path} is damaged or incomplete ({first_line(error)}): copy it again") from error
        raise WeightsError(
            f"{path} is not a file of weights that can be read without running code: expected a .safetensors file, "
            "or a state dict that torch.save wrote"
        ) from error
    for key in ("state_dict", "model"):  # as training scripts save it, beside other things
        if isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
            tensors = tensors[key]
    named = isinstance(tensors, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    )
    if not named:
        raise WeightsError(f"{path} holds a {type(tensors).__name__}, expected a state dict of tensors by name")
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            raise WeightsError(f"{path}: {key} is not a plain tensor of numbers, expected floating-point ones")
    shared = "module." if tensors and all(key.startswith("module.") for key in tensors) else ""  # of DataParallel
    return {key.removeprefix(shared): value for key, value in tensors.items()}
