"""Views of an image: the clean one, and augmented passes whose parameters follow from (seed, image digest, pass).

The parameters are words of SHA-512 over that key, not draws from a generator: they do not depend on workers,
batch size, order, or a library's version.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.inputs.decode import Pixels

RECIPE = "crop-flip-rotate"
RECIPE_VERSION = 1
SCALE = (0.35, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width over height, drawn on a log scale
DEGREES = 20.0
FLIP = 0.5

INTERPOLATION = "bilinear-antialias"


@dataclass(frozen=True)
class ViewParameters:
    """Where one augmented pass looks: all in [0, 1) except `degrees`; independent of the image's size."""

    area: float  # share of the image's area, in SCALE
    ratio: float  # width over height of the crop, in RATIO
    left: float  # 0: crop at the left edge, 1: at the right
    top: float
    degrees: float  # counter-clockwise
    flip: bool


def view_parameters(seed: int, digest: bytes, number: int) -> ViewParameters:
    """Parameters of augmented pass `number` (1 and up) of the image whose file has SHA-256 `digest`."""
    key = b"headgraft view 1\0" + seed.to_bytes(16, "little", signed=True) + digest + number.to_bytes(8, "little")
    words = np.frombuffer(hashlib.sha512(key).digest(), dtype="<u8")
    area, ratio, left, top, turn, flip = (float(word >> np.uint64(11)) / 2**53 for word in words[:6])
    return ViewParameters(
        area=SCALE[0] + area * (SCALE[1] - SCALE[0]),
        ratio=math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0]))),
        left=left,
        top=top,
        degrees=(2 * turn - 1) * DEGREES,
        flip=flip < FLIP,
    )


def clean_view(pixels: Pixels, size: int, resize: int) -> Pixels:
    """Short side to `resize`, centre crop of `size`: (height, width, 3) → (size, size, 3), as torchvision's preset."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    scaled = (int(resize * width / short), int(resize * height / short))
    image = Image.fromarray(pixels).resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def augmented_view(pixels: Pixels, size: int, parameters: ViewParameters) -> Pixels:
    """Random resized crop, flip, rotation: (height, width, 3) → (size, size, 3); corners turned in are black."""
    height, width = pixels.shape[:2]
    area = parameters.area * width * height
    crop_width = min(math.sqrt(area * parameters.ratio), width)
    crop_height = min(math.sqrt(area / parameters.ratio), height)
    left, top = parameters.left * (width - crop_width), parameters.top * (height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=box)
    if parameters.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image.rotate(parameters.degrees, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Views:
    """Renders the views of one cache: `size` and `resize` in pixels, `seed` of the augmented passes."""

    size: int
    resize: int
    seed: int = 0

    def render(self, pixels: Pixels, digest: bytes, view: str) -> Pixels:
        """View `pass:K` of a decoded image, (size, size, 3) uint8, or `dense:S`, (S, S, 3), of the whole short side."""
        kind, number = view.split(":")[0], int(view.split(":")[1])
        if kind == "dense":
            return clean_view(pixels, number, number)
        if number == 0:
            return clean_view(pixels, self.size, self.resize)
        return augmented_view(pixels, self.size, view_parameters(self.seed, digest, number))


def resize_for(size: int) -> int:
    """Short side before the centre crop of `size`: 256 for 224, in proportion for others."""
    return round(256 * size / 224)
