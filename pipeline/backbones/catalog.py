"""Backbones by name: torchvision's, timm's, and those that a program has added."""

import difflib
import fnmatch
from dataclasses import replace

from pipeline.backbones import from_timm, from_torchvision
from pipeline.backbones.spec import BackboneSpec
from pipeline.errors import ConfigError
from pipeline.inputs.decode import Decoding
from pipeline.inputs.preprocessing import Preprocessing

BACKBONES: dict[str, BackboneSpec] = {}  # those that a program has added, by name


def names(pattern: str = "") -> list[str]:
    """Of all backbones, or of those that match a pattern such as `res*` or `timm/*dinov2*`.

    Those of timm where the pattern begins with `timm/`.
    """
    if pattern.startswith(from_timm.PREFIX):
        known = from_timm.names()
    else:
        known = sorted({*from_torchvision.names(), *BACKBONES})
    return fnmatch.filter(known, pattern) or [name for name in known if pattern in name]


def backbone_spec(name: str, weights: str | None = None) -> BackboneSpec:
    """The spec of backbone `name`, with its weights of that name, if they are named so; ConfigError for no backbone."""
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith(from_timm.PREFIX):
        return from_timm.timm_spec(name, weights)
    if name not in names():
        raise ConfigError(
            f"backbone is {name!r}, expected a classification network of torchvision, or timm/NAME{_hint(name)}"
        )
    return from_torchvision.torchvision_spec(name, weights)


def similar(name: str) -> str | None:
    """The backbone that a misspelt name is likely to mean: timm's of that very name, or the most similar one."""
    of_timm = name.startswith(from_timm.PREFIX)
    if not of_timm and from_timm.is_network(name):
        return from_timm.PREFIX + name
    known = names(from_timm.PREFIX) if of_timm else names()
    return next(iter(difflib.get_close_matches(name, known, 1, 0.5)), None)


def _hint(name: str) -> str:
    return f"; did you mean {near}?" if (near := similar(name)) else ""


def preprocessing_of(name: str, size: int | None, decoding: Decoding, weights: str | None = None) -> Preprocessing:
    """How images become the input of backbone `name`, of `size` pixels or as its weights have it."""
    own = replace(backbone_spec(name, weights).preprocessing, decoding=decoding.name)
    if size in (None, own.input_size):
        return own
    return replace(own, input_size=size, resize=round(own.resize / own.input_size * size))
