"""Fused layers: the numbers of the layers they stand for, bit for bit."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.backbones.fused import RELU, FusedConv2d, MaxPool, fuse, traced
from pipeline.machine.device import onednn_takes_bfloat16


def on_channels_last(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    torch.manual_seed(seed)
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)


@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(5, 20), st.integers(5, 20)),
    kernel=st.integers(2, 5),
    stride=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pooling_by_maxima_is_pooling(
    size: tuple[int, int, int, int], kernel: int, stride: int, dtype: torch.dtype
) -> None:
    """For any map, window and stride; what is not a number stays so."""
    x = on_channels_last(size, 0, dtype)
    x[0, 0, 2, 2] = float("nan")
    expected = nn.MaxPool2d(kernel, stride)(x)
    assert torch.equal(MaxPool(kernel, stride)(x).nan_to_num(99), expected.nan_to_num(99))


@given(
    channels=st.integers(1, 20),
    out=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    bias=st.booleans(),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_convolution_is_the_two_layers(
    channels: int, out: int, kernel: int, stride: int, dtype: torch.dtype, bias: bool
) -> None:
    """Whatever the sizes, the batch and the precision, to the rounding of a sum in another order."""
    if dtype == torch.bfloat16 and not onednn_takes_bfloat16():
        pytest.skip("oneDNN takes no bfloat16 on this processor")
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=bias).to(dtype).requires_grad_(False)
    fused = FusedConv2d(conv, RELU)
    for batch in (1, 4):
        x = on_channels_last((batch, channels, 11, 13), batch, dtype)
        with torch.inference_mode():
            torch.testing.assert_close(fused(x), conv(x).relu())


def test_what_is_fused_and_what_is_left() -> None:
    """Convolution and activation become one, plain pools are maxima; the rest stays, at any place of the network."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.BatchNorm2d(4),
    )
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(4)
    layers.eval().requires_grad_(False)
    before = copy.deepcopy(layers)
    network = traced(layers)
    assert fuse(network)
    kept = [FusedConv2d, MaxPool, nn.Conv2d, nn.ReLU, nn.MaxPool2d, FusedConv2d, nn.BatchNorm2d]
    assert kinds_of(network) == kept
    x = on_channels_last((2, 3, 20, 20), 0, torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), before(x))
    assert not fuse(traced(nn.Sequential(nn.Linear(2, 2))))


def kinds_of(network: nn.Module) -> list[type]:
    """Of the layers that are called, in their order."""
    assert isinstance(network, torch.fx.GraphModule)
    called = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    return [type(network.get_submodule(name)) for name in called]


class Shared(nn.Module):
    """One convolution called twice, of which ReLU follows once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → the same."""
        result: Tensor = self.conv(torch.relu(self.conv(x)))
        return result


class Choosing(nn.Module):
    """What it does depends on its input, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → the same."""
        result: Tensor = self.conv(x) if x.sum() > 0 else x
        return result


@pytest.mark.parametrize("network", [Shared(), Choosing()], ids=["shared", "choosing"])
def test_what_cannot_be_put_together_stays(network: nn.Module) -> None:
    """A layer that is called twice, and a network that torch cannot trace."""
    network.requires_grad_(False)
    x = on_channels_last((2, 3, 5, 5), 0, torch.float32)
    expected, found = network(x), traced(network)
    assert not fuse(found)
    assert torch.equal(found(x), expected)


def test_without_the_private_operator_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch without oneDNN computes the plain layers, with pools by maxima."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = traced(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
    fuse(network)
    assert kinds_of(network) == [nn.Conv2d, nn.ReLU, MaxPool]


def test_a_processor_whose_bfloat16_onednn_may_not_use_computes_in_float32() -> None:
    """What torch says of the processor is not enough: oneDNN would refuse the fused layers."""
    code = (
        "import torch; from pipeline.machine.device import resolve_precision\n"
        "print(resolve_precision('auto', torch.device('cpu')))"
    )
    hidden = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    result = subprocess.run([sys.executable, "-c", code], env=hidden, capture_output=True, text=True, check=True)
    assert result.stdout == "float32\n"
