"""Real weights and real flowers: our features are torchvision's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import preprocessing, require_weights, some_flowers
from PIL import Image
from torchvision.models import VGG16_Weights, vgg16

from cache.store import FeatureCache
from pipeline.backbones import fastest
from pipeline.commands.extract import extract
from pipeline.config.extract import ExtractConfig
from pipeline.machine.device import computes_bfloat16


@pytest.mark.real
def test_vgg16_features_of_flowers_are_torchvisions(tmp_path: Path) -> None:
    """Eight flowers: cosine of at least 0.9999 with torchvision's eager float32 network and its own transforms."""
    tensors = require_weights("vgg16")
    files = some_flowers(8)
    lines = [f"{file},{file.parent.name},train" for file in files]
    (tmp_path / "eight.csv").write_text("\n".join(["path,label,split", *lines]))
    extract(ExtractConfig(tmp_path / "eight.csv", tmp_path / "features", precision="float32", device="cpu"))
    cache = FeatureCache.open(tmp_path / "features")
    assert cache.row_shape == (512, 7, 7)
    rows = torch.from_numpy(cache.read([(image.key, "pass:0") for image in cache.index().images])).float()

    network = vgg16(weights=None)
    network.classifier = torch.nn.Identity()
    network.load_state_dict(tensors)
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        for row, file in zip(rows, files, strict=True):
            expected = network.eval()(transform(Image.open(file).convert("RGB"))[None])[0]
            assert float(torch.cosine_similarity(row, expected, dim=0)) >= 0.9999
            assert torch.allclose(row, expected, atol=0.05, rtol=0.01)


@pytest.mark.real
def test_bfloat16_features_are_near_float32(tmp_path: Path) -> None:
    """Sixteen flowers and a pass of AlexNet: every row within a cosine of 0.9999 of float32."""
    require_weights("alexnet")
    if not computes_bfloat16(torch.device("cpu")):
        pytest.skip("this processor does not compute in bfloat16")
    lines = [f"{file},{file.parent.name},train" for file in some_flowers(16)]
    (tmp_path / "some.csv").write_text("\n".join(["path,label,split", *lines]))
    rows = {}
    for precision in ("float32", "bfloat16"):
        place = tmp_path / precision
        config = ExtractConfig(tmp_path / "some.csv", place, backbone="alexnet", passes=1, precision=precision)
        assert extract(replace(config, device="cpu")).computed == 32
        cache = FeatureCache.open(place)
        keys = cache.index().row_keys(1)
        rows[precision] = torch.from_numpy(cache.read(keys)).float()
        expected = "winograd" if precision == "float32" else "fused"
        assert {kind["code_path"] for kind in cache.provenance(keys)} == {expected}
    cosines = torch.cosine_similarity(rows["float32"], rows["bfloat16"])
    assert cosines.min() >= 0.9999


@pytest.mark.real
def test_dark_images_keep_their_features_in_bfloat16() -> None:
    """Flowers in the dark, in a black frame: the rounding of a flat area would be the same all over it."""
    tensors = require_weights("vgg16")
    cpu = torch.device("cpu")
    if not computes_bfloat16(cpu):
        pytest.skip("this processor does not compute in bfloat16")
    views = [preprocessing(224).view_of(file) // 4 for file in some_flowers(6)]
    for view in views:
        view[:90] = view[:, :60] = 0
    expected = fastest.load_backbone(
        "vgg16", dict(tensors), preprocessing(224), device=cpu, precision="float32"
    ).features(views)
    rounded = fastest.load_backbone(
        "vgg16", dict(tensors), preprocessing(224), device=cpu, precision="bfloat16"
    ).features(views)
    assert torch.cosine_similarity(expected, rounded).min() >= 0.9998
