"""Decoded images → pixels of their views, on the processor or on a device.

One policy, two ways: on the processor the clean view is Pillow's, as torchvision's preset has it, bit for bit; on a
device torch resizes in float32 and rounds, which is the same within `TOLERANCE`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from cache.layout import pass_number
from pipeline.inputs.augment import ViewParameters, clean_layout, view_parameters
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import Preprocessing

TOLERANCE = 1  # grey level of 255 that a pixel may differ by between the two
ViewPixels = Pixels | Tensor  # (size, size, 3) uint8


def augmented_view(image: "Halves", size: int, parameters: ViewParameters) -> Tensor:
    """Crop, flip and turn in one bilinear sampling → (3, size, size) uint8, where the image lies.

    It is taken from the image, or, where the crop has two of its pixels or more for one of the view, from the smallest
    half that has one. What the turn brings in at the corners is black.
    """
    left, top, right, bottom = parameters.box(*image.shape)
    scale = math.sqrt((right - left) * (bottom - top)) / size
    source = image.halved(max(0, math.floor(math.log2(scale))))
    left, top, right, bottom = parameters.box(source.shape[2], source.shape[3])
    crop = source[:, :, top:bottom, left:right].float()
    view = grid_sample(crop, _turn(size, parameters, crop.device), align_corners=False)
    return view[0].add_(0.5).to(torch.int16).to(torch.uint8)  # several times as fast as straight to bytes


class Halves:
    """An image, (1, 3, height, width) uint8 or float32, and its halves in size, each made when first asked for."""

    def __init__(self, image: Tensor) -> None:
        self._images = [image]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return self._images[0].shape[2], self._images[0].shape[3]

    def halved(self, times: int) -> Tensor:
        """The image halved so many times."""
        while len(self._images) <= times:
            last = self._images[-1]
            self._images.append(_resized(last, max(1, last.shape[2] // 2), max(1, last.shape[3] // 2)))
        return self._images[times]


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, to whole numbers, across and then down, as Pillow does it and torch's for bytes."""
    if image.dtype == torch.uint8:
        return interpolate(image, (height, width), mode="bilinear", antialias=True)
    across = interpolate(image, (image.shape[2], width), mode="bilinear", antialias=True).round()
    return interpolate(across, (height, width), mode="bilinear", antialias=True).round()


def _turn(size: int, parameters: ViewParameters, device: torch.device) -> Tensor:
    """(1, size, size, 2): for each pixel of the view, where it lies in the crop, in -1..1 across it."""
    angle = math.radians(parameters.degrees)
    grid = torch.view_as_real(_plane(size, device) * complex(math.cos(angle), math.sin(angle)))[None]
    if parameters.flip:
        grid[..., 0].neg_()
    return grid


@cache
def _plane(size: int, device: torch.device) -> Tensor:
    """(size, size): the centres of a view's pixels as complex numbers, so that to turn them is to multiply them."""
    across = (2 * torch.arange(size, dtype=torch.float32, device=device) + 1 - size) / size
    return torch.complex(across.expand(size, size), across[:, None].expand(size, size))


@dataclass(frozen=True)
class Views:
    """Renders the views of one cache; `seed` is that of the augmented passes.

    `place` says where, and goes into the provenance of rows.
    """

    preprocessing: Preprocessing
    seed: int = 0
    place: ClassVar[str] = "processor"

    @torch.inference_mode()
    def render_all(self, pixels: Pixels, digest: bytes, views: Sequence[str]) -> list[Pixels]:
        """Each of `views`, pass:K, (size, size, 3) uint8, of the decoded image of a file with SHA-256 `digest`."""
        image: Halves | None = None  # made for the first augmented view, if there is one
        rendered = []
        for name in views:
            parameters = self.parameters(digest, name)
            if parameters is None:
                rendered.append(self.preprocessing.view(pixels))
            else:
                if image is None:  # a copy, since torch wants what it could write to
                    image = Halves(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
                view = augmented_view(image, self.preprocessing.input_size, parameters)
                rendered.append(np.stack([*view.numpy()], axis=-1))
        return rendered

    def parameters(self, digest: bytes, view: str) -> ViewParameters | None:
        """Of an augmented view; None of the clean one."""
        number = pass_number(view)
        return view_parameters(self.seed, digest, number) if number else None


class DeviceViews:
    """Renders the same views on `device`: decoded pixels travel there once, through pinned memory, on a stream of its
    own, so that rendering goes on beside the backbone.
    """

    place = "device"

    def __init__(self, views: Views, device: torch.device) -> None:
        self.views, self.preprocessing, self.device = views, views.preprocessing, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.inference_mode()
    def render_all(self, pixels: Pixels, digest: bytes, views: Sequence[str]) -> list[Tensor]:
        """Each view (size, size, 3) uint8, on the device, ready for whatever its current stream is given next."""
        with torch.cuda.stream(self._stream):  # of None: nothing
            host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=self._stream is not None)
            host.numpy()[...] = pixels
            image = Halves(host.to(self.device, non_blocking=True).permute(2, 0, 1)[None].float())
            rendered = [self._render(image, digest, view).permute(1, 2, 0) for view in views]
        if self._stream is not None:
            computing = torch.cuda.default_stream(self.device)
            computing.wait_stream(self._stream)
            for view in rendered:
                view.record_stream(computing)  # or its memory would be given away while the backbone still reads it
        return rendered

    def _render(self, image: Halves, digest: bytes, view: str) -> Tensor:
        size, parameters = self.preprocessing.input_size, self.views.parameters(digest, view)
        if parameters is not None:
            return augmented_view(image, size, parameters)
        (height, width), (left, top, right, bottom) = clean_layout(*image.shape, size, self.preprocessing.resize)
        return _resized(image.halved(0), height, width)[0, :, top:bottom, left:right].to(torch.uint8)


Renderer = Views | DeviceViews
