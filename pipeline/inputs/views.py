"""Decoded images → pixels of their views: the clean one is Pillow's, as torchvision's preset has it, bit for bit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from cache.layout import pass_number
from pipeline.inputs.augment import ViewParameters, view_parameters
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import Preprocessing

Key = TypeVar("Key")


def augmented_view(image: "Halves", size: int, parameters: ViewParameters) -> Tensor:
    """Crop, flip and turn in one bilinear sampling → (3, size, size) uint8, where the image lies.

    What the turn brings in at the corners is black.
    """
    view = grid_sample(image.crop(size, parameters).float(), _turn(size, parameters), align_corners=False)
    return view[0].add_(0.5).to(torch.int16).to(torch.uint8)  # several times as fast as straight to bytes


class Halves:
    """An image, (1, 3, height, width) uint8 or float32, and its halves in size, each made when first asked for."""

    def __init__(self, image: Tensor) -> None:
        self._images = [image]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the whole."""
        return self._images[0].shape[2], self._images[0].shape[3]

    def crop(self, size: int, parameters: ViewParameters) -> Tensor:
        """What a view of `size` is sampled from, (1, 3, height, width): the crop of the image, or, where that has two
        of its pixels or more for one of the view, of the smallest half that has one.
        """
        source = self.halved(halvings(parameters.area_of(*self.shape), size))
        left, top, right, bottom = parameters.box(source.shape[2], source.shape[3])
        return source[:, :, top:bottom, left:right]

    def halved(self, times: int) -> Tensor:
        """The image halved so many times."""
        while len(self._images) <= times:
            last = self._images[-1]
            self._images.append(_resized(last, max(1, last.shape[2] // 2), max(1, last.shape[3] // 2)))
        return self._images[times]


def halvings(area: int, size: int) -> int:
    """How often an image is halved before a crop of `area` pixels of it is sampled for a view of `size`."""
    return max(0, math.floor(math.log2(math.sqrt(area) / size)))


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, to whole numbers, across and then down, as Pillow does it and torch's for bytes."""
    if image.dtype == torch.uint8:
        return interpolate(image, (height, width), mode="bilinear", antialias=True)
    across = interpolate(image, (image.shape[2], width), mode="bilinear", antialias=True).round()
    return interpolate(across, (height, width), mode="bilinear", antialias=True).round()


def _turn(size: int, parameters: ViewParameters) -> Tensor:
    """(1, size, size, 2): for each pixel of the view, where it lies in the crop, in -1..1 across it."""
    angle = math.radians(parameters.degrees)
    grid = torch.view_as_real(_plane(size) * complex(math.cos(angle), math.sin(angle)))[None]
    if parameters.flip:
        grid[..., 0].neg_()
    return grid


@cache
def _plane(size: int) -> Tensor:
    """(size, size): the centres of a view's pixels as complex numbers, so that to turn them is to multiply them."""
    across = (2 * torch.arange(size, dtype=torch.float32) + 1 - size) / size
    return torch.complex(across.expand(size, size), across[:, None].expand(size, size))


@dataclass(frozen=True)
class Views:
    """Renders the views of one cache; `seed` is that of the augmented passes.

    `place` says where, and goes into the provenance of rows.
    """

    preprocessing: Preprocessing
    seed: int = 0
    place: ClassVar[str] = "processor"
    seconds: ClassVar[float] = 0.0  # spent on rendering beside the decoding threads: none

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

    prepare = render_all  # in the thread that decoded the image, all of it

    def finish(self, views: Iterator[tuple[Key, Pixels]]) -> Iterator[tuple[Key, Pixels]]:
        """The same: nothing is left to do."""
        return views

    def parameters(self, digest: bytes, view: str) -> ViewParameters | None:
        """Of an augmented view; None of the clean one."""
        number = pass_number(view)
        return view_parameters(self.seed, digest, number) if number else None
