"""One folder with everything that is found in the wild: each file ends in the right pixels or in the skip list."""

import io
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Extract, draw_dataset, draw_image
from PIL import Image

from cache.check import verify
from cache.errors import DamagedCache
from cache.index import SetIndex
from cache.manifest import Manifest, json_digest
from cache.store import FeatureCache
from pipeline.commands.predict import find_images
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import Pixels, decode_rgb, read_image
from pipeline.inputs.images import changed_files
from pipeline.inputs.listing import list_files

SIDE = 40
RED, BLUE = (254, 0, 0), (0, 0, 254)


def scene() -> Image.Image:
    """Red on the left, blue on the right: no flip or turn leaves it as it is, and the lower half is darker."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = RED, BLUE
    pixels[SIDE // 2 :] //= 2
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    """The scene stored turned as EXIF says, as a camera would."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = scene() if undo is None else scene().transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, "PNG", exif=exif)


def grey_16() -> bytes:
    """Sixteen bits of grey."""
    return saved(Image.fromarray(np.full((SIDE, SIDE), 0x8080, np.uint16)), "PNG")


def animation(kind: str) -> bytes:
    """The scene, then something else."""
    other = Image.new("RGB", (SIDE, SIDE), "white")
    return saved(
        scene(),
        kind,
        save_all=True,
        append_images=[other],
        duration=100,
        **({"lossless": True} if kind == "WEBP" else {}),
    )


def bomb() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def clear_palette() -> bytes:
    """A palette of which one colour is transparent, all over: white."""
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    return saved(image, "PNG", transparency=1)


WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)
GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)
PNG = saved(scene(), "PNG")
GOLDEN: dict[bytes, tuple[bytes, Pixels]] = {
    b"plain.png": (PNG, np.asarray(scene())),
    b"wrong extension.jpg": (PNG, np.asarray(scene())),
    b"two\nlines.png": (PNG, np.asarray(scene())),
    b"not-utf8-\xff.png": (PNG, np.asarray(scene())),
    b"<script>alert(1)<.png": (PNG, np.asarray(scene())),
    b"-rf.png": (PNG, np.asarray(scene())),
    b"cmyk.tif": (saved(scene().convert("CMYK"), "TIFF"), np.asarray(scene())),
    b"sixteen.png": (grey_16(), GREY),
    b"clear.png": (clear_palette(), WHITE),
    b"alpha.png": (saved(Image.new("RGBA", (SIDE, SIDE), (1, 2, 3, 0)), "PNG"), WHITE),
    b"palette.gif": (saved(scene().quantize(8), "GIF"), np.asarray(scene())),
    b"moving.gif": (animation("GIF"), np.asarray(scene())),
    b"moving.webp": (animation("WEBP"), np.asarray(scene())),
    **{f"exif{n}.png".encode(): (turned(n), np.asarray(scene())) for n in range(1, 9)},
}
BAD: dict[bytes, tuple[bytes, str]] = {
    b"empty.jpg": (b"", "empty"),
    b"cut.jpg": (saved(scene().resize((400, 400)), "JPEG")[:700], "cannot be decoded"),
    b"text.png": (b"hello", "not an image of a known format"),
    b"script.gif": (b"<script>alert(1)</script>", "not an image of a known format"),
    b"postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    b"icon.png": (saved(scene(), "ICO"), "not an image of a known format"),
    b"bomb.png": (bomb(), "over the limit"),
    b"float.tif": (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "floating-point"),
}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A data set whose class '1' holds all of it, beside links, pipes and loops."""
    root = draw_dataset(tmp_path / "data")
    place = root / "train" / "1"
    for name, (content, _) in [*GOLDEN.items(), *BAD.items()]:
        (place / os.fsdecode(name)).write_bytes(content)
    (tmp_path / "secret").mkdir()
    scene().save(tmp_path / "secret" / "secret.png")
    (place / "loop").symlink_to(root / "train", target_is_directory=True)
    (place / "self.png").symlink_to(place / "self.png")
    (place / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (place / "outside").symlink_to(tmp_path / "secret", target_is_directory=True)
    (place / "followed.png").symlink_to(tmp_path / "secret" / "secret.png")
    (place / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.png")
    return root


FAULTS = {
    "loop": "a loop",
    "self.png": "cannot be read",
    "nowhere.png": "cannot be read",
    "endless.png": "not a regular file",
    "pipe.png": "not a regular file",
}


def test_every_file_ends_in_pixels_or_in_the_skip_list(hostile: Path, run_extract: Extract, tmp_path: Path) -> None:
    """With --skip-bad nothing aborts; without, every fault is named and nothing is computed."""
    with pytest.raises(ImageSetError) as refused:
        run_extract(data=hostile)
    assert all(name in str(refused.value) for name in FAULTS)
    result = run_extract(data=hostile, skip_bad=True)
    reasons = {Path(bad["path"]).name: bad["reason"] for bad in result.skipped}
    expected = {**FAULTS, **{os.fsdecode(name): reason for name, (_, reason) in BAD.items()}}
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name], (name, reasons[name])
    index = FeatureCache.open(tmp_path / "features").index()
    kept = {Path(image.path).name for image in index.images}
    assert {os.fsdecode(name) for name in GOLDEN} | {"followed.png", "secret.png"} <= kept
    assert verify(tmp_path / "features", changed_files).changed == {}
    assert run_extract(data=hostile, skip_bad=True).computed == 0


@pytest.mark.parametrize("name", GOLDEN, ids=lambda name: repr(name))
def test_what_decodes_has_the_right_pixels(name: bytes, tmp_path: Path) -> None:
    """Within two levels of the scene: colour conversions round."""
    content, golden = GOLDEN[name]
    path = tmp_path / "image"
    path.write_bytes(content)
    pixels = decode_rgb(read_image(path))
    assert pixels.shape == golden.shape
    assert int(np.abs(pixels.astype(int) - golden).max()) <= 2


def test_names_reach_json_and_terminal_as_one_line_each(
    hostile: Path, tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Newlines and bytes that are no UTF-8 do not break the output."""
    from click.testing import CliRunner

    from cli import main

    options = ["--backbone", "tiny", "--weights", tiny, "--image-size", "32", "--precision", "float32"]
    command = ["extract", str(hostile), "--cache", str(tmp_path / "c"), "--device", "cpu", "--skip-bad", *options]
    (hostile / "train" / "1" / os.fsdecode(b"bad\n\xff.png")).write_bytes(b"no image")
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "bad\\n\\udcff.png: not an image" in shown.stdout
    again = CliRunner().invoke(main, [*command, "--json"])
    paths = [bad["path"] for bad in json.loads(again.stdout)["skipped"]]
    assert "train/1/bad\n\udcff.png" in paths


