"""Bytes of an image file → RGB pixels: one policy, used wherever an image is read."""

import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from cache.files import read_regular
from pipeline.errors import DecodeError
from pipeline.inputs.effort import decoded_pixels, pixel_passes
from pipeline.inputs.jpeg import plain_size, rgb_pixels
from pipeline.inputs.remarks import FRAMES, METADATA, PROFILE, collected
from pipeline.inputs.sniff import describe

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

# Part of every cache's manifest: change it with anything below that changes a pixel.
DECODING_POLICY = "rgb-1"
HEIF = find_spec("pillow_heif") is not None  # the extra `heif`
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", *(("HEIF",) if HEIF else ()))
HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".pbm", ".pgm", ".ppm", ".pnm", ".avif", ".jp2", ".j2k", *(HEIF_EXTENSIONS if HEIF else ()),
})  # fmt: skip
PIXEL_LIMIT = 100_000_000
EFFORT_LIMIT = 20 * PIXEL_LIMIT  # pixels times passes: cameras and editors write about ten scans
LONGEST = 100  # times the short side: scaled by the short side, a longer image would fill the memory
BYTE_LIMIT = 1 << 30  # more than the pixel limit can need
WHITE = 65535  # of 16-bit grey

_SRGB = (b"sRGB", "sRGB".encode("utf-16-be"))  # in the name of a profile
_MOST_PROFILES = 2  # one, and what only resembles the name of its chunk
_ORIENTATION = 0x0112  # EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit, taken from the header before any pixel is decoded, stands in for Pillow's warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow refuses a PNG for 1 MiB of text or profile once inflated; editors write more. This bounds the memory it takes.
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20
if HEIF:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


@dataclass(frozen=True)
class Decoding:
    """The decoding policy of a cache or a model.

    Attributes:
        grey_range: value of 16-bit grey that becomes white, 255 to 65535: 4095 for 12 bits in 16-bit files.
    """

    grey_range: int = WHITE

    @property
    def name(self) -> str:
        """As manifests and model cards have it."""
        return DECODING_POLICY if self.grey_range == WHITE else f"{DECODING_POLICY} grey:{self.grey_range}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The policy of that name; ValueError where this program does not know it."""
        found = re.fullmatch(rf"{DECODING_POLICY}(?: grey:([1-9][0-9]{{2,4}}))?", name)
        policy = cls(int(found[1] or WHITE)) if found else None
        if policy is None or policy.name != name or not 255 <= policy.grey_range <= WHITE:
            raise ValueError(f"no decoding policy {name!r}: expected {DECODING_POLICY}")
        return policy


FULL_RANGE = Decoding()


def read_image(path: Path) -> bytes:
    """The bytes of an image file; DecodeError where it is not a regular file, over `BYTE_LIMIT`, or unreadable."""
    try:
        if (size := path.stat().st_size) > BYTE_LIMIT:
            raise DecodeError(f"{size:,} bytes, over the limit of {BYTE_LIMIT:,}")
        return read_regular(path)
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror}") from error


def open_image(data: bytes) -> Image.Image:
    """The image file of these bytes, its pixels not decoded yet; what Pillow raises where it is none it can read."""
    # Pillow inflates every profile of a PNG, of which a file has one: a few bytes could keep it busy for minutes.
    if data.startswith(b"\x89PNG") and data.count(b"iCCP") > _MOST_PROFILES:
        raise DecodeError("a PNG with more than one colour profile")
    return Image.open(BytesIO(data), formats=FORMATS)


