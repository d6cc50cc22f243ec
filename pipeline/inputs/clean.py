"""The clean view on the processor. Free of torch, so that a process which only decodes starts at once."""

import numpy as np
from PIL import Image

from pipeline.inputs.augment import clean_layout
from pipeline.inputs.decode import Pixels

INTERPOLATION = "bilinear-antialias"


def clean_view(pixels: Pixels, size: int, resize: int) -> Pixels:
    """Short side to `resize`, centre crop of `size`: (height, width, 3) → (size, size, 3), as torchvision's preset."""
    (height, width), box = clean_layout(pixels.shape[0], pixels.shape[1], size, resize)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).crop(box))
