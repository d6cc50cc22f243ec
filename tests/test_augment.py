"""Views: parameters that follow from their key alone, and a clean view equal to torchvision's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models import VGG16_Weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline.inputs import augment
from pipeline.inputs.augment import ViewParameters, Views, augmented_view, clean_view, resize_for, view_parameters
from pipeline.inputs.decode import Pixels

DIGESTS = st.binary(min_size=32, max_size=32)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@given(seed=st.integers(-(2**63), 2**63), digest=DIGESTS, number=st.integers(1, 10**6))
def test_parameters_lie_in_their_ranges_and_follow_from_the_key(seed: int, digest: bytes, number: int) -> None:
    """Area, ratio, place and angle are within bounds; asking twice gives the same; the next pass differs."""
    found = view_parameters(seed, digest, number)
    assert augment.SCALE[0] <= found.area <= augment.SCALE[1]
    assert augment.RATIO[0] - 1e-9 <= found.ratio <= augment.RATIO[1] + 1e-9
    assert 0 <= found.left < 1
    assert 0 <= found.top < 1
    assert abs(found.degrees) <= augment.DEGREES
    assert found == view_parameters(seed, digest, number)
    assert found != view_parameters(seed, digest, number + 1)
    assert found != view_parameters(seed + 1, digest, number)


def test_parameters_are_spread_over_their_ranges() -> None:
    """Over 2000 passes the means are those of uniform draws, and half the views are flipped."""
    found = [view_parameters(0, bytes(32), number) for number in range(1, 2001)]
    assert np.mean([p.area for p in found]) == pytest.approx(0.675, abs=0.02)
    assert np.mean([math.log(p.ratio) for p in found]) == pytest.approx(0, abs=0.02)
    assert np.mean([p.left for p in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([p.top for p in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([p.degrees for p in found]) == pytest.approx(0, abs=1)
    assert np.mean([p.flip for p in found]) == pytest.approx(0.5, abs=0.04)


def test_one_key_has_the_parameters_it_always_had() -> None:
    """Recipe version 1 is pinned: a change here is another RECIPE_VERSION."""
    found = view_parameters(7, bytes(range(32)), 3)
    assert found.area == pytest.approx(0.439611334265608, abs=1e-15)
    assert found.ratio == pytest.approx(0.9374568262650956, abs=1e-15)
    assert found.left == pytest.approx(0.9874836262835355, abs=1e-15)
    assert found.top == pytest.approx(0.10358905829854748, abs=1e-15)
    assert found.degrees == pytest.approx(9.342804764517613, abs=1e-13)
    assert found.flip is False
    assert (augment.RECIPE, augment.RECIPE_VERSION) == ("crop-flip-rotate", 1)


@pytest.mark.parametrize(
    ("height", "width"),
    [(300, 400), (333, 500), (500, 333), (224, 224), (257, 511), (100, 100), (37, 1000), (256, 256)],
)
@pytest.mark.parametrize("size", [224, 64, 95])
def test_the_clean_view_is_bit_equal_to_torchvisions_crop(height: int, width: int, size: int) -> None:
    """Resize and centre crop as VGG16_Weights.IMAGENET1K_V1.transforms(), whatever the image's size."""
    image = Image.fromarray(noise(height, width))
    resized = functional.resize(image, [resize_for(size)], InterpolationMode.BILINEAR, antialias=True)
    expected = np.asarray(functional.center_crop(resized, [size, size]))
    assert np.array_equal(clean_view(np.asarray(image), size, resize_for(size)), expected)


def test_the_preset_is_torchvisions() -> None:
    """256 for 224, bilinear, mean and deviation: the numbers of the preset."""
    from pipeline.backbones.backbone import MEAN, STD

    preset = VGG16_Weights.IMAGENET1K_V1.transforms()
    assert preset.crop_size == [224]
    assert preset.resize_size == [resize_for(224)]
    assert preset.interpolation == InterpolationMode.BILINEAR
    assert tuple(preset.mean) == MEAN
    assert tuple(preset.std) == STD


@given(height=st.integers(1, 70), width=st.integers(1, 70), number=st.integers(0, 99))
def test_every_view_of_any_image_has_the_input_size(height: int, width: int, number: int) -> None:
    """Also of images smaller than the crop, down to one pixel."""
    view = Views(32, 37).render(noise(height, width), bytes(32), f"pass:{number}")
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8


def test_a_view_is_the_same_each_time_and_other_passes_differ() -> None:
    """Pixels follow from image, seed, digest and pass."""
    pixels = noise(40, 50)
    views = Views(32, 37, seed=1)
    first = views.render(pixels, bytes(32), "pass:1")
    assert np.array_equal(first, views.render(pixels, bytes(32), "pass:1"))
    for other in (
        views.render(pixels, bytes(32), "pass:2"),
        views.render(pixels, b"\1" * 32, "pass:1"),
        Views(32, 37, seed=2).render(pixels, bytes(32), "pass:1"),
    ):
        assert not np.array_equal(first, other)


def test_a_flip_mirrors_the_view() -> None:
    """Without rotation, the flipped view is the mirror image."""
    pixels = noise(40, 50)
    plain, flipped = (augmented_view(pixels, 32, ViewParameters(0.5, 1.0, 0.3, 0.6, 0.0, f)) for f in (False, True))
    assert np.array_equal(plain[:, ::-1], flipped)


def test_the_whole_image_at_no_angle_is_a_plain_resize() -> None:
    """Area 1 at the image's own ratio takes all of it."""
    pixels = noise(64, 64)
    view = augmented_view(pixels, 32, ViewParameters(1.0, 1.0, 0.0, 0.0, 0.0, False))
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(view, np.asarray(expected))
