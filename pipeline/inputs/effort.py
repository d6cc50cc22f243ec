"""How often decoding an image file passes over its pixels, known before any pixel is decoded."""

import re

from PIL import Image, TiffImagePlugin

_END, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
_NEXT_AFTER_SCAN = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # FF00 and restarts belong to the scan
_OFFSETS = {  # TIFF tags: offsets and byte counts of the pieces of a page
    TiffImagePlugin.STRIPOFFSETS: TiffImagePlugin.STRIPBYTECOUNTS,
    TiffImagePlugin.TILEOFFSETS: TiffImagePlugin.TILEBYTECOUNTS,
}


def pixel_passes(image: Image.Image, data: bytes) -> int:
    """Pixels of an opened image file `data` times the passes that decoding makes over them.

    A JPEG has a pass for each of its scans, which can be a hundred bytes each; so has a JPEG within a TIFF. Other
    formats have one pass.
    """
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        return pixels * jpeg_scans(data)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        return _passes_of_pieces(image, data)
    return pixels


def jpeg_scans(data: bytes) -> int:
    """Scans of the first image in a JPEG stream, counted from marker to marker as far as its end.

    What follows the end, such as the video of a motion photo, is not looked at, nor is what only resembles a marker.
    """
    scans, place, marker = 0, 0, _MARKER
    while found := marker.search(data, place):
        kind, place, marker = found[1][0], found.end(), _MARKER
        if kind == _END:
            break
        if kind in _WITHOUT_LENGTH:
            continue
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
        if kind == _START_OF_SCAN:
            scans, marker = scans + 1, _NEXT_AFTER_SCAN
    return scans


def _passes_of_pieces(image: TiffImagePlugin.TiffImageFile, data: bytes) -> int:
    """The same of a TIFF page whose strips or tiles are JPEG streams."""
    tags = image.tag_v2
    rows = min(image.height, tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height))
    pixels: int = tags.get(TiffImagePlugin.TILEWIDTH, image.width) * tags.get(TiffImagePlugin.TILELENGTH, rows)
    pieces = next((zip(tags[o], tags[n], strict=False) for o, n in _OFFSETS.items() if o in tags and n in tags), ())
    return pixels * sum(jpeg_scans(data[offset : offset + count]) for offset, count in pieces)
