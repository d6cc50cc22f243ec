"""Pretrained weights on this machine: which there are, and fetching them."""

from dataclasses import dataclass

from pipeline.backbones.backbone import BACKBONES, backbone_spec
from pipeline.backbones.sources import fetch


@dataclass(frozen=True)
class ListedWeights:
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


@dataclass(frozen=True)
class WeightsList:
    """What `list_weights` found.

    Attributes:
        weights: one entry for each backbone.
    """

    weights: list[ListedWeights]

    def in_words(self) -> str:
        """A line for each backbone."""
        return "\n".join(f"{w.backbone:8} {w.weights}  {w.path if w.present else 'not fetched'}" for w in self.weights)


@dataclass(frozen=True)
class FetchedWeights:
    """What `fetch_weights` has.

    Attributes:
        backbone: name of the network.
        path: file of its weights.
    """

    backbone: str
    path: str

    def in_words(self) -> str:
        """The path alone."""
        return self.path


def list_weights() -> WeightsList:
    """The default weights of every backbone, fetched or not."""
    known = [spec.weights for spec in BACKBONES.values()]
    return WeightsList([ListedWeights(w.backbone, w.name, str(w.path), w.present) for w in known])


def fetch_weights(backbone: str) -> FetchedWeights:
    """Have the default weights of a backbone on this machine; WeightsError where that cannot be."""
    named = backbone_spec(backbone).weights
    fetch(named)
    return FetchedWeights(backbone, str(named.path))
