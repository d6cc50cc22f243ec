"""Where each view of an image looks: augmented passes have parameters that follow from (seed, image digest, pass).

The parameters are words of SHA-512 over that key, not draws from a generator: they do not depend on workers,
batch size, order, or a library's version.
"""

import hashlib
import math
import struct
from dataclasses import dataclass

RECIPE = "crop-flip-rotate"
RECIPE_VERSION = 2
SCALE = (0.35, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width over height, drawn on a log scale
DEGREES = 20.0
FLIP = 0.5

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are outside


@dataclass(frozen=True)
class ViewParameters:
    """Where one augmented pass looks: all in [0, 1) except `degrees`; independent of the image's size."""

    area: float  # share of the image's area, in SCALE
    ratio: float  # width over height of the crop, in RATIO
    left: float  # 0: crop at the left edge, 1: at the right
    top: float
    degrees: float  # counter-clockwise
    flip: bool

    def box(self, height: int, width: int) -> Box:
        """The crop in an image of `height` and `width`, in whole pixels, at least one."""
        area = self.area * width * height
        crop_width = min(math.sqrt(area * self.ratio), width)
        crop_height = min(math.sqrt(area / self.ratio), height)
        left, right = _span(self.left, crop_width, width)
        top, bottom = _span(self.top, crop_height, height)
        return left, top, right, bottom

    def area_of(self, height: int, width: int) -> int:
        """Pixels of that crop."""
        left, top, right, bottom = self.box(height, width)
        return (right - left) * (bottom - top)


def _span(place: float, length: float, whole: int) -> tuple[int, int]:
    pixels = max(1, round(length))
    start = round(place * (whole - pixels))
    return start, start + pixels


def view_parameters(seed: int, digest: bytes, number: int) -> ViewParameters:
    """Parameters of augmented pass `number` (1 and up) of the image whose file has SHA-256 `digest`."""
    key = b"headgraft view 1\0" + seed.to_bytes(16, "little", signed=True) + digest + number.to_bytes(8, "little")
    words = struct.unpack("<8Q", hashlib.sha512(key).digest())
    area, ratio, left, top, turn, flip = ((word >> 11) / 2**53 for word in words[:6])
    return ViewParameters(
        area=SCALE[0] + area * (SCALE[1] - SCALE[0]),
        ratio=math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0]))),
        left=left,
        top=top,
        degrees=(2 * turn - 1) * DEGREES,
        flip=flip < FLIP,
    )


def clean_layout(height: int, width: int, size: int, resize: int) -> tuple[tuple[int, int], Box]:
    """Height and width of the image with its short side at `resize`, and the centre crop of `size` in it."""
    short = min(height, width)
    scaled_height, scaled_width = int(resize * height / short), int(resize * width / short)
    left, top = round((scaled_width - size) / 2), round((scaled_height - size) / 2)
    return (scaled_height, scaled_width), (left, top, left + size, top + size)
