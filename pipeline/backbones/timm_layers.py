"""Layers of timm as torch's own, where they compute the same: those can be traced, folded and put together."""

from math import ceil

import torch
from torch import Tensor, nn

from pipeline.backbones.layers import empty_input


def as_torch_layers(trunk: nn.Module, size: int) -> nn.Module:
    """The trunk with such layers for an input of `size` pixels, in place: norms apart from activations, fixed padding.

    Padding `SAME`, as of networks from TensorFlow, depends on the size of a map, and that on the size of the input.
    """
    seen: dict[str, torch.Size] = {}
    hooks = []
    for name, layer in trunk.named_modules():
        if type(layer).__name__ == "Conv2dSame":

            def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                seen[name] = given[0].shape

            hooks.append(layer.register_forward_pre_hook(note))
    if hooks:
        with torch.inference_mode():
            trunk(empty_input(trunk, size))
    for hook in hooks:
        hook.remove()
    for name, layer in list(trunk.named_modules()):
        if name in seen and isinstance(layer, nn.Conv2d):
            trunk.set_submodule(name, _padded(layer, seen[name]))
        elif type(layer).__name__ == "BatchNormAct2d" and isinstance(layer, nn.BatchNorm2d):
            trunk.set_submodule(name, _norm_apart(layer))
    return trunk


def _padded(conv: nn.Conv2d, shape: torch.Size) -> nn.Module:
    """The same with the padding that a map (B, C, H, W) of this shape gets."""
    sides: list[int] = []
    for length, kernel, stride, dilation in zip(shape[:1:-1], *_axes(conv), strict=True):  # the last axis first
        pad = max((ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
        sides += [pad // 2, pad - pad // 2]
    left, right, top, bottom = sides
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # a tuple of two
        conv.stride,  # type: ignore[arg-type]
        (top, left) if (left, top) == (right, bottom) else 0,
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        device="meta",
    )
    plain.eval().weight, plain.bias = conv.weight, conv.bias
    return plain if (left, top) == (right, bottom) else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), plain)


def _axes(conv: nn.Conv2d) -> list[tuple[int, ...]]:
    """Kernel, stride and dilation, the last axis first."""
    return [tuple(values[::-1]) for values in (conv.kernel_size, conv.stride, conv.dilation)]


def _norm_apart(layer: nn.BatchNorm2d) -> nn.Module:
    """Batch norm, then the activation that timm's layer has with it."""
    norm = nn.BatchNorm2d(layer.num_features, layer.eps, device="meta")
    norm.weight, norm.bias = layer.weight, layer.bias
    norm.running_mean, norm.running_var = layer.running_mean, layer.running_var
    norm.num_batches_tracked = layer.num_batches_tracked
    drop, activation = layer.get_submodule("drop"), layer.get_submodule("act")
    return nn.Sequential(norm, drop, activation).eval()
