"""Real odd files, from phones, cameras, editors and bug reports: read as they should be, or refused with the reason.

They are looked for in `odd/` of $HEADGRAFT_DATA.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Extract

from pipeline.errors import DecodeError
from pipeline.inputs.decode import EXTENSIONS, decode_rgb, read_image
from pipeline.inputs.remarks import FRAMES, METADATA, PROFILE, catching_warnings

ODD = Path(os.environ.get("HEADGRAFT_DATA") or REPOSITORY.parent / "shared" / "data") / "odd"
pytestmark = pytest.mark.skipif(not ODD.is_dir(), reason=f"no odd files at {ODD}: set HEADGRAFT_DATA")

# Width, height, and the mean of red, green and blue, as seen to be the right picture.
READ = {
    "adobe_unknown_rgb_ids.jpg": (225, 156, (233, 229, 226)),
    "avif_iphone_orientation6.avif": (3024, 4032, (147, 124, 98)),
    "cmyk_adobe_t0.jpg": (160, 227, (73, 135, 156)),
    "cmyk_adobe_ycck_icc557k.jpg": (500, 333, (109, 132, 110)),
    "cmyk_adobe_ycck_noicc.jpg": (500, 333, (109, 132, 110)),
    "cmyk_bad_icc.jpg": (183, 283, (159, 66, 107)),
    "cmyk_flower_t2.jpg": (510, 532, (173, 154, 180)),
    "exif_bad_entry_count.jpg": (510, 375, (214, 214, 214)),
    "exif_corrupt_hopper.jpg": (500, 500, (125, 125, 125)),
    "exif_gps_wrong_type.jpg": (800, 531, (161, 160, 142)),
    "exif_invalid_adobe.jpg": (200, 200, (92, 92, 92)),
    "exif_multiple_blocks.jpg": (1, 1, (0, 0, 0)),
    "exif_orientation5_mirrored.webp": (128, 128, (90, 80, 96)),
    "exif_orientation6_cameratrap.jpg": (2048, 1536, (201, 183, 187)),
    "exif_orientation6_landscape.jpg": (600, 450, (84, 82, 72)),
    "exif_oserror_nikon.jpg": (1488, 2240, (52, 54, 49)),
    "exif_zero_length_string_samsung.jpg": (4032, 2012, (137, 137, 137)),
    "heic_12bit_rgba.heif": (29, 100, (191, 170, 191)),
    "heic_iphone.heic": (2566, 3313, (124, 120, 119)),
    "iphone13_gainmap.jpg": (384, 512, (88, 87, 87)),
    "mpo_bad_header.jpg": (640, 480, (121, 109, 99)),
    "nintendo3ds.mpo": (640, 480, (108, 104, 101)),
    "ome_bigtiff.tif": (128, 128, (90, 80, 95)),
    "png_12bit_in_16bit_derived.png": (512, 512, (7, 7, 7)),
    "png_16bit_grey_alpha.png": (109, 96, (248, 248, 248)),
    "png_display_p3.png": (8, 8, (248, 0, 0)),
    "png_i16_trns.png": (64, 64, (0, 0, 0)),
    "png_icc_557k.png": (350, 490, (72, 51, 53)),
    "png_xmp_12k.png": (23, 25, (211, 206, 201)),
    "reconyx_hf2_exif.jpg": (2048, 1440, (98, 105, 113)),
    "tiff_12bit_in_16.tif": (512, 512, (7, 7, 7)),
    "tiff_ifd_loop.tiff": (10, 10, (0, 128, 0)),
    "tiff_lab.tif": (10, 10, (254, 255, 254)),
    "tiff_multipage_3.tiff": (10, 10, (0, 128, 0)),
    "tiff_ome_15.tif": (439, 167, (59, 59, 59)),
    "ultrahdr_full.jpg": (3840, 2160, (100, 98, 97)),
    "webp_animated_101.webp": (320, 240, (180, 195, 187)),
    "webp_animated_small.webp": (80, 80, (199, 216, 226)),
    "webp_looks_like_svg.webp": (256, 256, (208, 211, 203)),
    "webp_named_jpg.jpg": (80, 80, (199, 216, 226)),
    "ycck_marker_on_3_channels.jpg": (310, 384, (240, 240, 240)),
}
REFUSED = {  # and what the reason says
    "adobe_marker_bad_length.jpg": "damaged JPEG",
    "avif_bad_grid.avif": "Invalid image grid",
    "bmp_bomb.bmp": "over the limit",
    "gif_cut.gif": "truncated",
    "header_only_1024_bytes.jpg": "(?i)truncated",
    "junk_before_real_start.jpg": "broken data",
    "jxl_photo.jxl": "JPEG XL",
    "lossless_jpeg_16bit.jpg": "lossless JPEG",
    "not_an_image.jpg": "HTML page",
    "png_broken_stream.png": "stream",
    "png_cut.png": "truncated",
    "seven_bytes.jpg": "damaged JPEG",
    "tiff_float32.tiff": "32-bit float",
    "tiff_seek_too_large.tif": "seek",
    "truncated_10000_bytes.jpg": "truncated",
    "truncated_cameratrap.jpg": "truncated",
    "truncated_small.jpg": "truncated",
    "ultrahdr_cut_pixel6.jpg": "truncated",
    "zero_height_dnl.jpg": "damaged JPEG",
}
REMARKED = {
    "avif_iphone_orientation6.avif": PROFILE,
    "cmyk_adobe_ycck_icc557k.jpg": PROFILE,
    "cmyk_bad_icc.jpg": PROFILE,
    "exif_bad_entry_count.jpg": PROFILE,
    "exif_orientation6_landscape.jpg": PROFILE,
    "heic_iphone.heic": PROFILE,
    "iphone13_gainmap.jpg": PROFILE,
    "png_16bit_grey_alpha.png": PROFILE,
    "png_display_p3.png": PROFILE,
    "png_icc_557k.png": PROFILE,
    "exif_corrupt_hopper.jpg": METADATA,
    "mpo_bad_header.jpg": METADATA,
    "tiff_ifd_loop.tiff": FRAMES,
    "tiff_multipage_3.tiff": FRAMES,
    "tiff_ome_15.tif": FRAMES,
    "webp_animated_101.webp": FRAMES,
    "webp_animated_small.webp": FRAMES,
    "webp_named_jpg.jpg": FRAMES,
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_it_should_be(name: str) -> None:
    """The size, upright, the mean colour within two grey levels, and what is worth a remark."""
    odd: dict[str, str] = {}
    with catching_warnings():
        pixels = decode_rgb(read_image(ODD / name), remarks=odd)
    width, height, mean = READ[name]
    assert pixels.shape == (height, width, 3)
    assert np.abs(pixels.mean((0, 1)) - mean).max() <= 2
    assert list(odd) == ([REMARKED[name]] if name in REMARKED else [])


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_the_reason(name: str) -> None:
    """Never half a picture."""
    with catching_warnings(), pytest.raises(DecodeError, match=REFUSED[name]):
        decode_rgb(read_image(ODD / name))


def test_every_odd_file_is_one_of_these() -> None:
    """None is left out."""
    assert {path.name for path in ODD.iterdir()} - {"MANIFEST.md"} == READ.keys() | REFUSED.keys()


def test_a_set_of_them_is_read_and_every_oddity_has_its_line(
    run_extract: Extract, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines of the program alone, none of a library; every file is a row, skipped with its reason, or not listed."""
    for split in ("train", "valid"):
        folder = tmp_path / "set" / split / "odd"
        folder.mkdir(parents=True)
        for path in ODD.iterdir():
            (folder / path.name).symlink_to(path)
    lines: list[str] = []
    result = run_extract(say=lines.append, data=tmp_path / "set", skip_bad=True, workers=2)
    listed = [name for name in READ.keys() | REFUSED.keys() if Path(name).suffix in EXTENSIONS]
    skipped = {Path(one["path"]).name for one in result.skipped}
    assert skipped == {name for name in listed if name in REFUSED}
    assert result.images == 2 * len(listed)
    # Counted by content: two of the six with more frames are one file under two names.
    assert {kind: count for kind, (count, _) in result.remarks.items()} == {PROFILE: 10, FRAMES: 5, METADATA: 2}
    assert (
        sum(line.startswith(("5 files with more than one page", "2 files with damaged metadata")) for line in lines)
        == 2
    )
    assert any("--grey-range 4095" in line for line in lines)
    assert capfd.readouterr().err == ""
