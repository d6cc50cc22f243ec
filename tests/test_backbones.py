"""Any network of torchvision or timm: what is read off it and its weights, and that its rows are its own."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Times, some_flowers, train_config
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2 import functional

from pipeline.backbones import fastest
from pipeline.backbones.backbone import normalise
from pipeline.backbones.catalog import backbone_spec, names, preprocessing_of
from pipeline.backbones.fastest import bears_bfloat16, load_backbone
from pipeline.backbones.fused import FusedConv2d
from pipeline.backbones.golden import golden_views
from pipeline.backbones.trunk import (
    build_network,
    build_trunk,
    layer_of,
    network_part,
    state_dict_mismatch,
)
from pipeline.backbones.weights import tensor_digest
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.list_backbones import list_backbones
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import ExportConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.inputs.decode import FULL_RANGE
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import CPU, computes
from pipeline.model.file import load_model

# One of each kind: batch norm and residuals, depthwise, squeezing, dense, grouped, norms of layers, tokens, windows.
SOME = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "mnasnet0_5",
    "googlenet",
    "inception_v3",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
    "vgg11_bn",
)
SLOW_TO_BUILD = ("regnet", "swin", "maxvit", "vit_h", "vit_l")  # for real, and with up to 600 M parameters
TIMM = names("timm/test_*") if find_spec("timm") else []


def drawn(name: str) -> dict[str, Tensor]:
    """Random tensors of a network, statistics of batch norm too."""
    torch.manual_seed(0)
    network = build_network(name, own(name).input_size)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn_like(layer.bias) / 10
            layer.running_var = torch.rand_like(layer.bias) + 0.5
    return {key: value.clone() for key, value in network.state_dict().items() if value.is_floating_point()}


def own(name: str) -> Preprocessing:
    """As its weights have it."""
    return preprocessing_of(name, None, FULL_RANGE)


def test_every_network_of_torchvision_has_preprocessing() -> None:
    """As its weights have it; none is left out."""
    assert len(names()) >= 80
    for name in names():
        preset, found = backbone_spec(name).weights.enum.transforms(), own(name)
        assert (found.input_size, found.resize) == (preset.crop_size[0], preset.resize_size[0]), name
        assert (list(found.mean), list(found.std)) == (list(preset.mean), list(preset.std)), name
        assert found.interpolation == f"{preset.interpolation.value}-antialias", name


def test_every_network_of_timm_has_preprocessing_or_a_reason() -> None:
    """All its weights but those on other than squares of three channels, or on padded images."""
    pytest.importorskip("timm", reason="timm is not installed")
    known, refused = names("timm/"), []
    for name in known:
        try:
            assert backbone_spec(name).name == name
        except ConfigError as error:
            refused.append(str(error))
    assert len(known) > 1500
    assert len(refused) < 20
    assert all("expected a square of three channels" in reason for reason in refused)


@pytest.mark.parametrize("name", [name for name in names() if not name.startswith(SLOW_TO_BUILD)])
def test_the_default_row_is_what_the_classifier_would_see(name: str) -> None:
    """Found on an empty network: a whole map for VGG and AlexNet, a token and a mean for ViT, else a vector."""
    layer, shape = layer_of(name, own(name).input_size)
    if name.startswith(("vgg", "alexnet")):
        assert (layer, len(shape)) == ("avgpool", 3)
    elif name.startswith("vit"):
        assert (layer, shape[1]) == ("cls+mean", 2)
    else:
        assert (layer, len(shape)) == ("pooled", 1)


@pytest.mark.parametrize("name", SOME)
def test_rows_are_those_of_the_network(name: str) -> None:
    """Of torchvision's own, seen where its classifier takes them."""
    tensors = drawn(name)
    whole: Any = backbone_spec(name).build(own(name).input_size).eval()
    state = whole.state_dict()
    state.update(tensors)
    whole.load_state_dict(state)
    seen: list[Tensor] = []
    first: Any = next(layer for layer in reversed(list(whole.modules())) if isinstance(layer, nn.Linear | nn.Conv2d))
    if name == "squeezenet1_1":
        first = whole.features
    elif name.startswith(("vgg", "mobilenet_v3")):
        first = whole.classifier[0]
    first.register_forward_hook(lambda _, given, out: seen.append(out if name == "squeezenet1_1" else given[0]))
    views = golden_views(own(name).input_size)[:2]
    with torch.inference_mode():
        whole(normalise(torch.from_numpy(views.copy()).permute(0, 3, 1, 2), own(name)))
    expected = seen[0].mean((2, 3)) if seen[0].ndim == 4 else seen[0]
    layer = "cls" if name.startswith("vit") else None
    found = load_backbone(name, tensors, own(name), layer=layer, device=CPU, precision="float32").features([*views])
    assert torch.cosine_similarity(found.double(), expected.double()).min() > 0.99999


