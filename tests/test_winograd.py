"""Winograd convolutions against direct ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.backbones import winograd
from pipeline.backbones.winograd import WinogradConv2d, accelerate


def pair(channels: int, out: int, seed: int) -> tuple[nn.Conv2d, WinogradConv2d]:
    """A direct convolution in float64 and its Winograd form."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, out, 3, padding=1)
    fast = WinogradConv2d(conv)
    return conv.double(), fast


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 14), st.integers(1, 14)),
    out=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_it_equals_the_direct_convolution(shape: tuple[int, int, int, int], out: int, seed: int) -> None:
    """For any batch, channels, height and width, within 1e-4 of float64."""
    conv, fast = pair(shape[1], out, seed)
    x = torch.randn(shape)
    with torch.inference_mode():
        found, expected = fast(x), conv(x.double())
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4


def test_the_result_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image alone, in a batch, and in a batch cut into chunks gives the same numbers to rounding."""
    _, fast = pair(8, 8, 0)
    x = torch.randn(5, 8, 13, 10)
    with torch.inference_mode():
        whole = fast(x)
        alone = torch.cat([fast(image[None]) for image in x])
        monkeypatch.setattr(winograd, "_CHUNK", 1)
        chunked = fast(x)
    assert torch.allclose(whole, alone, atol=1e-5, rtol=0)
    assert torch.allclose(whole, chunked, atol=1e-5, rtol=0)


def test_channels_last_input_gives_the_same() -> None:
    """The memory format is no part of the result."""
    _, fast = pair(8, 8, 1)
    x = torch.randn(2, 8, 9, 9)
    with torch.inference_mode():
        assert torch.allclose(fast(x), fast(x.to(memory_format=torch.channels_last)), atol=1e-6)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_other_convolutions_are_refused(conv: nn.Conv2d) -> None:
    """Strided, unpadded, larger, grouped, dilated, unbiased or reflecting ones."""
    with pytest.raises(ValueError, match="expected a biased 3 x 3"):
        WinogradConv2d(conv)


def test_only_wide_convolutions_are_replaced() -> None:
    """From 64 to 128 channels up, at any depth of the network."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU()),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
    ).requires_grad_(False)
    assert accelerate(layers) == 1
    assert isinstance(layers[0], nn.Conv2d)
    assert isinstance(layers.get_submodule("1.0"), WinogradConv2d)
    assert isinstance(layers[2], nn.Conv2d)
