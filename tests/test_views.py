"""Pixels of views: the clean one equal to torchvision's, augmented ones to Pillow's, a device's to the processor's."""

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Extract, preprocessing, some_flowers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import VGG16_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from cache.store import FeatureCache
from pipeline.extraction.plan import ExtractionContext
from pipeline.inputs.augment import ViewParameters, view_parameters
from pipeline.inputs.decode import Pixels, decode_rgb
from pipeline.inputs.device_views import OF_PHOTOGRAPHS, TOLERANCE, DeviceViews
from pipeline.inputs.views import Halves, Views, augmented_view

CPU = torch.device("cpu")


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def augmented(pixels: Pixels, size: int, parameters: ViewParameters) -> Pixels:
    """An augmented view, from pixels to pixels."""
    image = Halves(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])
    return augmented_view(image, size, parameters).permute(1, 2, 0).numpy()


def difference(one: Pixels, other: Pixels) -> Pixels:
    """Grey levels, by pixel."""
    found: Pixels = np.abs(one.astype(np.int16) - other).astype(np.uint8)
    return found


@pytest.mark.parametrize(
    ("height", "width"),
    [(300, 400), (333, 500), (500, 333), (224, 224), (257, 511), (100, 100), (37, 1000), (256, 256)],
)
@pytest.mark.parametrize("size", [224, 64, 95])
def test_the_clean_view_is_bit_equal_to_torchvisions_crop(height: int, width: int, size: int) -> None:
    """Resize and centre crop as VGG16_Weights.IMAGENET1K_V1.transforms(), whatever the image's size."""
    image = Image.fromarray(noise(height, width))
    resized = functional.resize(image, [preprocessing(size).resize], InterpolationMode.BILINEAR, antialias=True)
    expected = np.asarray(functional.center_crop(resized, [size, size]))
    assert np.array_equal(preprocessing(size).view(np.asarray(image)), expected)


def test_the_preset_is_torchvisions() -> None:
    """256 for 224, bilinear, mean and deviation: the numbers of the preset."""
    preset = VGG16_Weights.IMAGENET1K_V1.transforms()
    assert preset.crop_size == [224]
    assert preset.resize_size == [preprocessing(224).resize]
    assert preset.interpolation == InterpolationMode.BILINEAR
    assert tuple(preset.mean) == preprocessing().mean
    assert tuple(preset.std) == preprocessing().std


@given(height=st.integers(1, 70), width=st.integers(1, 70), number=st.integers(0, 99))
def test_every_view_of_any_image_has_the_input_size(height: int, width: int, number: int) -> None:
    """Also of images smaller than the crop, down to one pixel."""
    view = Views(preprocessing()).render_all(noise(height, width), bytes(32), (f"pass:{number}",))[0]
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8


def test_a_view_is_the_same_each_time_and_other_passes_differ() -> None:
    """Pixels follow from image, seed, digest and pass."""
    pixels = noise(40, 50)
    views = Views(preprocessing(), seed=1)
    first = views.render_all(pixels, bytes(32), ("pass:1",))[0]
    assert np.array_equal(first, views.render_all(pixels, bytes(32), ("pass:1",))[0])
    for other in (
        views.render_all(pixels, bytes(32), ("pass:2",))[0],
        views.render_all(pixels, b"\1" * 32, ("pass:1",))[0],
        Views(preprocessing(), seed=2).render_all(pixels, bytes(32), ("pass:1",))[0],
    ):
        assert not np.array_equal(first, other)


def test_a_flip_mirrors_the_view() -> None:
    """Without rotation, the flipped view is the mirror image."""
    pixels = noise(40, 50)
    plain, flipped = (augmented(pixels, 32, ViewParameters(0.5, 1.0, 0.3, 0.6, 0.0, f)) for f in (False, True))
    assert np.array_equal(plain[:, ::-1], flipped)


def test_the_whole_image_at_no_angle_is_a_plain_resize() -> None:
    """Area 1 at the image's own ratio takes all of it."""
    pixels = noise(64, 64)
    view = augmented(pixels, 32, ViewParameters(1.0, 1.0, 0.0, 0.0, 0.0, False))
    expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    assert difference(view, expected).max() <= 1


