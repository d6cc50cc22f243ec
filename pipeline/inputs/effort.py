"""What decoding an image file costs: pixels, and passes over them, known before any pixel is decoded."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from math import ceil

from PIL import Image
from PIL import TiffImagePlugin as Tiff

from pipeline.errors import DecodeError

MOST_MARKERS = 10_000  # of a JPEG, restarts aside: cameras and editors write a few hundred

_END, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_NEXT_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # FF00 and restarts belong to the scan
_SCAN = b"\xff\xda"


def decoded_pixels(image: Image.Image) -> int:
    """Pixels that decoding an opened image file makes: a TIFF's tiles may be larger than the image."""
    pixels = image.width * image.height
    if not isinstance(image, Tiff.TiffImageFile) or Tiff.TILEWIDTH not in image.tag_v2:
        return pixels
    width, height, count = _pieces(image)
    return max(pixels, width * height * count)


def pixel_passes(image: Image.Image, data: bytes) -> int:
    """Those pixels times the passes that decoding makes over them; DecodeError for a JPEG of too many markers.

    A JPEG has a pass for each of its scans, which can be a hundred bytes each; so has a JPEG within a TIFF. Other
    formats have one pass.
    """
    if image.format in ("JPEG", "MPO"):
        return image.width * image.height * jpeg_scans(data)
    if isinstance(image, Tiff.TiffImageFile) and image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        return _passes_of_pieces(image, data)
    return decoded_pixels(image)


def jpeg_scans(data: bytes) -> int:
    """Scans of the first image in a JPEG stream; DecodeError for one of too many markers."""
    return scans_of(jpeg_markers(data))


def scans_of(kinds: Iterable[int]) -> int:
    """Scans among markers."""
    return sum(kind == _START_OF_SCAN for kind in kinds)


def jpeg_markers(data: bytes) -> Iterator[int]:
    """The kinds of markers of the first image in a JPEG stream, from one to the next as far as its end.

    What follows the end, such as the video of a motion photo, is not looked at, nor is what only resembles a marker.
    """
    place, marker = 0, _MARKER
    for _ in range(MOST_MARKERS):
        found = marker.search(data, place)
        if found is None or found[1][0] == _END:
            return
        kind, place, marker = found[1][0], found.end(), _MARKER
        yield kind
        if kind in _WITHOUT_LENGTH:
            continue
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
        if kind == _START_OF_SCAN:
            marker = _NEXT_AFTER_SCAN
    raise DecodeError(f"a JPEG of over {MOST_MARKERS:,} markers")


def _pieces(image: Tiff.TiffImageFile) -> tuple[int, int, int]:
    """Width and height of the strips or tiles of a TIFF page, and how many there are."""
    tags = image.tag_v2
    tiled = Tiff.TILEWIDTH in tags and Tiff.TILELENGTH in tags
    width = max(1, tags[Tiff.TILEWIDTH]) if tiled else image.width
    height = max(1, tags[Tiff.TILELENGTH] if tiled else min(image.height, tags.get(Tiff.ROWSPERSTRIP, image.height)))
    planes = tags.get(Tiff.SAMPLESPERPIXEL, 1) if tags.get(Tiff.PLANAR_CONFIGURATION, 1) == 2 else 1
    return width, height, ceil(image.width / width) * ceil(image.height / height) * planes


def _passes_of_pieces(image: Tiff.TiffImageFile, data: bytes) -> int:
    """Pixels times scans of a TIFF page whose strips or tiles are JPEG streams.

    Where it cannot be told which bytes are whose, each piece is taken to hold all scans of the file.
    """
    tags, (width, height, count) = image.tag_v2, _pieces(image)
    strips = tags.get(Tiff.STRIPOFFSETS, ()), tags.get(Tiff.STRIPBYTECOUNTS, ())
    tiles = tags.get(Tiff.TILEOFFSETS, ()), tags.get(Tiff.TILEBYTECOUNTS, ())
    pieces = list(islice(zip(*(tiles if tiles[0] else strips), strict=False), count))
    known = len(pieces) == count and not (tiles[0] and strips[0]) and sum(size for _, size in pieces) <= len(data)
    if not known:
        return decoded_pixels(image) * max(1, data.count(_SCAN))
    scans = sum(data.count(_SCAN, offset, offset + size) for offset, size in pieces)
    return max(decoded_pixels(image), width * height * scans)
