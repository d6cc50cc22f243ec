"""Backbone: a frozen network on a device, in one precision, by the fastest path that it has there."""

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from cache.shard import Float16Array
from pipeline.backbones.compiled import compile_network
from pipeline.backbones.fused import fuse
from pipeline.backbones.spec import build_trunk
from pipeline.backbones.winograd import accelerate
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.views import ViewPixels

Pending = Callable[[], Float16Array]  # waits for the rows of a batch: (B, D)


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
        if isinstance(views[0], Tensor):
            stacked = torch.stack(cast(list[Tensor], list(views)))
        else:
            stacked = torch.from_numpy(np.stack(views))
        batch = stacked.permute(0, 3, 1, 2)  # (B, 3, H, W), channels last
        if self.code_path == "compiled" and len(views) < self.batch_size:  # one shape, one compilation
            batch = torch.cat([batch, batch[:1].expand(self.batch_size - len(views), -1, -1, -1)])
        prepare = normalise if self.precision == "float32" else centre
        rows = self.network(prepare(batch.to(self.device), self.preprocessing))
        return rows[: len(views)].float()

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
    dtype = torch.float32
    if precision == "bfloat16":
        _take_centred(network, preprocessing)
        dtype = torch.bfloat16
    network = network.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    run, code_path = _fastest(network, device, precision, compiled)
    batch_size = batch_size or (64 if device.type == "cuda" else 8)
    return Backbone(run, preprocessing, device, precision, batch_size, code_path)


def _fastest(
    network: nn.Module, device: torch.device, precision: str, compiled: bool
) -> tuple[Callable[[Tensor], Tensor], str]:
    """How the network is called, and the name of that path."""
    if compiled and (fast := compile_network(network)) is not None:
        return fast, "compiled"
    if device.type != "cpu":
        return network, "eager"
    accelerated = precision == "float32" and accelerate(network)
    fused = fuse(network)
    return network, "winograd" if accelerated else "fused" if fused else "eager"