def decode_rgb(
    data: bytes | Image.Image,
    pixel_limit: int = PIXEL_LIMIT,
    effort_limit: int = EFFORT_LIMIT,
    policy: Decoding = FULL_RANGE,
    remarks: dict[str, str] | None = None,
) -> Pixels:
    """Decode an image file, its first frame, or an image of Pillow to uint8 RGB (height, width, 3), upright.

    EXIF orientation is applied, colour profiles are ignored. CMYK goes through Pillow's conversion; grey is
    repeated; palettes are looked up; alpha is laid over white; 16-bit grey is scaled to the policy's range and
    rounded. Formats outside `FORMATS`, images over `pixel_limit` pixels, over `effort_limit` pixels times scans, or
    `LONGEST` times longer than wide, and floating-point images are refused. What is odd but harmless goes into
    `remarks`, details by kind. Raises DecodeError with the reason.
    """
    if data == b"":
        raise DecodeError("the file is empty")
    remarks = {} if remarks is None else remarks
    content = data if isinstance(data, bytes) else b""
    try:
        if (pixels := _plain_jpeg(content, pixel_limit, effort_limit)) is not None:
            return pixels
        with collected(remarks), open_image(data) if isinstance(data, bytes) else nullcontext(data) as image:
            _refuse_too_much(image, content, pixel_limit, effort_limit)
            # The second frame of an MPO is a preview or the other eye's view.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                remarks[FRAMES] = ""
            profile = image.info.get("icc_profile")
            if isinstance(profile, bytes) and profile and not any(name in profile for name in _SRGB):
                remarks[PROFILE] = ""
            if image.format == "JPEG" and image.mode == "RGB" and (pixels := rgb_pixels(content)) is not None:
                turn = _turn(image, remarks)
                return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))
            image.load()
            turn = _turn(image, remarks)
            return np.asarray(_to_rgb(image if turn is None else image.transpose(turn), policy))
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(f"over the limit of {pixel_limit:,} pixels") from error
    except UnidentifiedImageError as error:
        raise DecodeError(describe(content, HEIF)) from error
    except Exception as error:  # Pillow's plugins raise anything from SyntaxError to struct.error on damaged files
        raise DecodeError(f"cannot be decoded: {error or type(error).__name__}") from error


def _plain_jpeg(data: bytes, pixel_limit: int, effort_limit: int) -> Pixels | None:
    """Of a JPEG without anything to look after and within the limits, which most files are; None of any other."""
    if (size := plain_size(data)) is None:
        return None
    width, height, scans = size
    within = width * height <= pixel_limit and width * height * scans <= effort_limit
    return rgb_pixels(data) if within and max(width, height) <= LONGEST * min(width, height) else None


def _refuse_too_much(image: Image.Image, data: bytes, pixel_limit: int, effort_limit: int) -> None:
    """From the header alone, before any pixel is decoded."""
    size = f"{image.width} x {image.height} pixels"
    pixels = decoded_pixels(image)
    if pixels > pixel_limit:
        tiles = "" if pixels == image.width * image.height else f" in tiles of {pixels:,}"
        raise DecodeError(f"{size}{tiles}, over the limit of {pixel_limit:,}")
    if max(image.size) > LONGEST * min(image.size):
        raise DecodeError(f"{size}, over {LONGEST} times longer than wide")
    if (effort := pixel_passes(image, data)) > effort_limit:
        raise DecodeError(
            f"{size} in {effort // pixels} scans, over the limit of {effort_limit // pixels} scans at this size"
        )


def _turn(image: Image.Image, remarks: dict[str, str]) -> Image.Transpose | None:
    """What makes it upright, by its EXIF orientation; one that cannot be read is none."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception as error:  # as damaged as a file can be, as above; the pixels are not
        remarks[METADATA] = str(error) or type(error).__name__
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _to_rgb(image: Image.Image, policy: Decoding) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no stated range; save it as 8- or 16-bit")
    if image.mode.startswith("I"):
        image = _scale_16_bit(image, policy.grey_range)
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image, most: int) -> Image.Image:
    """Grey of 16 bits to 8, `most` and above to 255: Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > WHITE:
        raise DecodeError(f"grey values from {values.min()} to {values.max()}, expected 16 bits (0 to {WHITE})")
    return Image.fromarray(((values.clip(max=most) * 255 + most // 2) // most).astype(np.uint8))
