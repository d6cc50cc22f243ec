"""Real weights and real flowers: our features are torchvision's."""

from pathlib import Path

import pytest
import torch
from conftest import flowers, require_weights
from PIL import Image
from torchvision.models import VGG16_Weights, vgg16

from cache.store import FeatureCache
from pipeline.config import ExtractConfig
from pipeline.extract import extract


@pytest.mark.real
def test_vgg16_features_of_flowers_are_torchvisions(tmp_path: Path) -> None:
    """Eight flowers: cosine of at least 0.9999 with torchvision's eager float32 network and its own transforms."""
    tensors = require_weights("vgg16")
    files = [next(iter(sorted(folder.iterdir()))) for folder in sorted((flowers() / "train").iterdir())[:8]]
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
