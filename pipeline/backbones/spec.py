"""BackboneSpec: the facts of a pretrained network, whatever its weights and wherever it computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.backbones.layers import Layer, own_layers
from pipeline.backbones.weights import NamedWeights
from pipeline.inputs.preprocessing import Preprocessing

IMAGENET = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of most weights
Tensors = Mapping[str, Tensor]


class Undrawn(TorchFunctionMode):
    """Fills no tensor with random numbers, which takes longer than all else in building a network."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = getattr(function, "__name__", "") in ("normal_", "uniform_", "erfinv_", "trunc_normal_")
        return args[0] if drawn and args and isinstance(args[0], Tensor) else function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class BackboneSpec:
    """A classification network, and how images become its input.

    Attributes:
        build: the whole network for an input of so many pixels, with random weights.
        weights: the named ones.
        preprocessing: of these weights.
        layers: of the network without its classifier, for an input of so many pixels; the first is the default.
        fixed_size: whether it takes the size of its weights alone.
        positions: whether it knows places in the image, so that a small one is none of its inputs.
        classifier: names of its modules that are the classifier; () for its last one.
        resized: the tensors for an input of so many pixels: those with a number for each position change with it.
        as_torch_layers: the network, in place, with torch's own layers for those of its library, for so many pixels.
        licence: of the weights; None where it is not known.
        transforms_input: whether the network itself scales its input first.
        arguments: that the library builds it with for an input of so many pixels; recorded with models.
        built_by: library that it is built by, and its version; None for a program's own.
    """

    build: Callable[[int], nn.Module]
    weights: NamedWeights
    preprocessing: Preprocessing = IMAGENET
    layers: Callable[[nn.Module, int], Mapping[str, Layer]] = own_layers
    fixed_size: bool = False
    positions: bool = False
    classifier: tuple[str, ...] = ()
    resized: Callable[[Tensors, int], Tensors] = lambda tensors, _size: tensors
    as_torch_layers: Callable[[nn.Module, int], nn.Module] = lambda network, _size: network
    licence: str | None = None
    transforms_input: bool = False
    arguments: Callable[[int], Mapping[str, Any]] = lambda _size: {}
    built_by: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """In full, as caches and models record it: `timm/tf_efficientnet_lite0.in1k`."""
        return self.weights.backbone
