"""Layers whose output can be a row: what the classifier would see, the last map, or tokens.

A layer takes a network without its classifier and the size of its input, and gives a module (B, 3, S, S) → (B, C),
(B, C, H, W) for a map, or (B, C, P) for P vectors, such as tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models import VisionTransformer

POOLED, MAP = "pooled", "map"
# Of a class token and patches: the class token of the last block, or of the last four, last first; the patches' mean.
FOUR_BLOCKS = "cls4+mean"
WITH_CLASS_TOKEN = ("cls+mean", "cls", "mean", FOUR_BLOCKS, "tokens")
Layer = Callable[[nn.Module, int], nn.Module]
Blocks = Callable[[nn.Module, Tensor, int], Sequence[Tensor]]  # (B, N, C) after each of the last so many blocks


def as_is(network: nn.Module, size: int) -> nn.Module:
    """What the first learnt layer of the classifier would see."""
    return network


def own_layers(network: nn.Module, size: int) -> dict[str, Layer]:
    """Layers of networks like this one, which may be without numbers; its call gives what the classifier would see.

    VGG's and AlexNet's would see a whole map, which goes by the name of its module.
    """
    if isinstance(network, VisionTransformer):
        return {name: token_layer(_blocks_of_vit, 1, name) for name in WITH_CLASS_TOKEN}
    whole = _whole_map(network, size)
    if whole:
        name, shape = whole
        return {name: lambda full, _: nn.Sequential(full, nn.Unflatten(1, shape))}
    return {POOLED: as_is, MAP: lambda full, _: last_map(full, network, size)}


def empty_input(network: nn.Module, size: int) -> Tensor:
    """(1, 3, size, size), where the network is: without numbers if it is without."""
    return torch.zeros(1, 3, size, size, device=next(network.parameters()).device)


def _whole_map(network: nn.Module, size: int) -> tuple[str, tuple[int, ...]] | None:
    """Name and shape of the last map, if what the network gives is all of it."""
    maps: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and _is_map(output.shape):
            maps.append((name, tuple(output.shape[1:])))

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in network.named_modules()
    ]
    features = network(empty_input(network, size)).shape[1]
    for hook in hooks:
        hook.remove()
    whole = [found for found in maps[-1:] if torch.Size(found[1]).numel() == features]
    return whole[0] if whole else None


def _is_map(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[2] == shape[3] > 1  # a square, as its input; channels are not last


def last_map(network: nn.Module, like: nn.Module, size: int) -> nn.Module:
    """The network as far as its last map (B, C, H, W), as a graph; `like` is the same without numbers."""
    shapes = fx.symbolic_trace(like)
    ShapeProp(shapes).propagate(empty_input(like, size))
    maps = [node.name for node in shapes.graph.nodes if node.op != "output" and _is_map(_shape(node))]
    if not maps:
        raise ValueError("no map of more than one position")
    graph = fx.symbolic_trace(network)
    graph.graph.output_node().args = (next(node for node in graph.graph.nodes if node.name == maps[-1]),)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _shape(node: fx.Node) -> Sequence[int]:
    return getattr(node.meta.get("tensor_meta"), "shape", ())


class _Tokens(nn.Module):
    """Rows of tokens: (B, 3, S, S) → (B, C) or (B, C, P)."""

    def __init__(self, network: nn.Module, blocks: Blocks, prefix: int, layer: str) -> None:
        super().__init__()
        self.network, self.blocks, self.prefix, self.layer = network, blocks, prefix, layer

    def forward(self, x: Tensor) -> Tensor:
        last, *earlier = reversed(self.blocks(self.network, x, 4 if self.layer == FOUR_BLOCKS else 1))
        patches = last[:, self.prefix :]
        if self.layer == "tokens":  # of the tokens before the patches the class token alone: others are registers
            return torch.cat([last[:, : min(1, self.prefix)], patches], 1).transpose(1, 2)
        if self.layer in ("cls", "mean"):
            return last[:, 0] if self.layer == "cls" else patches.mean(1)
        return torch.stack([*(block[:, 0] for block in (last, *earlier)), patches.mean(1)], 2)


def token_layer(blocks: Blocks, prefix: int, layer: str) -> Layer:
    """The layer of that name over tokens, `prefix` of which come before the patches, the class token first."""
    return lambda network, _: _Tokens(network, blocks, prefix, layer)


def _blocks_of_vit(network: nn.Module, x: Tensor, count: int) -> list[Tensor]:
    """Of torchvision's VisionTransformer, after its last norm."""
    vit: Any = network
    tokens = vit._process_input(x)
    tokens = torch.cat([vit.class_token.expand(tokens.shape[0], -1, -1), tokens], 1) + vit.encoder.pos_embedding
    found: list[Tensor] = []
    for block in vit.encoder.layers:
        tokens = block(tokens)
        found.append(tokens)
    return [vit.encoder.ln(tokens) for tokens in found[-count:]]
