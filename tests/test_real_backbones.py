"""Real weights of other networks, real flowers: from files to a model that is the library's own network and a head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import require_real, some_flowers, train_config
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models, transforms

from pipeline.backbones.fastest import golden_at
from pipeline.backbones.golden import differ, known
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.trunk import layer_of
from pipeline.backbones.weights import tensor_digest
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import ExportConfig
from pipeline.errors import WeightsError
from pipeline.heads.head import Head
from pipeline.inputs.preprocessing import BICUBIC, BILINEAR, Preprocessing
from pipeline.model.file import load_model

VIT = "timm/vit_small_patch14_dinov2.lvd142m"
LITE = "timm/tf_efficientnet_lite0.in1k"
HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def mobilenet(file: Path) -> Callable[[Tensor], Tensor]:
    """torchvision's, by its own layers."""
    network = models.mobilenet_v2(weights=None).eval()
    network.load_state_dict(load_file(file), strict=False)
    return lambda pixels: network.features(pixels).mean((2, 3))


def by_timm(name: str, rows: Callable[[Any, Tensor], Tensor], **options: Any) -> Callable[[Path], Any]:
    """timm's, loaded by timm."""

    def load(file: Path) -> Callable[[Tensor], Tensor]:
        timm: Any = pytest.importorskip("timm", reason="timm is not installed")
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **options)
        return lambda pixels: rows(network.eval(), pixels)

    return load


def class_token_and_mean(network: Any, pixels: Tensor) -> Tensor:
    """(B, 768): channel by channel the class token, then the mean of the patches."""
    tokens = network.forward_features(pixels)
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)], 2).flatten(1)


NETWORKS = {
    "mobilenet_v2": ("mobilenet_v2", 256, "bilinear", IMAGENET, mobilenet),
    LITE: (
        "tf_efficientnet_lite0",
        256,
        "bicubic",
        (HALF, HALF),
        by_timm("tf_efficientnet_lite0", lambda n, x: n.forward_head(n.forward_features(x), pre_logits=True)),
    ),
    VIT: (
        "vit_small_patch14_dinov2",
        224,
        "bicubic",
        IMAGENET,
        by_timm("vit_small_patch14_dinov2", class_token_and_mean, img_size=224),
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_is_the_librarys_network_and_the_head(name: str, tmp_path: Path) -> None:
    """Log-probabilities within 1e-4 of torchvision's or timm's own network on the same files; ONNX too."""
    weights, resize, interpolation, (mean, std), load = NETWORKS[name]
    file, files = require_real(weights), some_flowers(12)
    lines = [f"{path},{number % 3},{'valid' if number > 8 else 'train'}" for number, path in enumerate(files)]
    (tmp_path / "some.csv").write_text("\n".join(["path,label,split", *lines]))
    cache, run, model = tmp_path / "features", tmp_path / "run", tmp_path / "model.safetensors"
    asked = ExtractConfig(
        tmp_path / "some.csv", cache, backbone=name, weights=str(file), image_size=224, precision="float32"
    )
    assert extract(asked).computed == 12
    train_head(train_config(cache, run, basis=None))
    result = export(ExportConfig(run, model, onnx=tmp_path / "model.onnx"))
    assert result.parity["max_abs_diff"] < 1e-4
    assert result.onnx["max_abs_diff"] < 1e-4

    bundle = load_model(model)
    found = bundle.on("cpu", "float32").log_probs(files)
    plain, head = load(file), Head.from_tensors(dict(bundle.head.state_dict()))
    transform = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
        expected = head(plain(pixels))
    assert (found - expected).abs().max() < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    by_onnx = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
    assert np.abs(by_onnx - expected.numpy()).max() < 1e-4


@pytest.mark.real
@pytest.mark.parametrize("name", NETWORKS)
def test_golden_rows_are_those_of_the_program(name: str) -> None:
    """On this processor, by these versions of the libraries, as when they were recorded."""
    weights, resize, interpolation, (mean, std), _ = NETWORKS[name]
    tensors = load_tensors(name, str(require_real(weights)), 224)
    layer = layer_of(name, 224)[0]
    stated = known(tensor_digest(tensors), layer, 224)
    assert stated is not None
    assert stated.backbone == name
    filter_ = BICUBIC if interpolation == "bicubic" else BILINEAR
    golden = golden_at(name, layer, tensors, Preprocessing(224, resize, mean, std, filter_))
    assert not differ(stated.golden, golden)


@pytest.mark.real
def test_tensors_in_another_architecture_are_refused(tmp_path: Path) -> None:
    """EfficientNet-Lite0 with other padding takes the same tensors without a word, and computes other features."""
    file = require_real("tf_efficientnet_lite0")
    lines = [f"{path},0,train" for path in some_flowers(2)]
    (tmp_path / "two.csv").write_text("\n".join(["path,label,split", *lines]))
    wrong = ExtractConfig(
        tmp_path / "two.csv", tmp_path / "features", backbone="timm/efficientnet_lite0", weights=str(file)
    )
    with pytest.raises(WeightsError, match=f"these are the weights of {LITE}"):
        extract(wrong)
    with pytest.raises(WeightsError, match="the weights do not fit"):
        extract(replace(wrong, backbone="resnet18"))