def rewritten(file: Path, change: Callable[[dict[str, object]], None], digest: str) -> None:
    """Change a JSON file of the cache, and its digest with it, as an attacker could."""
    stored = json.loads(file.read_bytes())
    stored.pop(digest)
    version = stored.pop("format", None)
    change(stored)
    stored[digest] = json_digest(stored)
    file.write_text(json.dumps(stored if version is None else {"format": version, **stored}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("row_shape", [1 << 40, 1 << 40, 7]),
        ("row_shape", [-1, 7, 7]),
        ("row_shape", []),
        ("row_shape", "512"),
        ("input_size", 1e300),
        ("input_size", "224"),
        ("backbone", ["vgg16"]),
        ("mean", [0.1, 0.2]),
        ("std", [0.0, 0.1, 0.1]),
        ("weights_digest", "../../etc"),
        ("precision", None),
        ("dtype", "<f8"),
    ],
)
def test_a_crafted_manifest_is_refused(field: str, value: object, run_extract: Extract, tmp_path: Path) -> None:
    """Even with a digest that holds: wrong types, huge and impossible numbers."""
    run_extract()
    file = tmp_path / "features" / "manifest.json"

    def change(stored: dict[str, object]) -> None:
        assert isinstance(stored["base"], dict)
        stored["base"][field] = value

    rewritten(file, change, "digest")
    with pytest.raises(DamagedCache):
        Manifest.load(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "../../../etc/passwd"),
        ("path", "/etc/passwd"),
        ("path", 7),
        ("path", "train/1/\0.png"),
        ("path", "train/1/\ud800.png"),
        ("label", "no class of the set"),
        ("digest", "xyz"),
        ("digest", 1),
        ("label", None),
        ("split", "elsewhere"),
        ("size", -1),
        ("size", "big"),
        ("mtime_ns", 1.5),
    ],
)
def test_a_crafted_index_is_refused(field: str, value: object, run_extract: Extract, tmp_path: Path) -> None:
    """A record that leads out of the data set, or is none."""
    run_extract()
    file = tmp_path / "features" / "sets" / "data.json"

    def change(stored: dict[str, object]) -> None:
        images = stored["images"]
        assert isinstance(images, dict)
        images[field][0] = value

    rewritten(file, change, "sha256")
    with pytest.raises(DamagedCache):
        SetIndex.load(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../other"),
        ("name", 3),
        ("classes", "abc"),
        ("classes", [1, 2]),
        ("classes", ["1", "1"]),
        ("images", [1]),
        ("images", {"a": 1}),
        ("images", {"a": []}),
        ("images", {name: [] for name in ("path", "digest", "label", "split", "size")}),
        ("images", {"path": ["a"], **{name: [] for name in ("digest", "label", "split", "size", "mtime_ns")}}),
        ("passes", -1),
        ("passes", 10**15),
        ("classes", []),
        ("classes", ["1", "\ud800"]),
        ("skipped", [{"path": 1, "digest": "", "reason": ""}]),
        ("root", 5),
    ],
)
def test_an_index_with_a_crafted_head_is_refused(
    field: str, value: object, run_extract: Extract, tmp_path: Path
) -> None:
    """Its name is the file's, classes are distinct texts, counts are counts."""
    run_extract()
    file = tmp_path / "features" / "sets" / "data.json"
    rewritten(file, lambda stored: stored.update({field: value}), "sha256")
    with pytest.raises(DamagedCache):
        SetIndex.load(file)


def test_an_index_that_names_a_file_twice_is_refused(run_extract: Extract, tmp_path: Path) -> None:
    """One of the two labels or splits would be wrong."""
    run_extract()
    file = tmp_path / "features" / "sets" / "data.json"

    def change(stored: dict[str, object]) -> None:
        assert isinstance(stored["images"], dict)
        paths = stored["images"]["path"]
        paths[1] = paths[0]

    rewritten(file, change, "sha256")
    with pytest.raises(DamagedCache, match="one path twice"):
        SetIndex.load(file)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder in a folder, 1,200 times; removed by `rm`, as pytest's own removal is recursive and fails."""
    place = tmp_path / "deep"
    place.mkdir()
    here = os.open(place, os.O_RDONLY)
    for _ in range(1200):  # no path that long can be given to the system, but it can be made step by step
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    yield place
    subprocess.run(["rm", "-rf", str(place)], check=True)


def test_folders_nested_without_end_are_a_reason_or_no_hindrance(deep: Path) -> None:
    """Some tools make them; extract names the folder it stops at, predict finds what lies at the bottom."""
    draw_image(deep / "train" / "d" / "a.png", 1)
    (deep / "d").rename(deep / "train" / "d" / "d")
    listed = list_files(deep).files
    assert [bool(item.fault) for item in listed] == [False, True]
    assert "more than are looked into" in listed[1].fault
    assert find_images((str(deep),)) == ([deep / "train" / "d" / "a.png"], [], {})
    assert find_images((f"{deep}/**/*.jpg",))[0] == []


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"format": 1, "base": {"format": 1}, "digest": "", "sha256": "", "x": NaN}']
)
def test_json_that_no_program_wrote_is_refused(content: str, tmp_path: Path) -> None:
    """Nested without end, or with numbers that JSON does not have."""
    (tmp_path / "any.json").write_text(content)
    for load in (Manifest.load, SetIndex.load):
        with pytest.raises(DamagedCache, match=r"is not (a manifest|an index)"):
            load(tmp_path / "any.json")