def by_pillow(pixels: Pixels, size: int, parameters: ViewParameters) -> Pixels:
    """An augmented view by one affine transform of Pillow's, of the image or of its half."""
    left, top, right, bottom = parameters.box(*pixels.shape[:2])
    if (right - left) * (bottom - top) >= (2 * size) ** 2:
        return by_pillow(np.asarray(Image.fromarray(pixels).reduce(2)), size, parameters)
    width, height = right - left, bottom - top
    mirror, angle = -1 if parameters.flip else 1, math.radians(parameters.degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    across = (mirror * cosine * width / size, -mirror * sine * width / size, (1 - mirror * (cosine - sine)) * width / 2)
    down = (sine * height / size, cosine * height / size, (1 - sine - cosine) * height / 2)
    crop = Image.fromarray(pixels[top:bottom, left:right])
    affine = Image.Transform.AFFINE
    return np.asarray(crop.transform((size, size), affine, (*across, *down), Image.Resampling.BILINEAR))


@given(height=st.integers(8, 120), width=st.integers(8, 120), number=st.integers(1, 99))
def test_an_augmented_view_is_an_affine_transform_of_the_crop(height: int, width: int, number: int) -> None:
    """As Pillow's within two grey levels, away from the line where black begins, which torch draws softly."""
    pixels, parameters = noise(height, width), view_parameters(0, bytes(32), number)
    inside = augmented(np.full_like(pixels, 255), 64, parameters).min(axis=2) == 255
    assert inside.mean() > 0.6
    assert difference(augmented(pixels, 64, parameters), by_pillow(pixels, 64, parameters))[inside].max() <= 2


def test_a_large_image_is_halved_before_it_is_sampled() -> None:
    """A fine pattern becomes its mean rather than stripes."""
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 200
    view = augmented(stripes, 64, ViewParameters(1.0, 1.0, 0.0, 0.0, 0.0, False))
    assert np.abs(view.astype(int) - 100).max() <= 5
    assert (
        augmented(np.full((512, 512, 3), 200, np.uint8), 64, ViewParameters(1.0, 1.0, 0, 0, 20.0, False))[0, 0].max()
        == 0
    )


VIEWS = ("pass:0", "pass:1", "pass:2")


def rendered_on(device: torch.device, views: Views, images: list[Pixels]) -> list[Pixels]:
    """All of VIEWS of all images, one after the other, as a device renders them, in one go."""
    there = DeviceViews(views, device)
    decoded = [there.prepare(pixels, digest(number), VIEWS) for number, pixels in enumerate(images)]
    return [view.cpu().numpy() for _, view in there.finish(enumerate(chain.from_iterable(decoded)))]


def digest(number: int) -> bytes:
    """Of an image."""
    return bytes([number]) * 32


@given(
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=5), seed=st.integers(0, 9)
)
def test_a_device_renders_what_the_processor_does(sizes: list[tuple[int, int]], seed: int) -> None:
    """Whatever the images, beside whatever others, and the view: to two grey levels of noise."""
    images, views = [noise(*size, seed) for size in sizes], Views(preprocessing(), seed)
    here = [view for number, pixels in enumerate(images) for view in views.render_all(pixels, digest(number), VIEWS)]
    for one, other in zip(here, rendered_on(CPU, views, images), strict=True):
        assert one.shape == other.shape
        assert difference(one, other).max() <= TOLERANCE


def test_large_images_are_rendered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many together as fit: the views are the same, in their order."""
    images, views = [noise(30 + 20 * n, 90 - 10 * n, n) for n in range(6)], Views(preprocessing(), 1)
    whole = rendered_on(CPU, views, images)
    monkeypatch.setattr("pipeline.inputs.device_views._BYTES", 10_000)
    parts = rendered_on(CPU, views, images)
    assert all(difference(one, other).max() <= 1 for one, other in zip(whole, parts, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_cuda_renders_what_the_processor_does() -> None:
    """The same on a device of another kind."""
    images, views = [noise(300 + 40 * seed, 500 - 30 * seed, seed) for seed in range(8)], Views(preprocessing(224))
    here = [view for number, pixels in enumerate(images) for view in views.render_all(pixels, digest(number), VIEWS)]
    for one, other in zip(here, rendered_on(torch.device("cuda"), views, images), strict=True):
        assert difference(one, other).max() <= TOLERANCE


def test_on_flowers_hardly_a_pixel_of_the_clean_view_differs_on_a_device() -> None:
    """By one grey level, in fewer than one of a hundred."""
    views = Views(preprocessing(224))
    images = [decode_rgb(file.read_bytes()) for file in some_flowers(12)]
    there = rendered_on(CPU, views, images)[:: len(VIEWS)]
    changed = [difference(views.preprocessing.view(pixels), view) for pixels, view in zip(images, there, strict=True)]
    assert max(found.max() for found in changed) <= OF_PHOTOGRAPHS
    assert np.mean([(found > 0).mean() for found in changed]) < 0.01


def test_an_extraction_that_renders_on_its_device(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row as the processor's, but for what a grey level makes; where views were rendered is on record."""
    run_extract(cache=tmp_path / "here", passes=2)
    monkeypatch.setattr("pipeline.extraction.extractor._renderer", on_its_device)
    monkeypatch.setattr("pipeline.backbones.backbone.Backbone.batches_ahead", 1)
    run_extract(cache=tmp_path / "there", passes=2, workers=2)
    here, there = (FeatureCache.open(tmp_path / name) for name in ("here", "there"))
    keys = here.index().row_keys(2)
    assert len(keys) == len(there)
    one, other = (cache.read(keys).astype(np.float32) for cache in (here, there))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > 0.999
    assert {kind["views"] for kind in there.provenance(keys)} == {"device"}
    assert {kind["views"] for kind in here.provenance(keys)} == {"processor"}


def on_its_device(context: ExtractionContext) -> DeviceViews:
    """As for CUDA, on the CPU."""
    recipe = context.manifest.augmentation
    return DeviceViews(Views(context.preprocessing, recipe.seed if recipe else 0), CPU)
