"""Layers of a frozen network put together: convolution with its ReLU, and pooling by maxima.

On a processor the numbers are those of the layers they stand for, bit for bit; on CUDA they are rounded less often.
What a compiler would do beyond that is nothing where the arithmetic is all in the convolutions, and it would take
seconds at every start.
"""

import torch
from torch import Tensor, nn


class FusedConv2d(nn.Module):
    """A frozen `nn.Conv2d` and the ReLU after it: (B, C, H, W) → (B, O, H', W'), with its weights as oneDNN wants them.

    The operator is the one that torch's own compiler makes of the two; it is private to torch.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.places = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.register_buffer("weight", torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.places))
        self.register_buffer("bias", conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, O, H', W'), channels last."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.places, "relu", [], ""
        )
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


def fuse(network: nn.Module) -> bool:
    """Put together what can be, inside the Sequentials of `network`, in place; whether anything was."""
    fused = False
    for name, layer in network.named_children():
        if isinstance(layer, nn.Sequential):
            layers = _fused(list(layer))
            fused |= len(layers) < len(layer)
            setattr(network, name, nn.Sequential(*layers))
    return fused


def _fused(layers: list[nn.Module]) -> list[nn.Module]:
    result: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.ReLU) and result and isinstance(result[-1], nn.Conv2d) and _takes_relu(result[-1]):
            conv = result[-1]
            result[-1] = (CudnnConv2d if conv.weight.is_cuda else FusedConv2d)(conv)
        else:
            result.append(_by_maxima(layer))
    return result


def _takes_relu(conv: nn.Conv2d) -> bool:
    if conv.weight.is_cuda:
        known = torch.version.hip is None and torch.backends.cudnn.is_available()  # ROCm lacks it
        return known and conv.bias is not None and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return known and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _by_maxima(layer: nn.Module) -> nn.Module:
    if not isinstance(layer, nn.MaxPool2d) or not isinstance(layer.kernel_size, int) or layer.kernel_size < 2:
        return layer
    plain = (layer.padding, layer.dilation, layer.ceil_mode, layer.return_indices) == (0, 1, False, False)
    return MaxPool(layer.kernel_size, int(layer.stride)) if plain and isinstance(layer.stride, int) else layer
