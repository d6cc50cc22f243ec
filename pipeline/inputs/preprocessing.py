"""From an image file to the pixels that a backbone sees: one object, recorded with everything it made.

Free of torch, so that a process which only decodes starts at once.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from pipeline.inputs.augment import Box, clean_layout
from pipeline.inputs.decode import (
    DECODING_POLICY,
    EFFORT_LIMIT,
    PIXEL_LIMIT,
    Decoding,
    Pixels,
    decode_rgb,
    read_image,
)
from pipeline.inputs.remarks import catching_warnings

BILINEAR, BICUBIC = "bilinear-antialias", "bicubic-antialias"
SQUASHED = "-squash"  # after these: height and width are resized alike, whatever the image's shape
_RESAMPLING = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
ImageSource = str | Path | bytes | Image.Image  # a file, its bytes, or an image of Pillow
# The same for every model; stated so that other programs can compute the input. Earlier cards do not have it.
_ALWAYS = {"channels": "RGB", "layout": "NCHW", "crop": "center", "scale": 1 / 255}


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the input of a backbone.

    Attributes:
        input_size: side of the square view, in pixels.
        resize: short side of the resized image that the center crop is taken of, in pixels; both where it is squashed.
        mean: per RGB channel of pixels scaled to 0..1, subtracted.
        std: per RGB channel, what is divided by after that.
        interpolation: how images are resized: bilinear or bicubic, and to a square if it ends in `-squash`.
        decoding: name of the decoding policy.
    """

    input_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = BILINEAR
    decoding: str = DECODING_POLICY

    @classmethod
    def of(cls, stored: object) -> Self:
        """From the fields of the same names of a manifest's base."""
        return cls(**{field.name: getattr(stored, field.name) for field in fields(cls)})

    @cached_property
    def policy(self) -> Decoding:
        """How image files become pixels."""
        return Decoding.parse(self.decoding)

    def decode(
        self,
        image: ImageSource,
        remarks: dict[str, str] | None = None,
        pixel_limit: int = PIXEL_LIMIT,
        effort_limit: int = EFFORT_LIMIT,
    ) -> Pixels:
        """RGB pixels (height, width, 3) by this policy; limits, `remarks` and DecodeError as of `decode_rgb`."""
        content = read_image(Path(image)) if isinstance(image, str | Path) else image
        return decode_rgb(content, pixel_limit, effort_limit, self.policy, remarks)

    def view(self, pixels: Pixels) -> Pixels:
        """The clean view: (height, width, 3) → (input_size, input_size, 3), bit for bit torchvision's preset."""
        (height, width), box = self.clean_layout(*pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), _RESAMPLING[self.filter]).crop(box))

    @property
    def filter(self) -> str:
        """`BILINEAR` or `BICUBIC`."""
        return self.interpolation.removesuffix(SQUASHED)

    def clean_layout(self, height: int, width: int) -> tuple[tuple[int, int], Box]:
        """Height and width of the resized image, and the crop in it."""
        square = self.interpolation.endswith(SQUASHED)
        given = (self.resize, self.resize) if square else (height, width)
        return clean_layout(*given, self.input_size, self.resize)

    def view_of(self, image: ImageSource) -> Pixels:
        """The clean view of an image, decoded in this thread; DecodeError with the reason."""
        with catching_warnings():
            return self.view(self.decode(image))

    def as_card(self) -> dict[str, Any]:
        """As a model card states it."""
        side = "both" if self.interpolation.endswith(SQUASHED) else "shorter"
        return {**_ALWAYS, "resize_side": side, **{field.name: getattr(self, field.name) for field in fields(self)}}

    def fault(self, stated: dict[str, Any]) -> str:
        """The first step that a card states otherwise, or that this program does not know; "" where there is none."""
        own = {name: list(value) if isinstance(value, tuple) else value for name, value in self.as_card().items()}
        for name, value in own.items():
            if stated.get(name, value if name in (*_ALWAYS, "resize_side") else None) != value:
                return name
        if self.filter not in _RESAMPLING:
            return "interpolation"
        try:
            _ = self.policy
        except ValueError:
            return "decoding"
        return ""

    def __str__(self) -> str:
        mean, std = (", ".join(map(str, values)) for values in (self.mean, self.std))
        side = "both sides" if self.interpolation.endswith(SQUASHED) else "shorter side"
        return (
            f"RGB, {side} resized to {self.resize} pixels ({self.filter}), center crop of "
            f"{self.input_size} x {self.input_size}, divided by 255, minus mean {mean}, divided by std {std}"
        )
