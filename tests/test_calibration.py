"""Temperature scaling: fitted, folded, and left alone where images do not ask for one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.heads.head import HeadConfig, build_head
from pipeline.model.calibration import at_temperature, cooled, error_of, fit_temperature


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


def test_images_that_are_all_right_leave_it_open() -> None:
    """Otherwise the head would be made as sure as numbers allow."""
    log_probs = torch.log_softmax(torch.eye(5), 1)
    assert fit_temperature(log_probs, torch.arange(5)) is None


def test_a_cooled_head_gives_what_the_temperature_would() -> None:
    """Folded into the last layer, and no other."""
    head = build_head(HeadConfig(6, 5, 4)).eval()
    x = torch.randn(9, 6)
    with torch.inference_mode():
        assert torch.allclose(cooled(head, 1.7)(x), at_temperature(head(x), 1.7), atol=1e-6)
    assert torch.equal(cooled(head, 1.7).state_dict()["0.weight"], head.state_dict()["0.weight"])
