"""Networks of timm, as `timm/<name>[.<tag>]`: built, loaded and described by it. The extra [timm] installs it."""

import difflib
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from cache.errors import install_hint
from pipeline.backbones.layers import FOUR_BLOCKS, MAP, POOLED, WITH_CLASS_TOKEN, Layer, empty_input, token_layer
from pipeline.backbones.spec import BackboneSpec, Tensors, Undrawn
from pipeline.backbones.timm_layers import as_torch_layers
from pipeline.backbones.weights import NamedWeights
from pipeline.errors import ConfigError, WeightsError
from pipeline.inputs.preprocessing import BICUBIC, BILINEAR, SQUASHED, Preprocessing

PREFIX = "timm/"
Build = Callable[..., nn.Module]
_INTERPOLATIONS = {"bicubic": BICUBIC, "bilinear": BILINEAR}


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        raise ConfigError(f"a backbone timm/… needs timm: {install_hint('timm')}") from error


def names() -> list[str]:
    """Of all networks with weights, with their tags."""
    return [PREFIX + name for name in _timm().list_pretrained()]


def is_network(name: str) -> bool:
    """Whether timm is here, and has a network of this name."""
    return find_spec("timm") is not None and bool(_timm().is_model(name))


@lru_cache
def timm_spec(name: str, weights: str | None) -> BackboneSpec:
    """Of `timm/<name>[.<tag>]`; `weights` is another tag. ConfigError where timm or this program lacks the like."""
    timm = _timm()
    asked = name.removeprefix(PREFIX)
    facts = _facts(timm, f"{asked.split('.')[0]}.{weights}") if weights else None
    facts = facts or _facts(timm, asked)
    if facts is None:
        raise ConfigError(f"{name} is no network of timm {timm.__version__} with such weights{_hint(timm, asked)}")
    full = PREFIX + facts.architecture + (f".{facts.tag}" if facts.tag else "")

    def arguments(size: int) -> dict[str, Any]:
        return {"img_size": size} if facts.fixed_input_size and size != facts.input_size[1] else {}

    def build(size: int, tensors: Tensors | None = None) -> nn.Module:
        given = {"state_dict": tensors, "custom_load": False, "source": None, "label_offset": 0}
        try:
            network: nn.Module = timm.create_model(
                full.removeprefix(PREFIX),
                pretrained=tensors is not None,
                pretrained_cfg_overlay=given if tensors else None,
                **arguments(size),
            )
        except Exception as error:  # filters of weights raise KeyError, AttributeError and others
            if tensors is None:
                raise
            lines = [line.strip() for line in str(error).splitlines()]  # of torch's, the first is a heading
            raise WeightsError(f"the weights do not fit {full}: {' '.join(lines[:2])}") from error
        return network

    classifier = facts.classifier or ()
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return BackboneSpec(
        build,
        NamedWeights(full, facts.tag or "NONE", None),
        _preprocessing(full, facts),
        layers=_layers,
        positions=True,  # or padding that depends on the size
        classifier=classifier,
        resized=lambda tensors, size: _loaded(full, build, classifier, tensors, size),
        as_torch_layers=as_torch_layers,
        licence=None if facts.license == "unknown" else facts.license,
        built_by=("timm", timm.__version__),
        arguments=arguments,
    )


def _hint(timm: Any, asked: str) -> str:
    """Tags of a network that is there, or the most similar name, to follow a sentence."""
    if tags := timm.list_pretrained(f"{asked.split('.')[0]}.*"):
        return f"; it has {', '.join(tag.partition('.')[2] for tag in tags)}"
    near = difflib.get_close_matches(asked, [*timm.list_models(), *timm.list_pretrained()], 1, 0.5)
    return f"; did you mean {PREFIX}{near[0]}?" if near else ""


def _facts(timm: Any, name: str) -> Any:
    """timm's description of `<name>[.<tag>]`; None where it has no such network, or no such weights of it."""
    try:
        return timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:
        return None


