"""Decoding: one policy for every format, and no damaged file gets through."""

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import preprocessing, some_flowers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.errors import DecodeError
from pipeline.inputs.decode import DECODING_POLICY, Decoding, Pixels, decode_rgb
from pipeline.inputs.effort import jpeg_scans, pixel_passes
from pipeline.inputs.jpeg import plain_size
from pipeline.inputs.remarks import FRAMES, PROFILE, catching_warnings
from pipeline.inputs.sniff import describe

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
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF"]


def pattern(height: int = 6, width: int = 9) -> Pixels:
    """Pixels that no flip or rotation leaves as they are."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    quality=st.integers(5, 100),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    mode=st.sampled_from(["RGB", "RGB", "L", "CMYK"]),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    share=st.one_of(st.just(1.0), st.floats(0.2, 1)),
    orientation=st.sampled_from([0, 0, 1, 6]),
)
@settings(max_examples=300)
def test_a_jpeg_has_pillows_pixels_or_its_refusal(
    size: tuple[int, int],
    quality: int,
    subsampling: int,
    progressive: bool,
    mode: str,
    damage: list[tuple[float, int]],
    share: float,
    orientation: int,
) -> None:
    """Whatever it is and wherever it is damaged: straight through libjpeg-turbo or not, nothing else comes out."""
    options: dict[str, Any] = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = bytearray(encoded(Image.fromarray(pattern(*size)).convert(mode), "JPEG", **options))
    for place, value in damage:
        file[int(place * len(file))] = value
    data = bytes(file[: max(1, int(share * len(file)))])
    with pytest.MonkeyPatch.context() as patched, catching_warnings():
        found = decoded_or_refused(data)
        for name in ("plain_size", "rgb_pixels"):
            patched.setattr(f"pipeline.inputs.decode.{name}", lambda _: None)
        assert found == decoded_or_refused(data)


def decoded_or_refused(data: bytes) -> tuple[tuple[int, ...], bytes] | None:
    """Shape and pixels, or None."""
    try:
        pixels = decode_rgb(data)
    except DecodeError:
        return None
    return pixels.shape, pixels.tobytes()


@pytest.mark.real
def test_flowers_go_straight_through_libjpeg_turbo() -> None:
    """With the same pixels as through Pillow."""
    for file in some_flowers(12):
        data = file.read_bytes()
        assert plain_size(data) is not None
        assert np.array_equal(decode_rgb(data), np.asarray(Image.open(file).convert("RGB")))


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_view_is_the_same_of_a_path_of_bytes_and_of_an_image(kind: str, tmp_path: Path) -> None:
    """Turned as EXIF says; an image that was given stays open."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pattern(48, 40)), kind, exif=exif)
    (tmp_path / "a").write_bytes(data)
    expected = preprocessing().view(decode_rgb(data))
    with Image.open(BytesIO(data)) as image:
        for given in (tmp_path / "a", str(tmp_path / "a"), data, image, image):
            assert np.array_equal(preprocessing().view_of(given), expected)
    with pytest.raises(DecodeError, match="floating-point"):
        preprocessing().view_of(Image.new("F", (8, 8)))


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
    with pytest.raises(DecodeError, match="65535"):
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


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"just some text", "not an image of a known format"),
        (b"<svg></svg>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0" * 100, "zero bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404 not found</html>", "HTML page"),
        (b"\n <!-- cached --> <HTML lang=en>", "HTML page"),
        (b"<!---->" * 146, "not an image of a known format"),  # and at once: such a pattern can take hours
        (b"\0\0\0\x18ftypisom" + b"\0" * 99, "video"),
        (b"\xff\x0a" + b"\1" * 99, "JPEG XL"),
        (b"\xff\xd8\xff\xd8" + b"\1" * 99, "damaged JPEG"),
        (b"\xff\xd8\xff\xc3\0\x0b\x10" + b"\1" * 99, "lossless JPEG"),
        (b"PK\x03\x04" + b"\1" * 99, "ZIP"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, found: str) -> None:
    """The suffix proves nothing: the bytes decide."""
    with pytest.raises(DecodeError, match=found):
        decode_rgb(content)


