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

from pipeline.errors import WeightsError


@dataclass(frozen=True)
class NamedWeights:
    """Weights known by name: torchvision's enum member, and how the package-index archive spells them, if it does.

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
        return weights_folder() / f"{self.backbone}-{self.name}.safetensors"

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
        raise WeightsError(
            f"{path} is not a file of weights that can be read without running code: expected a .safetensors file, "
            "or a state dict that torch.save wrote"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{path} holds a {type(tensors).__name__}, expected a state dict of tensors")
    return tensors