def _preprocessing(name: str, facts: Any) -> Preprocessing:
    """What timm's own transform does, as numbers."""
    channels, height, width = facts.input_size
    if channels != 3 or height != width or facts.crop_mode not in ("center", "squash"):
        raise ConfigError(
            f"{name} takes images of {channels} x {height} x {width}, cropped by {facts.crop_mode}: expected a square "
            "of three channels, cropped by center or squash"
        )
    interpolation = _INTERPOLATIONS[facts.interpolation] + (SQUASHED if facts.crop_mode == "squash" else "")
    return Preprocessing(height, math.floor(height / facts.crop_pct), facts.mean, facts.std, interpolation)


def _loaded(name: str, build: Build, classifier: tuple[str, ...], tensors: Tensors, size: int) -> Tensors:
    """The tensors as timm puts them into network `name` of this size: renamed, positions resized.

    WeightsError where one is left over, or where a number of the network is none of theirs.
    """
    with Undrawn():
        own = build(size).state_dict()
    for key, value in tensors.items():
        if key in own and value.is_floating_point() != own[key].is_floating_point():
            raise WeightsError(f"the weights do not fit {name}: {key} is of {value.dtype}")
    given = {key: value for key, value in tensors.items() if not _in(classifier, key)}
    given |= {key: torch.zeros_like(value) for key, value in own.items() if _in(classifier, key)}
    states = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                state = build(size, given).state_dict()
            except WeightsError as error:  # a shape may differ, as of positions: only now it is known to matter
                wrong = sorted(one for one in given.keys() & own.keys() if given[one].shape != own[one].shape)
                if not wrong:
                    raise
                shapes = f"{wrong[0]} is {list(given[wrong[0]].shape)}, expected {list(own[wrong[0]].shape)}"
                raise WeightsError(f"the weights do not fit {name}: {shapes}") from error
        states.append({key: value for key, value in state.items() if not _in(classifier, key)})
    for key, value in states[0].items():
        if not torch.equal(value, states[1][key]):
            raise WeightsError(f"the weights do not fit {name}: they have no {key}")
    return states[0]


def _in(classifier: tuple[str, ...], key: str) -> bool:
    return key.rpartition(".")[0] in classifier


class _Pooled(nn.Module):
    """What the classifier would see, by timm's own word for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return found


class _Map(nn.Module):
    """The last map (B, C, H, W), of networks that have channels last too."""

    def __init__(self, network: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.network: Any = network
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network.forward_features(x)
        return found.permute(0, 3, 1, 2) if self.channels_last else found


def _blocks(network: nn.Module, x: Tensor, count: int) -> list[Tensor]:
    """(B, N, C) after each of the last blocks and the last norm, tokens before the patches first."""
    timm_network: Any = network
    if count == 1:
        return [timm_network.forward_features(x)]
    found: list[tuple[Tensor, Tensor]] = timm_network.forward_intermediates(
        x, indices=count, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    return [torch.cat([prefix, patches], 1) for patches, prefix in found]


def _layers(network: nn.Module, size: int) -> Mapping[str, Layer]:
    """By the shape that the network's features have; the default is what its classifier was trained on, or the like."""
    timm_network: Any = network
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch and any(size % side for side in patch):
        raise ValueError(f"{size} pixels, patches of {patch}")  # timm would leave out the border
    features = timm_network.forward_features(empty_input(network, size))
    pooled: dict[str, Layer] = {POOLED: lambda network, _: _Pooled(network)}
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        return pooled
    if features.ndim == 4:
        last = features.shape[2] != features.shape[3]  # of a square map
        return {**pooled, MAP: lambda network, _: _Map(network, last)}
    prefix = getattr(network, "num_prefix_tokens", None)
    if prefix is None or isqrt(features.shape[1] - prefix) ** 2 != features.shape[1] - prefix:
        return pooled  # tokens of which timm does not say where the patches are, or which are no grid
    each = "return_prefix_tokens" in signature(timm_network.forward_intermediates).parameters  # of any block
    named = [name for name in WITH_CLASS_TOKEN if (prefix or "cls" not in name) and (each or name != FOUR_BLOCKS)]
    tokens = {name: token_layer(_blocks, prefix, name) for name in named}
    # Only tokens that are seen one by one in training are normed one by one.
    return {**tokens, **pooled} if getattr(network, "global_pool", "") == "token" else {**pooled, **tokens}
