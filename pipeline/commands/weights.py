"""Pretrained weights on this machine: which there are, and fetching them."""

from dataclasses import dataclass

from cache.result import Result
from pipeline.backbones.catalog import backbone_spec, names
from pipeline.backbones.from_timm import PREFIX
from pipeline.backbones.sources import fetch
from pipeline.backbones.weights import NamedWeights, weights_folder


@dataclass(frozen=True)
class WeightsFile(Result):
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
class WeightsList(Result):
    """What `list_weights` found.

    Attributes:
        weights: one entry for each backbone.
    """

    weights: list[WeightsFile]

    def in_words(self) -> str:
        """A line for each backbone."""
        return "\n".join(f"{w.backbone:20} {w.weights}  {w.path if w.present else 'not fetched'}" for w in self.weights)


def list_weights() -> WeightsList:
    """The default weights of every backbone of torchvision, fetched or not, and those of timm that were fetched."""
    known = [backbone_spec(name).weights for name in names()]
    fetched = (file.stem.removeprefix("timm-") for file in sorted(weights_folder().glob("timm-*.safetensors")))
    known += [NamedWeights(f"{PREFIX}{stem}", stem.partition(".")[2], None) for stem in fetched]
    return WeightsList([_file_of(weights) for weights in known])


def fetch_weights(backbone: str = "vgg16") -> WeightsFile:
    """Fetch the default weights of a backbone into the weights folder, unless they are there.

    Raises:
        WeightsError: they cannot be had.
        ConfigError: there is no such backbone.
    """
    weights = backbone_spec(backbone).weights
    fetch(weights)
    return _file_of(weights)


def _file_of(weights: NamedWeights) -> WeightsFile:
    return WeightsFile(weights.backbone, weights.name, str(weights.path), weights.present)
