"""Decoding: one policy for every format, and no damaged file gets through."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DecodeError
from pipeline.inputs.decode import Pixels, decode_rgb

TRANSPOSED = {  # what a camera stores so that the orientation tag makes it upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pattern(height: int = 6, width: int = 9) -> Pixels:
    """Pixels that no flip or rotation leaves as they are."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_exif_orientation_gives_the_same_upright_pixels(orientation: int, kind: str) -> None:
    """All eight orientations of one picture decode to the picture."""
    method = TRANSPOSED[orientation]
    stored = Image.fromarray(pattern())
    if method is not None:
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_rgb(encoded(stored, kind, exif=exif)), pattern())


def test_orientation_of_a_jpeg_is_applied() -> None:
    """The format cameras write: turned as the tag says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_rgb(encoded(Image.fromarray(pattern(16, 24)), "JPEG", exif=exif, quality=100))
    assert pixels.shape == (24, 16, 3)


def test_grey_is_repeated() -> None:
    """One channel becomes three equal ones."""
    grey = pattern()[:, :, 0]
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    """Mode 1 becomes 0 and 255."""
    pixels = decode_rgb(encoded(Image.fromarray(pattern()[:, :, 0]).convert("1")))
    assert set(np.unique(pixels).tolist()) <= {0, 255}


def test_a_palette_is_looked_up() -> None:
    """Indices become their colours."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode_rgb(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_a_transparent_palette_colour_becomes_white(transparency: int | bytes) -> None:
    """Whether it is stated as an index or as a table."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode_rgb(encoded(image, transparency=transparency)).tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_alpha_is_laid_over_white() -> None:
    """Clear pixels are white whatever colour hides in them, half-clear ones half-way."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)])
    assert decode_rgb(encoded(image)).tolist() == [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]


def test_grey_with_alpha_is_laid_over_white() -> None:
    """Mode LA as RGBA."""
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (7, 255)])
    assert decode_rgb(encoded(image)).tolist() == [[[255] * 3, [7] * 3]]


def test_cmyk_goes_through_pillows_conversion() -> None:
    """No ink is white, all of one ink is its complement."""
    image = Image.new("CMYK", (2, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0)])
    assert decode_rgb(encoded(image, "TIFF")).tolist() == [[[255, 255, 255], [0, 255, 255]]]


def test_a_cmyk_jpeg_decodes() -> None:
    """The kind of CMYK file that is met with."""
    pixels = decode_rgb(encoded(Image.new("CMYK", (16, 16)), "JPEG"))
    assert pixels.min() > 250


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    """0 to 65535 map to 0 to 255, rounded."""
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = [0, 0, 1, 1, 128, 255]
    assert decode_rgb(encoded(Image.fromarray(values), kind))[0, :, 1].tolist() == expected


def test_16_bit_grey_of_either_byte_order_is_the_same() -> None:
    """A big-endian TIFF, written by hand, decodes as what it says."""
    entries = [(256, 4, 2), (257, 4, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 4)]
    data = b"MM\0*" + (12).to_bytes(4, "big") + (257).to_bytes(2, "big") + (65535).to_bytes(2, "big")
    data += len(entries).to_bytes(2, "big")
    for tag, kind, value in entries:
        stored = value.to_bytes(4, "big") if kind == 4 else value.to_bytes(2, "big") + b"\0\0"
        data += tag.to_bytes(2, "big") + kind.to_bytes(2, "big") + (1).to_bytes(4, "big") + stored
    data += b"\0" * 4
    assert decode_rgb(data)[0, :, 0].tolist() == [1, 255]


def test_32_bit_grey_beyond_16_bits_is_refused() -> None:
    """Values without a stated range are not guessed at."""
    values = np.array([[0, 70000]], dtype=np.int32)
    with pytest.raises(DecodeError, match="expected 16 bits"):
        decode_rgb(encoded(Image.fromarray(values), "TIFF"))


def test_the_first_frame_of_an_animation_counts() -> None:
    """A GIF of red, then blue, is red."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_rgb(data) == np.array([255, 0, 0])).all()


def test_floating_point_pixels_are_refused() -> None:
    """They have no stated range."""
    with pytest.raises(DecodeError, match="floating-point"):
        decode_rgb(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_an_empty_file_is_refused() -> None:
    """And called empty."""
    with pytest.raises(DecodeError, match="empty"):
        decode_rgb(b"")


@pytest.mark.parametrize("content", [b"just some text", b"<svg></svg>", b"%PDF-1.7", b"\0" * 100])
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    """The suffix proves nothing: the bytes decide."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match="not an image of a known format"):
        decode_rgb(path.read_bytes())


def test_formats_outside_the_list_are_refused() -> None:
    """PostScript and icons are images to Pillow, not here."""
    for kind in ("EPS", "ICO", "PCX"):
        with pytest.raises(DecodeError, match="known format"):
            decode_rgb(encoded(Image.fromarray(pattern(16, 16)), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_format_decodes_whole_and_is_refused_truncated(kind: str) -> None:
    """Half a file is never a picture with a grey lower half."""
    data = encoded(Image.fromarray(pattern(32, 32)), kind)
    assert decode_rgb(data).shape == (32, 32, 3)
    with pytest.raises(DecodeError):
        decode_rgb(data[: len(data) // 2])


def test_the_pixel_limit_is_taken_from_the_header() -> None:
    """A file over the limit is refused before its pixels, which here are not even there, are decoded."""
    data = encoded(Image.new("1", (4000, 3000)))[:100]
    with pytest.raises(DecodeError, match="4000 x 3000 pixels, over the limit"):
        decode_rgb(data, pixel_limit=1_000_000)


def test_a_thread_of_an_image_is_refused() -> None:
    """Scaled by its short side it would be 256 x 25,600,000 pixels: refused, before any is decoded."""
    for size in ((200_000, 1), (1, 200_000)):
        with pytest.raises(DecodeError, match="over 100 times longer than wide"):
            decode_rgb(encoded(Image.new("L", size), "PNG"))
    assert decode_rgb(encoded(Image.new("L", (100, 1)), "PNG")).shape == (1, 100, 3)


def test_a_jpeg_of_many_scans_is_refused() -> None:
    """Each costs a pass over all pixels; a progressive one as editors write it is decoded."""
    whole = encoded(Image.fromarray(pattern(64, 64)), "JPEG", progressive=True)
    assert decode_rgb(whole).shape == (64, 64, 3)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(DecodeError, match="over 100 scans"):
        decode_rgb(whole[:-2] + 100 * last + whole[-2:])


def test_a_decompression_bomb_is_refused() -> None:
    """Beyond Pillow's own limit too, as our error."""
    data = encoded(Image.new("1", (20_000, 10_000)))
    with pytest.raises(DecodeError):
        decode_rgb(data)


def test_damaged_files_raise_nothing_but_decode_error() -> None:
    """Whatever bytes are flipped, the answer is pixels or a DecodeError."""
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        whole = encoded(Image.fromarray(pattern(16, 16)), kind)
        for _ in range(20):
            damaged = bytearray(whole)
            for position in generator.integers(0, len(whole), 4):
                damaged[position] = int(generator.integers(256))
            try:
                pixels = decode_rgb(bytes(damaged), pixel_limit=10_000)
            except DecodeError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
