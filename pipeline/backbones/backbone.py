"""Backbone: a frozen network on a device, in one precision, by the fastest path that it has there."""

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from cache.shard import Float16Array
from pipeline.backbones.fused import fuse
from pipeline.backbones.spec import build_trunk
from pipeline.backbones.winograd import accelerate
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import capability, full_precision, libraries, pins_memory

ViewPixels = Pixels | Tensor  # (size, size, 3) uint8, a tensor on the device
_STEPS = 64  # grey levels to 1, a power of two: float16 would round the folded weights of single levels to few bits
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
        return 0 if self.device.type == "cpu" else 3

    @torch.inference_mode()
    def start(self, views: Sequence[ViewPixels]) -> Pending:
        """The same, not waited for where a device computes: call what is returned for the rows."""
        rows = self._forward(views).half()
        if self.device.type == "cpu":
            return rows.numpy
        host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=pins_memory(self.device))
        host.copy_(rows, non_blocking=True)
        copied = torch.Event(self.device)
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
            batch = torch.stack(cast(list[Tensor], list(views)))
        else:
            batch = torch.from_numpy(np.stack(cast(list[Pixels], list(views)))).to(self.device)
        if self.device.type != "cpu" and len(views) < self.batch_size:  # one shape, and so one way to compute
            batch = torch.cat([batch, batch.new_zeros(self.batch_size - len(views), *batch.shape[1:])])
        batch = batch.permute(0, 3, 1, 2)  # (B, 3, H, W), channels last
        prepare = normalise if self.precision == "float32" else partial(centre, dtype=getattr(torch, self.precision))
        with full_precision(self.device):
            rows = self.network(prepare(batch, self.preprocessing))
        return rows[: len(views)].float()

    @property
    def provenance(self) -> dict[str, str]:
        """Device, processor capability, versions and code path: recorded with each shard, outside its identity."""
        return {
            "device": self.device.type,
            "capability": capability(self.device),
            "machine": platform.machine(),
            "torch": re.sub(r"\+.*", "", torch.__version__),
            "torchvision": re.sub(r"\+.*", "", torchvision.__version__),
            **libraries(self.device),
            "code_path": self.code_path,
        }


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 → float32, scaled to 0..1, less the mean, over the standard deviation."""
    mean, std = (_by_channel(values, pixels.device) for values in (preprocessing.mean, preprocessing.std))
    return (pixels.float() / 255 - mean) / std


def centre(pixels: Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(B, 3, H, W) uint8 → bfloat16 or float16, less the rounded mean, over 64: numbers that both hold exactly."""
    return ((pixels.float() - _by_channel(_rounded_mean(preprocessing), pixels.device)) / _STEPS).to(dtype)


def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(1, 3, 1, 1) float32 on the device, which is not waited for."""
    return torch.tensor(values).to(device, non_blocking=True).view(1, 3, 1, 1)


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
    first.weight = nn.Parameter((weight * (_STEPS / (255 * std))).float())
    first.bias = nn.Parameter(bias.float())


def load_backbone(
    name: str,
    tensors: dict[str, Tensor],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    precision: str,
    batch_size: int | None = None,
) -> Backbone:
    """Put `tensors` into backbone `name` on `device`, frozen.

    On the CPU and on CUDA layers are fused, and a CPU's float32 goes through Winograd convolutions.
    """
    with torch.device("meta"):
        network = build_trunk(name)
    network.load_state_dict(tensors, assign=True)
    if precision != "float32":
        _take_centred(network, preprocessing)
    dtype: torch.dtype = getattr(torch, precision)
    network = network.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    code_path = _put_together(network, device, precision)
    if batch_size is None:
        batch_size = 8 if device.type == "cpu" else max(1, int(256 * (224 / preprocessing.input_size) ** 2))
    return Backbone(network, preprocessing, device, precision, batch_size, code_path)


def _put_together(network: nn.Module, device: torch.device, precision: str) -> str:
    """Layers of `network` put together, in place, as is fastest on `device`; the name of that path."""
    if device.type not in ("cpu", "cuda"):
        return "eager"
    accelerated = device.type == "cpu" and precision == "float32" and accelerate(network)
    fused = fuse(network)
    return "winograd" if accelerated else "fused" if fused else "eager"
