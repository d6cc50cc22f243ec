"""Temperature scaling: fitted, folded, and left alone where images do not ask for one; calibration error, its floor."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache.index import ImageRecord, SetIndex
from pipeline.heads.head import Head
from pipeline.statistics.calibration import (
    FOLDS,
    at_temperature,
    calibrate,
    error_of,
    fit_temperature,
    floor_of,
)


def drawn(seed: int, classes: int, images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (N, C), and labels drawn from them: calibrated as they are."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.log_softmax(torch.randn(images, classes, generator=generator) * 2, 1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]


@given(seed=st.integers(0, 99), classes=st.integers(2, 20), power=st.floats(-1, 1))
def test_the_temperature_that_was_applied_is_found(seed: int, classes: int, power: float) -> None:
    """Within sampling error; the most probable class stays."""
    log_probs, labels = drawn(seed, classes)
    hot = at_temperature(log_probs, 2.0**-power)
    found = fit_temperature(hot, labels)
    assert found == pytest.approx(2.0**power, rel=0.15)
    assert found is not None
    assert torch.equal(at_temperature(hot, found).argmax(1), hot.argmax(1))


def test_calibration_error_goes_down() -> None:
    """Of a head twice as sure as it should be."""
    log_probs, labels = drawn(0, 10)
    sure = at_temperature(log_probs, 0.5)
    temperature = fit_temperature(sure, labels)
    assert temperature is not None
    assert error_of(sure, labels) > 0.1
    assert error_of(at_temperature(sure, temperature), labels) < 0.03


@pytest.mark.parametrize("sharpened", [2, 3, 3.9, 4.2, 6, 10, 0.1])
def test_no_head_is_too_sure_for_a_temperature(sharpened: float) -> None:
    """However far from right it is, the calibration error comes within 0.01 of the best that any temperature gives."""
    log_probs, labels = drawn(0, 20, 2000)
    hot = torch.log_softmax(log_probs * sharpened, 1)
    found = fit_temperature(hot, labels)
    assert found is not None
    best = min(error_of(at_temperature(hot, t), labels) for t in np.geomspace(0.05, 20, 400).tolist())
    assert error_of(at_temperature(hot, found), labels) < best + 0.01


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_images_that_are_all_right_leave_it_open(scale: float) -> None:
    """Otherwise the head would be made as sure as numbers allow; also where its loss is 0 to the last digit."""
    log_probs = torch.log_softmax(scale * torch.eye(5), 1)
    assert fit_temperature(log_probs, torch.arange(5)) is None
    assert fit_temperature(log_probs[:0], torch.arange(0)) is None
    assert fit_temperature(log_probs, torch.tensor([0, 1, 2, 3, 0])) is not None


def test_a_temperature_of_ten_images_is_held_back() -> None:
    """By its prior: of a calibrated head, ten images at a time, the loss that a temperature adds is on average at most
    0.6 of what the one of least loss, from a grid, adds.
    """
    log_probs, labels = drawn(3, 10, 4000)
    sure = torch.log_softmax(log_probs * 1.5, 1)  # 80 % of the images right
    labels = torch.multinomial(sure.exp(), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    grid = torch.tensor(np.geomspace(0.01, 100, 200))
    lost: list[float] = []
    plain: list[float] = []
    for start in range(0, 1000, 10):
        some, theirs = sure[start : start + 10], labels[start : start + 10]
        if (found := fit_temperature(some, theirs)) is None:
            continue
        losses = torch.stack([torch.nn.functional.nll_loss(at_temperature(some, float(t)), theirs) for t in grid])
        for temperature, into in ((found, lost), (float(grid[losses.argmin()]), plain)):
            into.append(float(torch.nn.functional.nll_loss(at_temperature(sure, temperature), labels)))
    least = float(torch.nn.functional.nll_loss(sure, labels))
    assert np.mean(lost) - least < 0.6 * (np.mean(plain) - least)


def test_the_floor_is_the_error_of_a_calibrated_head() -> None:
    """Of 819 images, 200 sets of labels drawn from the probabilities; no doubt, no error."""
    log_probs, _ = drawn(0, 10, 819)
    generator = torch.Generator().manual_seed(5)
    errors = [error_of(log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator)[:, 0]) for _ in range(200)]
    assert floor_of(log_probs) == pytest.approx(np.mean(errors), rel=0.1)
    assert floor_of(log_probs) == floor_of(log_probs)
    assert floor_of(drawn(0, 10, 80)[0]) > 2 * floor_of(log_probs)
    assert floor_of(torch.tensor([[0.0, -math.inf]] * 9)) == 0


def index_of(valid: int, twins: int = 0) -> SetIndex:
    """A set of that many validation images; the first `twins` of them are training images too."""
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(valid)]
    images = [ImageRecord(f"valid/{n}.jpg", digest, "a", "valid", 1, 0) for n, digest in enumerate(digests)]
    images += [ImageRecord(f"train/{n}.jpg", digest, "a", "train", 1, 0) for n, digest in enumerate(digests[:twins])]
    return SetIndex("data", "/data", "/data", 0, ("a",), tuple(images))


def splits_of(index: SetIndex) -> tuple[tuple[ImageRecord, ...], tuple[ImageRecord, ...]]:
    """The images that a head is scored on, and those that it was trained on."""
    return index.split("valid"), index.split("train")


def test_training_images_in_validation_do_not_make_the_head_surer() -> None:
    """A head is right and sure on what it was trained on: those images are left out of the fit."""
    log_probs, labels = drawn(0, 10, 500)
    sure = at_temperature(log_probs, 0.4)
    twins = 200
    sure[:twins] = torch.log_softmax(4 * torch.eye(10)[labels[:twins]], 1)
    found = calibrate(sure, labels, *splits_of(index_of(500, twins)))
    assert found.temperature == fit_temperature(sure[twins:], labels[twins:])
    assert found.temperature == pytest.approx(2.5, rel=0.15)
    all_of_them = calibrate(sure, labels, *splits_of(index_of(500, 500)))
    assert all_of_them.temperature is None
    assert all_of_them.scaled_ece == pytest.approx(all_of_them.ece)


def test_a_temperature_is_not_cross_fitted_within_a_group() -> None:
    """All images in one group: no other image is left to fit on, and the errors stay as they are."""
    log_probs, labels = drawn(0, 10, 200)
    index = index_of(200)
    grouped = replace(index, images=tuple(replace(image, group="one") for image in index.images))
    sure = at_temperature(log_probs, 0.4)
    assert calibrate(sure, labels, *splits_of(index)).scaled_ece < calibrate(sure, labels, *splits_of(index)).ece
    assert calibrate(sure, labels, *splits_of(grouped)).scaled_ece == pytest.approx(
        calibrate(sure, labels, *splits_of(grouped)).ece
    )


def test_the_error_after_a_temperature_is_of_images_it_was_not_fitted_on() -> None:
    """Each fold by a temperature of the others: labels of a fold do not move its own probabilities."""
    log_probs, labels = drawn(2, 10, 60)
    index = index_of(60)
    fold = torch.tensor([int(image.digest[:8], 16) % FOLDS for image in index.images])
    expected = torch.cat([
        at_temperature(log_probs[fold == n], fit_temperature(log_probs[fold != n], labels[fold != n]) or 1.0)
        for n in range(FOLDS)
    ])  # fmt: skip
    truth = torch.cat([labels[fold == n] for n in range(FOLDS)])
    found = calibrate(log_probs, labels, *splits_of(index))
    assert found.scaled_ece == pytest.approx(error_of(expected, truth), abs=1e-6)
    assert found.ece == pytest.approx(error_of(log_probs, labels), abs=1e-6)
    assert found == calibrate(log_probs, labels, *splits_of(index))


def test_a_cooled_head_gives_what_the_temperature_would() -> None:
    """Folded into the last layer, and no other."""
    head = Head.new(6, 5, 4).eval()
    x = torch.randn(9, 6)
    with torch.inference_mode():
        assert torch.allclose(head.temperature_scaled(1.7)(x), at_temperature(head(x), 1.7), atol=1e-6)
    assert torch.equal(head.temperature_scaled(1.7).state_dict()["0.weight"], head.state_dict()["0.weight"])
