"""Layers of a frozen network put together: convolution with batch norm and activation, and pooling by maxima.

With ReLU on a processor the numbers are those of the layers they stand for, bit for bit; with other activations, and on
CUDA, they are rounded less often.
What a compiler would do beyond that is nothing where the arithmetic is all in the convolutions, and it would take
seconds at every start.
"""

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as fold_batch_norm
from torch.nn import functional as F

from pipeline.console import first_line

logger = logging.getLogger("headgraft.backbones")

Activation = tuple[str, list[float], str]  # as oneDNN names it, with its numbers
PLAIN: Activation = ("none", [], "")
RELU: Activation = ("relu", [], "")
_ACTIVATIONS: dict[Any, Activation] = {
    nn.ReLU: RELU,
    F.relu: RELU,
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardswish: ("hardswish", [], ""),
    nn.SiLU: ("swish", [], ""),
}


class FusedConv2d(nn.Module):
    """A frozen `nn.Conv2d` and its activation: (B, C, H, W) → (B, O, H', W'), with weights as oneDNN wants them.

    The operator is the one that torch's own compiler makes of the two; it is private to torch.
    """

    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, activation: Activation = PLAIN) -> None:
        super().__init__()
        self.places = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.activation = activation
        self.register_buffer("bias", conv.bias)
        self._packed: tuple[torch.Size | None, Tensor] = (None, conv.weight.detach())  # for maps of this size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H', W'), channels last."""
        packed_for, weight = self._packed  # at once: other threads may compute too
        if packed_for != x.shape[2:]:  # packed for maps of another size, it can take twice the time
            dense = weight if packed_for is None else weight.to_dense()
            weight = torch.ops.mkldnn._reorder_convolution_weight(dense, *self.places, list(x.shape))
            self._packed = x.shape[2:], weight
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.places, *self.activation)
        return result


class FusedLinear(nn.Module):
    """A frozen `nn.Linear` and its activation on a processor: (..., D) → (..., O), by oneDNN, with packed weights.

    torch's own is MKL's in float32, which takes up to a fifth longer on some processors.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, activation: Activation = PLAIN) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()))
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., O)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)
        return result


class CudnnConv2d(nn.Module):
    """The same on CUDA, by cuDNN: the sum is rounded once, after bias and ReLU.

    Tensor cores want channels by the eight: fewer, as of pixels, are filled up with zeros, at half of the time.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.places = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.lacking = max(0, 8 - conv.in_channels) if conv.groups == 1 else 0
        self.register_buffer("weight", self._filled(conv.weight.detach()))
        self.register_buffer("bias", conv.bias.detach())

    def _filled(self, x: Tensor) -> Tensor:
        filled: Tensor = nn.functional.pad(x, (0, 0, 0, 0, 0, self.lacking))
        return filled.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H', W'), channels last."""
        x = self._filled(x) if self.lacking else x
        result: Tensor = torch.ops.aten.cudnn_convolution_relu(x, self.weight, self.bias, *self.places)
        return result


class MaxPool(nn.Module):
    """An `nn.MaxPool2d` without padding, as maxima of shifted maps: (B, C, H, W) → (B, C, H', W').

    torch's own visits each window by itself; of channels-last maps whole rows are compared at once.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H', W')."""
        return self._along(self._along(x, 2), 3)

    def _along(self, x: Tensor, dim: int) -> Tensor:
        last = x.shape[dim] - self.kernel
        shifted = [x.narrow(dim, place, last + 1) for place in range(self.kernel)]
        steps = (slice(None),) * dim + (slice(None, None, self.stride),)
        result = torch.maximum(shifted[0][steps], shifted[1][steps])
        for more in shifted[2:]:
            torch.maximum(result, more[steps], out=result)
        return result


def traced(network: nn.Module) -> nn.Module:
    """The network as a graph of its layers, batch norm folded into the convolutions before it, in float64.

    As it is where torch cannot trace it, as where what it does depends on its input.
    """
    try:
        if any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules()):
            return fold_batch_norm(network.double(), inplace=True).float()
        return fx.symbolic_trace(network)
    except Exception as error:  # a network can raise anything when it is handed a stand-in for numbers
        logger.debug(f"layers are not put together, since they cannot be traced: {first_line(error)}")
        return network.float()


def fuse(network: nn.Module) -> bool:
    """Put together what can be in the graph of a network, in place; whether anything was."""
    if not isinstance(network, fx.GraphModule):
        return False
    layers, fused = dict(network.named_modules()), False
    called = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        layer = layers.get(str(node.target)) if node.op == "call_module" and called[node.target] == 1 else None
        after = next(iter(node.users)) if len(node.users) == 1 else None
        activation = _activation(after, layers)
        put: nn.Module
        if (type(layer) is nn.Conv2d and _fusible(layer)) or (type(layer) is nn.Linear and _pays(layer)):
            if layer.weight.is_cuda and activation != RELU:
                continue
            if isinstance(layer, nn.Linear):
                put = FusedLinear(layer, activation)
            else:
                put = CudnnConv2d(layer) if layer.weight.is_cuda else FusedConv2d(layer, activation)
            if after is not None and activation != PLAIN:
                after.replace_all_uses_with(node)
                network.graph.erase_node(after)
        elif isinstance(layer, nn.MaxPool2d):
            put = _by_maxima(layer)
        else:
            continue
        network.set_submodule(str(node.target), put)
        fused |= put is not layer
    network.recompile()
    return fused


def _activation(node: fx.Node | None, layers: dict[str, nn.Module]) -> Activation:
    """What the node after a convolution is, if that can be done with it; else `PLAIN`."""
    if node is None:
        return PLAIN
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, nn.GELU):
        return ("gelu", [], layer.approximate)
    kind = type(layer) if node.op == "call_module" else node.target
    return _ACTIVATIONS.get(kind, PLAIN)


def _fusible(conv: nn.Conv2d) -> bool:
    if conv.weight.is_cuda:
        known = torch.version.hip is None and torch.backends.cudnn.is_available()  # ROCm lacks it
        return known and conv.bias is not None and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return known and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _pays(linear: nn.Linear) -> bool:
    """Whether oneDNN computes it, and faster than what packing costs: small ones are left, as those of squeezing."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and not linear.weight.is_cuda and min(linear.weight.shape) >= 64


def _by_maxima(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.MaxPool2d) or not isinstance(layer.kernel_size, int) or layer.kernel_size < 2:
        return layer
    plain = (layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices) == (0, 1, False, False)
    return MaxPool(layer.kernel_size, int(layer.stride)) if plain and isinstance(layer.stride, int) else layer
