"""Backbone: a frozen network on a device, in one precision: from pixels to rows."""

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torchvision
from torch import Tensor

from cache.shard import Float16Array
from pipeline.backbones.golden import Golden
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import capability, full_precision, libraries, pins_memory

ViewPixels = Pixels | Tensor  # (size, size, 3) uint8, a tensor on the device
STEPS = 64  # grey levels to 1, a power of two: float16 would round the folded weights of single levels to few bits
Pending = Callable[[], Float16Array]  # waits for the rows of a batch: (B, D)


@dataclass(frozen=True)
class Backbone:
    """A frozen backbone on a device; `code_path` says how it computes and goes into a shard's provenance.

    `centred` is whether it takes pixels less the rounded mean, in place of normalised ones; `golden` are 16 numbers of
    its plain network, of which another one with the same tensors has others.
    """

    network: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    device: torch.device
    precision: str
    batch_size: int
    code_path: str
    centred: bool = False
    golden: Golden = ()
    nearness: float = 1.0  # lowest cosine of its rows of noise to those of the plain network in float32
    built_by: tuple[str, str] | None = None  # library of the network, and its version

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
        dtype: torch.dtype = getattr(torch, self.precision)
        pixels = (centre if self.centred else normalise)(batch, self.preprocessing).to(dtype)
        with full_precision(self.device):
            rows = self.network(pixels)
        return rows[: len(views)].float()

    @property
    def provenance(self) -> dict[str, object]:
        """Device, processor capability, versions and code path: recorded with each shard, outside its identity."""
        return {
            "device": self.device.type,
            "capability": capability(self.device),
            "machine": platform.machine(),
            "torch": re.sub(r"\+.*", "", torch.__version__),
            "torchvision": re.sub(r"\+.*", "", torchvision.__version__),
            **dict([self.built_by] if self.built_by else []),
            **libraries(self.device),
            "code_path": self.code_path,
            "golden": self.golden,
        }


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 → float32, scaled to 0..1, less the mean, over the standard deviation."""
    mean, std = (_along_rows(values, pixels) for values in (preprocessing.mean, preprocessing.std))
    return _of_rows((_rows(pixels) / 255).sub_(mean).div_(std))


def centre(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 → float32, less the rounded mean, over 64: numbers that bfloat16 and float16 hold exactly."""
    return _of_rows(_rows(pixels).sub_(_along_rows(rounded_mean(preprocessing), pixels)).div_(STEPS))


def _rows(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, H, W * 3) float32. Arithmetic on whole rows takes a fifth of the time on a CPU."""
    return pixels.permute(0, 2, 3, 1).flatten(2).float()


def _of_rows(rows: Tensor) -> Tensor:
    """And back to (B, 3, H, W), channels last."""
    images: Tensor = rows.unflatten(2, (-1, 3))
    return images.permute(0, 3, 1, 2)


def _along_rows(values: tuple[float, ...], pixels: Tensor) -> Tensor:
    """(W * 3,) float32 where the pixels are; a device is not waited for."""
    return torch.tensor(values).repeat(pixels.shape[3]).to(pixels.device, non_blocking=True)


def rounded_mean(preprocessing: Preprocessing) -> tuple[float, ...]:
    """Of pixels from 0 to 255: (124, 116, 104) for ImageNet's."""
    return tuple(float(round(255 * mean)) for mean in preprocessing.mean)