@pytest.mark.parametrize("name", TIMM)
def test_rows_are_those_of_timm(name: str) -> None:
    """By timm's own call, from the tensors of the whole network; every layer has its features."""
    import timm

    torch.manual_seed(0)
    whole: Any = timm.create_model(name.removeprefix("timm/"), pretrained=False).eval()
    size = own(name).input_size
    tensors = network_part(name, whole.state_dict(), size)
    assert state_dict_mismatch(name, tensors, size) == ""
    views = golden_views(size)[:2]
    with torch.inference_mode():
        pixels = normalise(torch.from_numpy(views.copy()).permute(0, 3, 1, 2), own(name))
        features = whole.forward_features(pixels)
        expected = whole.forward_head(features, pre_logits=True)
    for layer in backbone_spec(name).layers(whole, size):
        found = load_backbone(name, tensors, own(name), layer=layer, device=CPU, precision="float32").features([*views])
        assert found.shape[1] == np.prod(layer_of(name, size, layer)[1])
        if layer == "pooled":
            assert torch.cosine_similarity(found.double(), expected.double()).min() > 0.99999
        elif layer == "map":
            assert torch.allclose(found.view(len(views), -1).sum(), features.sum(), rtol=1e-3)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet50", "swin_t", "inception_v3"])
def test_the_clean_view_is_that_of_the_weights(name: str) -> None:
    """Pixel for pixel, bilinear and bicubic."""
    preset, found = backbone_spec(name).weights.enum.transforms(), own(name)
    for file in some_flowers(4):
        image = Image.open(file).convert("RGB")
        resized = functional.resize(image, preset.resize_size, preset.interpolation, antialias=True)
        expected = np.asarray(functional.center_crop(resized, preset.crop_size))
        assert np.array_equal(found.view_of(file), expected)


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0.in1k", "timm/eva02_base_patch14_448.mim_in22k_ft_in22k"])
def test_the_clean_view_is_that_of_timm(name: str) -> None:
    """Pixel for pixel, cropped after the short side is resized, or squashed."""
    timm: Any = pytest.importorskip("timm", reason="timm is not installed")
    facts = timm.get_pretrained_cfg(name.removeprefix("timm/")).to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=facts), normalize=False)
    for file in some_flowers(4):
        expected = transform(Image.open(file).convert("RGB"))
        assert np.array_equal(own(name).view_of(file), expected.permute(1, 2, 0).numpy())


def test_weights_of_another_name_have_their_own_preprocessing() -> None:
    """The second ones of ResNet-50 were trained at another size."""
    first, second = (preprocessing_of("resnet50", None, FULL_RANGE, f"IMAGENET1K_V{n}") for n in (1, 2))
    assert (first.resize, second.resize) == (256, 232)
    assert backbone_spec("resnet50", "IMAGENET1K_V2").weights.path != backbone_spec("resnet50").weights.path


def test_a_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    """Others are scaled in proportion."""
    with pytest.raises(ConfigError, match="--image-size is 250, which vit_b_16 does not take: choose 224, 240, 256"):
        layer_of("vit_b_16", 250)
    with pytest.raises(ConfigError, match="--image-size is 256, which maxvit_t does not take: choose 224"):
        layer_of("maxvit_t", 256)
    assert preprocessing_of("resnet50", 112, FULL_RANGE).resize == 128
    with pytest.raises(ConfigError, match="--layer is 'cls', expected one that resnet18 has: pooled, map"):
        layer_of("resnet18", 224, "cls")


