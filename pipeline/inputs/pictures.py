"""The picture of an image file, checked against the digest that its features are known by."""

import hashlib
from pathlib import Path

from PIL import Image

from pipeline.errors import DecodeError
from pipeline.inputs.decode import Decoding, decode_rgb, read_image


def picture_of(path: Path, digest: str, policy: Decoding) -> Image.Image:
    """As it is decoded for the backbone, in its own size; DecodeError where the file is gone or another one."""
    data = read_image(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise DecodeError("another file than the one whose features are in the cache")
    return Image.fromarray(decode_rgb(data, policy=policy))
