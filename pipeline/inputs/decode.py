"""Bytes of an image file → RGB pixels: one policy, used wherever an image is read."""

import stat
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DecodeError

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

# Part of every cache's manifest: change it with anything below that changes a pixel.
DECODING_POLICY = "rgb-1"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
PIXEL_LIMIT = 100_000_000
LONGEST = 100  # times the short side: scaled by the short side, a longer image would fill the memory
SCAN_LIMIT = 100  # of a JPEG: each is a pass over all pixels, for a few bytes; cameras and editors write about ten
BYTE_LIMIT = 1 << 30  # more than the pixel limit can need

_START_OF_SCAN = b"\xff\xda"

# Our own limit, taken from the header before any pixel is decoded, stands in for Pillow's warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: Path) -> bytes:
    """The bytes of an image file; DecodeError where it is not a regular file, over `BYTE_LIMIT`, or unreadable."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError("not a regular file")
        if found.st_size > BYTE_LIMIT:
            raise DecodeError(f"{found.st_size:,} bytes, over the limit of {BYTE_LIMIT:,}")
        return path.read_bytes()
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error


def decode_rgb(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> Pixels:
    """Decode the first frame of an image file to uint8 RGB (height, width, 3), upright.

    EXIF orientation is applied, colour profiles are ignored. CMYK goes through Pillow's conversion; grey is
    repeated; palettes are looked up; alpha is laid over white; 16-bit grey is scaled (v / 257, rounded), not
    clipped. Formats outside `FORMATS`, images over `pixel_limit` pixels or `LONGEST`
    times longer than wide, JPEGs of more than `SCAN_LIMIT` scans, and floating-point images are refused.
    Raises DecodeError with the reason.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > pixel_limit:
                raise DecodeError(f"{image.width} x {image.height} pixels, over the limit of {pixel_limit:,}")
            if max(image.size) > LONGEST * min(image.size):
                raise DecodeError(f"{image.width} x {image.height} pixels, over {LONGEST} times longer than wide")
            if image.format == "JPEG" and data.count(_START_OF_SCAN) > SCAN_LIMIT:
                raise DecodeError(f"over {SCAN_LIMIT} scans, more than any camera or editor writes")
            upright = ImageOps.exif_transpose(image)
            return np.asarray(_to_rgb(upright))
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"over the limit of {pixel_limit:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DecodeError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error on damaged files
        raise DecodeError(f"cannot be decoded: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no stated range; save it as 8- or 16-bit")
    if image.mode.startswith("I"):
        image = _scale_16_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits to 8: Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DecodeError(f"grey values from {values.min()} to {values.max()}, expected 16 bits (0 to 65535)")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