def test_a_heic_under_another_name_is_called_so_where_it_cannot_be_read() -> None:
    """With what to install; with the plug-in it is a damaged one, since nothing follows."""
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 2000
    assert "'.[heif]'" in describe(content, heif=False)
    with pytest.raises(DecodeError, match="HEIC"):
        decode_rgb(content)


def test_formats_outside_the_list_are_refused() -> None:
    """PostScript and icons are images to Pillow, not here."""
    for kind in ("EPS", "ICO", "PCX"):
        with pytest.raises(DecodeError, match="not an image of a known format"):
            decode_rgb(encoded(Image.fromarray(pattern(16, 16)), kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_decodes_whole_and_is_refused_truncated(kind: str) -> None:
    """Half a file is never a picture with a grey lower half."""
    data = encoded(Image.fromarray(pattern(32, 32)), kind)
    assert decode_rgb(data).shape == (32, 32, 3)
    with pytest.raises(DecodeError):
        decode_rgb(data[: len(data) // 2])


def test_the_pixel_limit_is_taken_from_the_header() -> None:
    """A file over the limit is refused before its pixels, which here are not even there, are decoded."""
    data = encoded(Image.new("1", (4000, 3000)))[:100]
    with pytest.raises(DecodeError, match="4000 x 3000"):
        decode_rgb(data, pixel_limit=1_000_000)


def test_a_thread_of_an_image_is_refused() -> None:
    """Scaled by its short side it would be 256 x 25,600,000 pixels: refused, before any is decoded."""
    for size in ((200_000, 1), (1, 200_000)):
        with pytest.raises(DecodeError, match=r"\b100\b"):
            decode_rgb(encoded(Image.new("L", size), "PNG"))
    assert decode_rgb(encoded(Image.new("L", (100, 1)), "PNG")).shape == (1, 100, 3)


def many_scans(image: Image.Image, scans: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    whole = encoded(image, "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scans * last + whole[-2:]


def as_mpo(first: bytes, second: bytes) -> bytes:
    """Two JPEGs as one MPO, with the index segment that Pillow looks for."""
    head = b"MPF\0II*\0" + struct.pack("<IH", 8, 3)
    # Three entries: the version, how many images, and where their table of 16 bytes each is.
    head += struct.pack("<HHI4sHHIIHHIII", 0xB000, 7, 4, b"0100", 0xB001, 4, 1, 2, 0xB002, 7, 32, 50, 0)
    length = len(head) + 32 + 2  # of the segment, itself included
    size = len(first) + length + 2
    images = struct.pack("<IIIHHIIIHH", 0x030000, size, 0, 0, 0, 0, len(second), size - 10, 0, 0)
    return first[:2] + b"\xff\xe2" + struct.pack(">H", length) + head + images + first[2:] + second


def test_effort_is_pixels_times_scans_in_every_format() -> None:
    """Each scan costs a pass over all pixels for a few bytes; a progressive file as editors write it is decoded."""
    image = Image.fromarray(pattern(64, 64))
    plain = encoded(image, "JPEG", progressive=True)
    scans = jpeg_scans(plain)
    assert scans == plain.count(b"\xff\xda") > 5
    attacks = [many_scans(image, 100), as_mpo(many_scans(image, 100), encoded(image, "JPEG"))]
    for data in attacks:
        assert jpeg_scans(data) == scans + 100
        assert decode_rgb(data).shape == (64, 64, 3)  # small enough to be no burden
        with pytest.raises(DecodeError, match=rf"64 x 64 pixels in {scans + 100} scans"):
            decode_rgb(data, effort_limit=64 * 64 * (scans + 99))
    assert Image.open(BytesIO(attacks[1])).format == "MPO"


def as_tiff(stream: bytes, *tags: tuple[int, int, int]) -> bytes:
    """A JPEG stream in a TIFF of 64 x 64 pixels, at byte 300, with more tags: (tag, count, value or offset)."""
    entries = sorted([(256, 1, 64), (257, 1, 64), (258, 1, 8), (259, 1, 7), (262, 1, 6), (277, 1, 3), *tags])
    table = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return (b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0)).ljust(300, b"\0") + stream


def test_effort_counts_the_scans_of_a_jpeg_within_a_tiff() -> None:
    """A TIFF's strips can be JPEG streams; of strips with one scan each, the effort is the page's pixels."""
    image = Image.fromarray(pattern(64, 64))
    data = encoded(image, "TIFF", compression="jpeg")
    with Image.open(BytesIO(data)) as opened:
        assert pixel_passes(opened, data) == 64 * 64
    stream = many_scans(image, 100)
    strips = [(273, 1, 300), (278, 1, 64), (279, 1, len(stream))]
    # Strips that are not there, and tiles that libtiff takes in their place; tiles that share their bytes.
    both = [(273, 1, 200), (278, 1, 64), (279, 1, 16), (322, 1, 64), (323, 1, 64), (324, 1, 300), (325, 1, len(stream))]
    shared = struct.pack("<16I", *[300] * 16) + struct.pack("<16I", *[len(stream)] * 16)
    tiled = [(322, 1, 16), (323, 1, 16), (324, 16, 300 + len(stream)), (325, 16, 364 + len(stream))]
    for attack in (as_tiff(stream, *strips), as_tiff(stream, *both), as_tiff(stream + shared, *tiled)):
        with pytest.raises(DecodeError, match="scans"):
            decode_rgb(attack, effort_limit=64 * 64 * 50)


def test_a_png_of_many_profiles_is_refused() -> None:
    """A PNG has one; Pillow would inflate each, 64 MiB of a few bytes."""
    data = encoded(Image.fromarray(pattern()), icc_profile=b"\0" * 1000)
    place = data.index(b"iCCP") - 4
    chunk = data[place : place + 12 + int.from_bytes(data[place : place + 4], "big")]
    assert decode_rgb(data).shape == (6, 9, 3)
    with pytest.raises(DecodeError, match="profile"):
        decode_rgb(data[:place] + 20 * chunk + data[place:])


@given(st.binary(max_size=300))
def test_what_follows_a_jpeg_is_no_part_of_it(trailer: bytes) -> None:
    """A motion photo has a video behind its end, with any bytes: its scans are those of the picture."""
    plain = encoded(Image.fromarray(pattern(16, 16)), "JPEG", progressive=True)
    assert jpeg_scans(plain + trailer + b"\xff\xda" * 200) == jpeg_scans(plain)


@given(st.binary(max_size=200))
def test_counting_scans_ends_on_any_bytes(data: bytes) -> None:
    """Whatever follows the first marker, there are no more scans than start markers."""
    assert jpeg_scans(b"\xff\xd8" + data) <= data.count(b"\xff\xda")


def test_a_motion_photo_is_its_picture() -> None:
    """Eight MiB of noise hold some hundred pairs of bytes that resemble the start of a scan."""
    plain = encoded(Image.fromarray(pattern(16, 16)), "JPEG")
    trailer = np.random.default_rng(0).integers(0, 256, 8 << 20, dtype=np.uint8).tobytes()
    assert trailer.count(b"\xff\xda") > 100
    assert np.array_equal(decode_rgb(plain + trailer), decode_rgb(plain))


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, count, value or offset as four bytes)."""
    table = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0)


SIDEWAYS = (0x0112, 3, 1, b"\6\0\0\0")  # orientation 6


@pytest.mark.parametrize(
    "damaged",
    [
        (0x011A, 2, 3, b"72\0\0"),  # a resolution that is a text
        (0x8769, 4, 1, struct.pack("<I", 10**6)),  # a block of tags beyond the end
        (0x0110, 2, 999, b"\0\0\0\0"),  # a camera's name longer than the file
    ],
)
def test_orientation_holds_where_another_exif_field_is_damaged(damaged: tuple[int, int, int, bytes]) -> None:
    """One field of another type or without its value must not cost the image, nor its orientation."""
    data = encoded(Image.fromarray(pattern(16, 24)), "JPEG", exif=exif_of(SIDEWAYS, damaged))
    with catching_warnings():
        assert decode_rgb(data).shape == (24, 16, 3)


@pytest.mark.parametrize(
    "value", [(0x0112, 3, 1, b"\x09\0\0\0"), (0x0112, 2, 2, b"6\0\0\0"), (0x0112, 3, 0, b"\0" * 4)]
)
def test_an_orientation_that_is_none_leaves_the_image_as_it_is(value: tuple[int, int, int, bytes]) -> None:
    """Out of range, a text, or empty."""
    data = encoded(Image.fromarray(pattern(16, 24)), "JPEG", exif=exif_of(value))
    assert decode_rgb(data).shape == (16, 24, 3)


def test_large_texts_and_profiles_in_a_png_do_no_harm() -> None:
    """Editors write some MiB of them; they are no part of the pixels."""
    image = Image.fromarray(pattern())
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (3 << 20), zip=True)
    profile = b"\0\1\2\3" * (3 << 18)
    for data in (encoded(image, pnginfo=info), encoded(image, icc_profile=profile)):
        assert np.array_equal(decode_rgb(data), pattern())


def test_only_the_first_page_is_read_and_that_is_remarked() -> None:
    """Of a TIFF, and the first frame of an animation; the second frame of an MPO is a preview, and not worth a word."""
    first, second = Image.fromarray(pattern()), Image.new("RGB", (9, 6))
    for kind in ("TIFF", "PNG", "GIF", "WEBP"):
        odd: dict[str, str] = {}
        data = encoded(first, kind, save_all=True, append_images=[second])
        assert decode_rgb(data, remarks=odd).shape == (6, 9, 3)
        assert list(odd) == [FRAMES]
    single: dict[str, str] = {}
    decode_rgb(encoded(first, "TIFF"), remarks=single)
    decode_rgb(encoded(first, "MPO", save_all=True, append_images=[second]), remarks=single)
    assert not single


def test_a_colour_profile_is_ignored_and_that_is_remarked() -> None:
    """Unless it is sRGB, as ignoring it changes nothing then."""
    image = Image.fromarray(pattern())
    odd: dict[str, str] = {}
    assert np.array_equal(decode_rgb(encoded(image, icc_profile=b"Display P3"), remarks=odd), pattern())
    assert list(odd) == [PROFILE]
    srgb: dict[str, str] = {}
    decode_rgb(
        encoded(image, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()), remarks=srgb
    )
    assert not srgb


def test_16_bit_grey_is_scaled_to_the_range_that_is_asked_for() -> None:
    """4095 becomes white, what is above too."""
    values = np.array([[0, 8, 9, 2048, 4095, 65535]], dtype=np.uint16)
    pixels = decode_rgb(encoded(Image.fromarray(values)), policy=Decoding(4095))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_the_policys_name_holds_a_range_only_where_one_was_asked_for() -> None:
    """Caches of before stay what they are; what no program wrote is refused."""
    assert Decoding().name == DECODING_POLICY
    assert Decoding.parse(Decoding(4095).name) == Decoding(4095)
    for name in ("rgb-2", "rgb-1 grey:65535", "rgb-1 grey:99999", "rgb-1 grey:12", ""):
        with pytest.raises(ValueError, match="decoding policy"):
            Decoding.parse(name)


def test_a_decompression_bomb_is_refused() -> None:
    """Beyond Pillow's own limit too, as our error."""
    data = encoded(Image.new("1", (20_000, 10_000)))
    with pytest.raises(DecodeError):
        decode_rgb(data)


def test_damaged_files_raise_nothing_but_decode_error() -> None:
    """Whatever bytes are flipped, the answer is pixels or a DecodeError."""
    generator = np.random.default_rng(0)
    for kind in KINDS:
        whole = encoded(Image.fromarray(pattern(16, 16)), kind)
        for _ in range(20):
            damaged = bytearray(whole)
            for position in generator.integers(0, len(whole), 4):
                damaged[position] = int(generator.integers(256))
            try:
                with catching_warnings():
                    pixels = decode_rgb(bytes(damaged), pixel_limit=10_000)
            except DecodeError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


def test_a_tile_larger_than_its_image_counts_as_its_pixels() -> None:
    """Of 8 x 8 pixels in one tile of 20,000 x 20,000 all would be decoded."""
    tags = [
        (256, 8),
        (257, 8),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 20_000),
        (323, 20_000),
        (324, 200),
        (325, 9),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = (b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + struct.pack("<I", 0)).ljust(300, b"\0")
    with pytest.raises(DecodeError, match="400,000,000"):
        decode_rgb(data)


def test_a_jpeg_of_markers_without_end_is_refused() -> None:
    """Each costs a step of a loop; cameras write some hundred."""
    data = encoded(Image.fromarray(pattern(16, 16)), "JPEG")
    with pytest.raises(DecodeError, match="markers"):
        decode_rgb(data[:2] + b"\xff\xe0\0\2" * 20_000 + data[2:])