def test_a_border_that_patches_would_leave_out_is_refused() -> None:
    """timm cuts it off without a word."""
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ConfigError, match="--image-size is 225, which timm/vit_small_patch14_dinov2 does not take"):
        layer_of("timm/vit_small_patch14_dinov2", 225)


def test_a_misspelt_name_is_told_what_it_is_like() -> None:
    """Also where timm's prefix is missing, and by the command that lists names."""
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ConfigError, match=r"or timm/NAME; did you mean timm/vit_small_patch14_dinov2\?"):
        backbone_spec("vit_small_patch14_dinov2")
    with pytest.raises(ConfigError, match=r"did you mean mobilenet_v2\?"):
        list_backbones("mobilnet_v2")
    with pytest.raises(ConfigError, match=r"did you mean timm/tf_efficientnet_lite0\?"):
        backbone_spec("timm/tf_eficientnet_lite0")
    with pytest.raises(ConfigError, match=r"with such weights; it has in1k$"):
        backbone_spec("timm/tf_efficientnet_lite0.foo")


@pytest.mark.parametrize("name", ["vit_b_32", "timm/test_vit.r160_in1k"])
def test_positions_are_resized_to_the_input(name: str) -> None:
    """And to the size of the weights not at all."""
    tensors, size = drawn(name), own(name).input_size
    assert network_part(name, tensors, size).keys() == tensors.keys()
    assert all(torch.equal(tensors[key], value) for key, value in network_part(name, tensors, size).items())
    larger = network_part(name, tensors, size + 32)
    assert state_dict_mismatch(name, larger, size + 32) == ""
    changed = [key for key, value in larger.items() if value.shape != tensors[key].shape]
    assert len(changed) == 1
    assert "pos" in changed[0]


@pytest.mark.parametrize("name", ["vit_b_32", "timm/test_vit.r160_in1k"])
def test_layers_of_tokens_are_parts_of_one_another(name: str) -> None:
    """The class token and the mean of the patches of all tokens; the last block's comes first."""
    tensors, size = drawn(name), own(name).input_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = {
            layer: build_trunk(name, size, layer, tensors)(pixels).view(2, *layer_of(name, size, layer)[1])
            for layer in ("tokens", "cls", "mean", "cls+mean", "cls4+mean")
        }
    tokens = rows["tokens"]
    assert torch.allclose(rows["cls"], tokens[..., 0], atol=1e-5)
    assert torch.allclose(rows["mean"], tokens[..., 1:].mean(2), atol=1e-5)
    assert torch.allclose(rows["cls+mean"], torch.stack([rows["cls"], rows["mean"]], 2), atol=1e-5)
    assert torch.allclose(rows["cls4+mean"][..., [0, -1]], rows["cls+mean"], atol=1e-5)


def test_every_number_that_decides_a_row_is_in_the_digest() -> None:
    """A statistic of batch norm too; the classifier is in none."""
    tensors = drawn("resnet18")
    changed = {**tensors, "layer1.0.bn1.running_var": tensors["layer1.0.bn1.running_var"] * 1.01}
    assert tensor_digest(changed) != tensor_digest(tensors)
    whole = models.resnet18(weights=None).state_dict()
    part = network_part("resnet18", whole, 224)
    assert part.keys() == tensors.keys()
    assert state_dict_mismatch("resnet18", part, 224) == ""
    lacking = {key: value for key, value in part.items() if key != "bn1.running_mean"}
    assert "bn1.running_mean" in state_dict_mismatch("resnet18", lacking, 224)
    more = network_part("resnet18", {**whole, "layer9.weight": torch.ones(1)}, 224)
    assert "layer9" in state_dict_mismatch("resnet18", more, 224)


def test_tensors_that_do_not_fit_a_network_of_timm_are_refused() -> None:
    """One too few, one too many, another shape, which is named."""
    pytest.importorskip("timm", reason="timm is not installed")
    name = "timm/test_resnet.r160_in1k"
    tensors = drawn(name)
    first = next(iter(tensors))
    for wrong in (
        {key: value for key, value in tensors.items() if key != first},
        {**tensors, "layer9.weight": torch.ones(1)},
        {**tensors, first: torch.ones(1)},
    ):
        with pytest.raises(WeightsError, match="the weights do not fit timm/test_resnet"):
            network_part(name, wrong, own(name).input_size)
    with pytest.raises(WeightsError, match=rf"{first} is \[1\], expected \[\d+, 3, "):
        network_part(name, {**tensors, first: torch.ones(1)}, own(name).input_size)


