"""Pretrained weights on this machine: which there are, and fetching them."""

from dataclasses import dataclass

from pipeline.backbones.sources import fetch
from pipeline.backbones.spec import BACKBONES, backbone_spec
from pipeline.backbones.weights import NamedWeights


@dataclass(frozen=True)
class WeightsFile:
    """Weights that are known by name.

    Attributes:
        backbone: name of the network.
        weights: name of the weights.
        path: file that they are kept in once fetched.
        present: whether that file is there.
    """

    backbone: str
    weights: str
    path: str
    present: bool

    def in_words(self) -> str:
        """The path alone."""
        return self.path


@dataclass(frozen=True)
class WeightsList:
    """What `list_weights` found.

    Attributes:
        weights: one entry for each backbone.
    """

    weights: list[WeightsFile]

    def in_words(self) -> str:
        """A line for each backbone."""
        return "\n".join(f"{w.backbone:8} {w.weights}  {w.path if w.present else 'not fetched'}" for w in self.weights)


def list_weights() -> WeightsList:
    """The default weights of every backbone, fetched or not."""
    return WeightsList([_file_of(spec.weights) for spec in BACKBONES.values()])


def fetch_weights(backbone: str) -> WeightsFile:
    """Have the default weights of a backbone on this machine; WeightsError where that cannot be."""
    weights = backbone_spec(backbone).weights
    fetch(weights)
    return _file_of(weights)


def _file_of(weights: NamedWeights) -> WeightsFile:
    return WeightsFile(weights.backbone, weights.name, str(weights.path), weights.present)
