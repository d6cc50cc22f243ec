"""Where augmented passes look: parameters that follow from their key alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs import augment
from pipeline.inputs.augment import ViewParameters, view_parameters

DIGESTS = st.binary(min_size=32, max_size=32)


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
    """Recipe version 2 is pinned: a change here is another RECIPE_VERSION."""
    found = view_parameters(7, bytes(range(32)), 3)
    assert found.area == pytest.approx(0.439611334265608, abs=1e-15)
    assert found.ratio == pytest.approx(0.9374568262650956, abs=1e-15)
    assert found.left == pytest.approx(0.9874836262835355, abs=1e-15)
    assert found.top == pytest.approx(0.10358905829854748, abs=1e-15)
    assert found.degrees == pytest.approx(9.342804764517613, abs=1e-13)
    assert found.flip is False
    assert (augment.RECIPE, augment.RECIPE_VERSION) == ("crop-flip-rotate", 2)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), digest=DIGESTS)
def test_a_crop_lies_in_its_image_and_has_its_share(height: int, width: int, digest: bytes) -> None:
    """Whole pixels, at least one, of any image; the area asked for but for rounding, unless a side was cut short."""
    found = view_parameters(0, digest, 1)
    left, top, right, bottom = found.box(height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if right - left < width and bottom - top < height:
        assert (right - left) * (bottom - top) == pytest.approx(found.area * height * width, abs=height + width)


def test_a_crop_goes_from_edge_to_edge() -> None:
    """Place 0 is the left and top edge, the largest place below 1 the right and bottom one."""
    assert ViewParameters(0.5, 1.0, 0.0, 0.0, 0.0, False).box(100, 100) == (0, 0, 71, 71)
    assert ViewParameters(0.5, 1.0, 1 - 2**-53, 1 - 2**-53, 0.0, False).box(100, 100) == (29, 29, 100, 100)
