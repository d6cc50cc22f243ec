"""A network without its classifier, as far as one of its layers: building it, and putting tensors into it."""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor, nn

from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.layers import empty_input
from pipeline.backbones.spec import BackboneSpec, Undrawn
from pipeline.console import first_line
from pipeline.errors import ConfigError, PipelineError, WeightsError

_COUNTS = "num_batches_tracked"  # of batch norm in training: no number of a row depends on it
_TRAINING = ("aux1", "aux2", "AuxLogits")  # branches of GoogLeNet and Inception that only train
_MISFIT = (RuntimeError, AssertionError, ValueError, TypeError)  # what networks raise on a size that they do not take
_NEAR = 32  # pixels: how far from a size that does not fit one that does is looked for


def build_network(name: str, size: int, empty: bool = False) -> nn.Module:
    """The network without its classifier, with random weights, for an input of `size` pixels.

    `empty` means to be loaded with `load`: no weights are drawn, which takes longer than all else.
    """
    spec = backbone_spec(name)
    network = _empty(spec, size) if empty else spec.build(size)
    if spec.classifier:
        for module in spec.classifier:
            network.set_submodule(module, nn.Identity())
    else:
        last = _last(network)
        setattr(network, last, _before_first_layer(name, getattr(network, last)))
    return network.eval().requires_grad_(False)


def _last(network: nn.Module) -> str:
    return [child for child, _ in network.named_children()][-1]


def _empty(spec: BackboneSpec, size: int) -> nn.Module:
    """On the meta device; in memory where it is not built there, or holds numbers that are no weights."""
    with suppress(NotImplementedError):  # RegNets compute with tensors while they are built
        with torch.device("meta"):
            network = spec.build(size)
        stored = network.state_dict()
        weights = {key for key, value in stored.items() if value.is_floating_point() or key.endswith(_COUNTS)}
        if weights == stored.keys() | {key for key, _ in network.named_buffers()}:
            return network
    with Undrawn():
        return spec.build(size)