def test_an_empty_network_holds_what_it_is_given() -> None:
    """And no number that was drawn when it was built."""
    for name in ("mnasnet0_5", "swin_t"):
        tensors = drawn(name)
        one, other = (build_trunk(name, 224, None, tensors) for _ in range(2))
        pixels = torch.zeros(1, 3, 224, 224)
        with torch.inference_mode():
            assert torch.equal(one(pixels), other(pixels))


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Cosines that networks are found to have, in turn; the last one from then on."""
    cosines: list[float] = []
    monkeypatch.setattr(fastest, "_nearness", lambda *_: cosines.pop(0) if len(cosines) > 1 else cosines[0])
    yield cosines


def test_a_path_that_computes_something_else_is_not_taken(rounding: list[float]) -> None:
    """Unless the plain one loses as much."""
    tensors = drawn("resnet18")
    rounding[:] = [0.5, 1.0]
    assert load_backbone("resnet18", tensors, own("resnet18"), device=CPU, precision="float32").code_path == "eager"
    rounding[:] = [1.0]
    assert load_backbone("resnet18", tensors, own("resnet18"), device=CPU, precision="float32").code_path != "eager"
    rounding[:] = [0.98, 0.981]
    assert load_backbone("resnet18", tensors, own("resnet18"), device=CPU, precision="float32").code_path != "eager"


def test_a_path_that_does_not_run_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises; the network is computed layer by layer."""

    def missing(*_: object) -> Tensor:
        raise AttributeError("'FusedConv2d' object has no attribute 'weight'")

    monkeypatch.setattr(FusedConv2d, "forward", missing)
    tensors = drawn("mnasnet0_5")
    found = load_backbone("mnasnet0_5", tensors, own("mnasnet0_5"), device=CPU, precision="float32")
    assert (found.code_path, found.nearness > 0.9999) == ("eager", True)


def test_bfloat16_is_for_networks_that_bear_it(rounding: list[float]) -> None:
    """As rows of cache/FORMAT.md."""
    if not computes(CPU, "bfloat16"):
        pytest.skip("this processor does not compute in bfloat16")
    tensors = drawn("resnet18")
    for cosine, bears in ((0.9996, True), (0.9994, False)):
        rounding[:] = [cosine]
        assert bears_bfloat16("resnet18", None, tensors, own("resnet18")) == bears


@pytest.mark.real
def test_from_files_to_predictions(times: Times, tmp_path: Path) -> None:
    """Through cache, head, model and ONNX file, whatever the network: random weights, real flowers."""
    pytest.importorskip("timm", reason="timm is not installed")
    files = some_flowers(12)
    lines = [f"{path},{number % 3},{'valid' if number > 8 else 'train'}" for number, path in enumerate(files)]
    (tmp_path / "some.csv").write_text("\n".join(["path,label,split", *lines]))
    some = ["timm/test_vit3.r160_in1k", "shufflenet_v2_x0_5"]
    every = list(dict.fromkeys([*some, *TIMM, *SOME]))
    for name in every[: times(len(some), len(every))]:
        place = tmp_path / name.replace("/", "-")
        place.mkdir(exist_ok=True)
        save_file(drawn(name), place / "weights.safetensors")
        asked = ExtractConfig(
            tmp_path / "some.csv", place / "features", backbone=name, weights=str(place / "weights.safetensors")
        )
        assert extract(asked).computed == 12, name
        train_head(train_config(place / "features", place / "run", basis="full", overwrite=True))
        config = ExportConfig(place / "run", place / "model.safetensors", onnx=place / "model.onnx", overwrite=True)
        result = export(config)
        assert max(result.parity["max_abs_diff"], result.onnx["max_abs_diff"]) < 1e-4, name
        assert len(load_model(place / "model.safetensors").predict(files[:2])) == 2, name
