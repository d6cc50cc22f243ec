"""A model file used without this program: torch, torchvision, safetensors and Pillow are all it takes.

    python independent.py MODEL IMAGE...     prints {"classes": [...], "log_probs": [[...], ...]}

Written from the description of the file alone: tensors `backbone.features.N.*`, `head.0.*`, `head.3.*` where there is
a hidden layer, others that predicting does not need, and a card under the metadata key `headgraft`.
"""

import json
import sys
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor


def load(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors of a model file."""
    with safe_open(path, "pt") as file:
        card: dict[str, Any] = json.loads(file.metadata()["headgraft"])
        return card, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def network(card: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """torchvision's network with the head in place of its classifier."""
    hidden, features = tensors["head.0.weight"].shape
    layers: list[nn.Module] = [nn.Linear(features, hidden)]
    if "head.3.weight" in tensors:
        layers += [nn.ReLU(), nn.Dropout(), nn.Linear(hidden, len(card["classes"]))]
    model: nn.Module = getattr(models, card["backbone"])(weights=None)
    model.classifier = nn.Sequential(*layers, nn.LogSoftmax(1))
    parts = {name: tensor for name, tensor in tensors.items() if name.startswith(("backbone.", "head."))}
    names = {name: name.removeprefix("backbone.").replace("head.", "classifier.") for name in parts}
    model.load_state_dict({names[name]: tensor for name, tensor in parts.items()})
    return model.eval()


def transform(preprocessing: dict[str, Any]) -> Compose:
    """torchvision's own steps, as the card says them."""
    return Compose(
        [
            Resize(preprocessing["resize"]),
            CenterCrop(preprocessing["input_size"]),
            ToTensor(),
            Normalize(preprocessing["mean"], preprocessing["std"]),
        ]
    )


@torch.inference_mode()
def main(path: str, *images: str) -> None:
    """All of it."""
    card, tensors = load(path)
    model, steps = network(card, tensors), transform(card["preprocessing"])
    log_probs = [model(steps(Image.open(image).convert("RGB"))[None])[0].tolist() for image in images]
    json.dump({"classes": card["classes"], "log_probs": log_probs}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