def _before_first_layer(name: str, classifier: nn.Module) -> nn.Module:
    """What a classifier does before its first learnt layer, such as a norm; dropout is left out."""
    kept: list[nn.Module] = []
    for layer in classifier if isinstance(classifier, nn.Sequential) else [classifier]:
        if isinstance(layer, nn.Linear):
            return nn.Sequential(*kept)
        if isinstance(layer, nn.Conv2d):
            return nn.Sequential(*kept, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        kept += [] if isinstance(layer, nn.Dropout) else [layer]
    raise PipelineError(f"backbone {name} ends in {type(classifier).__name__}, expected a classifier of linear layers")


def wanted_tensors(network: nn.Module) -> dict[str, torch.Size]:
    """Shapes of the parameters and buffers that decide the numbers of a row, by name."""
    return {key: value.shape for key, value in network.state_dict().items() if value.is_floating_point()}


def network_part(name: str, tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Of a whole network's tensors those that `build_network` has, float32, for an input of `size` pixels.

    With any that nobody would expect there, which `state_dict_mismatch` finds. WeightsError where they do not fit.
    """
    spec = backbone_spec(name)
    network = build_network(name, size, empty=True)
    wanted = wanted_tensors(network)
    left_out = tuple(f"{module}." for module in spec.classifier or (_last(network), *_TRAINING))
    try:
        resized = spec.resized(tensors, size)
    except (KeyError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the weights do not fit {name}: {first_line(error)}") from error
    part = {
        key: value
        for key, value in resized.items()
        if value.is_floating_point() and (key in wanted or not key.startswith(left_out)) and not key.endswith(_COUNTS)
    }
    if broken := [key for key, value in part.items() if not value.isfinite().all()]:
        raise WeightsError(f"the weights hold numbers that are not finite, the first in {broken[0]}")
    return {key: value.float().contiguous() for key, value in part.items()}


def load(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these for its parameters and buffers: all that `wanted_tensors` has."""
    state = network.state_dict()  # with what layers of another version than the tensors go by
    state.update({key: torch.zeros((), dtype=torch.long) for key in state if key.endswith(_COUNTS)})
    for key in [key for key, value in state.items() if value.is_floating_point()]:
        del state[key]
    state.update(tensors)
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False)


def build_trunk(
    name: str, size: int, layer: str | None = None, tensors: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Images (B, 3, size, size) → rows (B, D) of `layer`, or of the default one; without tensors, of random weights."""
    network = build_network(name, size, empty=tensors is not None)
    if tensors is not None:
        load(network, tensors)
    return nn.Sequential(_trunk(name, layer, size, network)[1], nn.Flatten())


def _trunk(name: str, layer: str | None, size: int, network: nn.Module) -> tuple[str, nn.Module]:
    """The layer's name, and the network as far as that; shapes are found where nothing is computed."""
    like = network if next(network.parameters()).is_meta else build_network(name, size, empty=True).to("meta")
    layers = backbone_spec(name).layers(like, size)
    wanted = next(iter(layers)) if layer is None else layer
    if wanted not in layers:
        raise ConfigError(f"--layer is {wanted!r}, expected one that {name} has: {', '.join(layers)}")
    return wanted, layers[wanted](network, size).eval().requires_grad_(False)


def layer_of(name: str, size: int, layer: str | None = None) -> tuple[str, tuple[int, ...]]:
    """The layer whose output is a row, the default one unless it is named, and its shape for `size` pixels.

    avgpool, (512, 7, 7) for VGG16; pooled, (2048,) for ResNet-50; cls+mean, (768, 2) for ViT-B/16.
    ConfigError where the network has no such layer, or takes no such size.
    """
    spec = backbone_spec(name)
    try:
        return _probed(spec, name, size, layer)
    except _MISFIT as error:
        own = spec.preprocessing.input_size
        if size == own:
            raise PipelineError(f"{name} cannot be computed as far as {layer}: {first_line(error)}") from error
        sizes = [own]
        for direction in (-1, 1):
            near = (at for at in range(size + direction, size + direction * _NEAR, direction) if _fits(name, at, layer))
            sizes += [*islice(near, 1)]
        known = ", ".join(map(str, sorted(set(sizes) - {size})))
        raise ConfigError(f"--image-size is {size}, which {name} does not take: choose {known}") from error


def layer_with_cells(name: str, size: int) -> str | None:
    """A layer whose rows have a map of several cells, one such as map; None where it has none."""
    layers = backbone_spec(name).layers(build_network(name, size, empty=True).to("meta"), size)
    return next((layer for layer in ("map", "tokens") if layer in layers), None)


def _fits(name: str, size: int, layer: str | None) -> bool:
    try:
        _probed(backbone_spec(name), name, size, layer)
    except _MISFIT:
        return False
    return True


@lru_cache
def _probed(spec: BackboneSpec, name: str, size: int, layer: str | None) -> tuple[str, tuple[int, ...]]:
    if size < 1 or (spec.fixed_size and size != spec.preprocessing.input_size):
        raise ValueError(f"{size} pixels")
    network = build_network(name, size, empty=True).to("meta")  # where nothing is computed
    found, trunk = _trunk(name, layer, size, network)
    with torch.inference_mode():
        return found, tuple(trunk(empty_input(network, size)).shape[1:])


def state_dict_mismatch(name: str, tensors: Mapping[str, Tensor], size: int) -> str:
    """The first tensor that backbone `name` lacks, or has in another shape, in words; "" where all fit."""
    wanted = wanted_tensors(build_network(name, size, empty=True))
    found = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if not wrong:
        return ""
    there, expected = found.get(wrong[0]), wanted.get(wrong[0])
    is_there = "missing" if there is None else list(there)
    return f"{wrong[0]} is {is_there}, expected {'no such tensor' if expected is None else list(expected)}"
