"""Views rendered on a device, many images at a time, in the thread that computes there and on its current stream.

The policy of `views`, within `TOLERANCE`. A device is given a few large pieces of work: for each little one its caller
waits ten microseconds, and for every thread that decodes beside it.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pipeline.inputs.augment import ViewParameters
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import BICUBIC, BILINEAR
from pipeline.inputs.views import Views, halvings
from pipeline.machine.device import full_precision, pins_memory, release_memory

TOLERANCE = 2  # grey levels of 255 that a pixel may differ by from the processor's
OF_PHOTOGRAPHS = 1  # and in photographs
MOST_VIEWS = 64  # rendered together, of images of so many bytes,
_BYTES = 1 << 27  # where all are as large as the largest

_SUPPORT = {BILINEAR: 1, BICUBIC: 2}  # pixels to either side, where the axis grows

Key = TypeVar("Key")
Shape = tuple[int, int]  # height and width


@dataclass(frozen=True)
class DecodedView:
    """A view that is yet to be rendered, of decoded pixels."""

    pixels: Pixels
    parameters: ViewParameters | None


@dataclass(frozen=True)
class SideBySide:
    """Images of several sizes in one array on the device, (N, most, most, 3) uint8; zero, or any, outside of each."""

    pixels: Tensor
    shapes: list[Shape]


class DeviceViews:
    """Renders the views of one cache on `device`."""

    place = "device"

    def __init__(self, views: Views, device: torch.device) -> None:
        self.views, self.preprocessing, self.device = views, views.preprocessing, device
        self.seconds = 0.0  # spent on rendering, beside the decoding threads

    def prepare(self, pixels: Pixels, digest: bytes, views: Sequence[str]) -> list[DecodedView]:
        """Each of `views`, pass:K, of an image: what a decoding thread can do of them."""
        return [DecodedView(pixels, self.views.parameters(digest, view)) for view in views]

    def finish(self, views: Iterable[tuple[Key, DecodedView]]) -> Iterator[tuple[Key, Tensor]]:
        """Each with its key, (size, size, 3) uint8 on the device, ready for what its current stream is given next."""
        some: list[tuple[Key, DecodedView]] = []
        height = width = 0
        for key, view in views:
            height, width = max(height, view.pixels.shape[0]), max(width, view.pixels.shape[1])
            if len(some) == MOST_VIEWS or (some and 3 * height * width * len(some) > _BYTES):  # side by side
                yield from self._finished(some)
                some, (height, width, _) = [], view.pixels.shape
            some.append((key, view))
        yield from self._finished(some)

    def _finished(self, some: list[tuple[Key, DecodedView]]) -> Iterator[tuple[Key, Tensor]]:
        """In halves where a device has no room for all, as beside a large batch."""
        if not some:
            return
        keys, views = zip(*some, strict=True)
        start = time.perf_counter()
        try:
            rendered = self.render(views)
        except torch.OutOfMemoryError:
            if len(some) == 1:
                raise
            rendered = None
        self.seconds += time.perf_counter() - start
        if rendered is not None:
            yield from zip(keys, rendered.unbind(), strict=True)
            return
        release_memory(self.device)
        for half in (some[: len(some) // 2], some[len(some) // 2 :]):
            yield from self._finished(half)

    @torch.inference_mode()
    def render(self, views: Sequence[DecodedView]) -> Tensor:
        """(B, size, size, 3) uint8 on the device; views of one image follow one another."""
        with full_precision(self.device):
            return self._render(views)

    def _render(self, views: Sequence[DecodedView]) -> Tensor:
        size = self.preprocessing.input_size
        rendered = torch.empty(len(views), size, size, 3, dtype=torch.uint8, device=self.device)
        images, of = self._images(views)
        clean = [number for number, view in enumerate(views) if view.parameters is None]
        if clean:
            chosen = self._chosen(images, [of[number] for number in clean])
            layouts = [self.preprocessing.clean_layout(*shape) for shape in chosen.shapes]
            scaled, corners = [to for to, _ in layouts], [(box[1], box[0]) for _, box in layouts]
            rendered.index_copy_(
                0,
                self._on_device(clean),
                self._resized(chosen, scaled, corners, (size, size), self.preprocessing.filter),
            )
        looks = {number: view.parameters for number, view in enumerate(views) if view.parameters is not None}
        times = {n: halvings(look.area_of(*images.shapes[of[n]]), size) for n, look in looks.items()}
        for level in range(max(times.values(), default=-1) + 1):
            if level:
                kept = sorted({of[number] for number in times if times[number] >= level})
                images = self._halved(self._chosen(images, kept))
                of = {number: kept.index(of[number]) for number in times if times[number] >= level}
            if turned := [number for number in times if times[number] == level]:
                found = self._turned(images, [of[number] for number in turned], [looks[number] for number in turned])
                rendered.index_copy_(0, self._on_device(turned), found)
        return rendered

    def _images(self, views: Sequence[DecodedView]) -> tuple[SideBySide, dict[int, int]]:
        """The images of views, and which of them each view is of; they travel in one piece."""
        distinct: list[Pixels] = []
        of = {}
        for number, view in enumerate(views):
            if not distinct or distinct[-1] is not view.pixels:
                distinct.append(view.pixels)
            of[number] = len(distinct) - 1
        shapes = [(pixels.shape[0], pixels.shape[1]) for pixels in distinct]
        ends = np.cumsum([height * width for height, width in shapes])
        host = torch.empty(int(ends[-1]), 3, dtype=torch.uint8, pin_memory=pins_memory(self.device))
        for end, pixels in zip(ends, distinct, strict=True):
            host.numpy()[end - pixels.size // 3 : end] = pixels.reshape(-1, 3)
        starts = [int(end) - height * width for end, (height, width) in zip(ends, shapes, strict=True)]
        flat = host.to(self.device, non_blocking=True)
        return self._taken(flat, [(*at, at[0][1]) for at in zip(shapes, starts, strict=True)]), of

    def _taken(self, flat: Tensor, places: "list[tuple[Shape, int, int]]") -> SideBySide:
        """Rectangles of pixels (P, 3), each given by its shape, where it starts and how far its lines are apart."""
        shapes = [shape for shape, _, _ in places]
        heights, widths, starts, strides = self._on_device([(*shape, *at) for shape, *at in places]).T[..., None, None]
        down, across = (torch.arange(max(sides), device=self.device) for sides in zip(*shapes, strict=True))
        index = starts + down[:, None] * strides + across
        inside = (down[:, None] < heights) & (across < widths)
        pixels = flat[torch.where(inside, index, 0)]
        return SideBySide(pixels.mul_(inside[..., None]), shapes)

    def _chosen(self, images: SideBySide, numbers: list[int]) -> SideBySide:
        """Some of the images, or all as they are."""
        if numbers == list(range(len(images.shapes))):
            return images
        return SideBySide(images.pixels[self._on_device(numbers)], [images.shapes[number] for number in numbers])

    def _halved(self, images: SideBySide) -> SideBySide:
        """Every image at half of its size."""
        halves = [(max(1, height // 2), max(1, width // 2)) for height, width in images.shapes]
        most = max(height for height, _ in halves), max(width for _, width in halves)
        return SideBySide(self._resized(images, halves, [(0, 0)] * len(halves), most, BILINEAR), halves)

    def _resized(
        self, images: SideBySide, to: list[Shape], corners: list[Shape], size: Shape, interpolation: str
    ) -> Tensor:
        """(B, *size, 3) uint8 of images resized `to` each shape, from its corner on: by products with `_weights`.

        Across and then down, each to whole grey levels, as Pillow does it.
        """
        count, height, width, _ = images.pixels.shape
        places = [*zip(images.shapes, to, corners, strict=True)]
        down, across = ([tuple(place[axis] for place in one) for one in places] for axis in (0, 1))
        channels = images.pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        narrow = channels.flatten(1, 2) @ self._weights(across, width, size[1], interpolation).mT
        narrow = narrow.round_().clamp_(0, 255)  # (B, 3 height, size)
        narrow = narrow.view(count, 3, height, size[1]).permute(0, 2, 3, 1).flatten(2)  # (B, height, 3 size)
        found: Tensor = self._weights(down, height, size[0], interpolation) @ narrow
        return found.round_().clamp_(0, 255).to(torch.uint8).view(count, *size, 3)

    def _weights(self, axes: list[tuple[int, ...]], length: int, size: int, interpolation: str) -> Tensor:
        """(B, size, length): what each pixel of a resized axis, from the first that is kept on, takes of each before.

        An axis is its pixels before and after, and that first. A filter as wide as the scale, or of pixels where the
        axis grows, as Pillow has it: a triangle, or the cubic of Keys (1981) with a = -1/2.
        """
        before, after, first = self._on_device(axes).float().T[..., None, None]
        scale = before / after
        centres = (torch.arange(size, device=self.device)[:, None] + first + 0.5) * scale
        at = torch.arange(length, dtype=torch.float32, device=self.device)
        apart = (at + 0.5 - centres).abs() / scale.clamp(min=1)
        if interpolation == BILINEAR:
            weights = 1 - apart
        else:
            near, far = (1.5 * apart - 2.5) * apart**2 + 1, ((2.5 - 0.5 * apart) * apart - 4) * apart + 2
            weights = torch.where(apart < 1, near, far)
        weights = weights.mul_(apart < _SUPPORT[interpolation]).mul_(at < before)
        total = weights.sum(2, keepdim=True)
        found: Tensor = weights / torch.where(total > 0, total, 1)  # beyond a smaller axis there are none
        return found

    def _turned(self, images: SideBySide, of: list[int], looks: list[ViewParameters]) -> Tensor:
        """(B, size, size, 3) uint8: crops flipped and turned in one bilinear sampling, black outside of each."""
        size, (_, height, width, _) = self.preprocessing.input_size, images.pixels.shape
        places: list[tuple[Shape, int, int]] = []
        turns = []
        for number, look in zip(of, looks, strict=True):
            left, top, right, bottom = look.box(*images.shapes[number])
            places.append(((bottom - top, right - left), (number * height + top) * width + left, width))
            turns.append(
                (math.cos(math.radians(look.degrees)), math.sin(math.radians(look.degrees)), 1 - 2 * look.flip)
            )
        crops = self._taken(images.pixels.flatten(0, 2), places)
        channels = crops.pixels.permute(0, 3, 1, 2).float()
        shares = [(shape[0] / channels.shape[2], shape[1] / channels.shape[3]) for shape in crops.shapes]
        rows = [(*turn, *share) for turn, share in zip(turns, shares, strict=True)]
        cosine, sine, mirror, high, wide = self._on_device(rows).float().T[..., None, None]
        across = (2 * torch.arange(size, dtype=torch.float32, device=self.device) + 1 - size) / size
        x, y = across.expand(size, size), across[:, None].expand(size, size)
        # In -1..1 across the array that the crop lies in at its upper left.
        grid = torch.stack((((x * cosine - y * sine) * mirror + 1) * wide, (y * cosine + x * sine + 1) * high), 3) - 1
        sampled: Tensor = grid_sample(channels, grid, align_corners=False).add_(0.5)
        return sampled.to(torch.int16).to(torch.uint8).permute(0, 2, 3, 1)

    def _on_device(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers).to(self.device, non_blocking=True)
