"""What can be said of a backbone before its weights are here: parameters, arithmetic, rows, licence."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.layers import empty_input
from pipeline.backbones.trunk import build_network, layer_of


@dataclass(frozen=True)
class BackboneFacts:
    """A backbone with its default weights, or at another size or layer.

    Attributes:
        name: in full, as `extract --backbone` takes it.
        parameters: without the classifier.
        gmacs: 10^9 multiply-adds per image, of matrix products and convolutions.
        row_shape: shape of one row.
        layer: whose output is the row.
        input_size: pixels.
        licence: of the weights; None where it is not known.
        weights_present: whether they are on this machine.
    """

    name: str
    parameters: int
    gmacs: float
    row_shape: tuple[int, ...]
    layer: str
    input_size: int
    licence: str | None
    weights_present: bool


def licence_of(name: str, source: str | None) -> str | None:
    """Of the weights of this name, the default ones without; None where it is not known, as of those of a file."""
    spec = backbone_spec(name, source)
    return spec.licence if source in (None, spec.weights.name) else None


def facts_of(name: str, size: int | None = None, layer: str | None = None) -> BackboneFacts:
    """From a dry run on a network without numbers where that can be; ConfigError for no backbone."""
    spec = backbone_spec(name)
    size = size or spec.preprocessing.input_size
    found, shape = layer_of(spec.name, size, layer)
    network = build_network(spec.name, size, empty=True).to("meta")
    trunk = spec.layers(network, size)[found](network, size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        trunk(empty_input(network, size))
    return BackboneFacts(
        name=spec.name,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gmacs=counter.get_total_flops() / 2e9,
        row_shape=shape,
        layer=found,
        input_size=size,
        licence=spec.licence,
        weights_present=spec.weights.present,
    )
