"""Golden rows: a network that computes other features from the same weights is found out."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Extract, Tiny, draw_image, tiny_tensors, train_config
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.errors import ManifestMismatch
from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone
from pipeline.backbones.catalog import BACKBONES
from pipeline.backbones.golden import KnownWeights, differ, golden_of, golden_pixels, golden_views
from pipeline.commands.export import export
from pipeline.commands.train import train_head
from pipeline.config.models import ExportConfig
from pipeline.errors import BundleError, PipelineError, WeightsError
from pipeline.extraction import plan
from pipeline.model.file import load_model


class Smooth(Tiny):
    """The same tensors with another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.features[1] = nn.SiLU()


def other_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone has it from now on."""
    monkeypatch.setitem(BACKBONES, "tiny", replace(BACKBONES["tiny"], build=lambda size: Smooth()))


def golden(network: Tiny) -> tuple[float, ...]:
    """Of the tiny network with its tensors."""
    network.classifier = nn.Identity()
    network.load_state_dict(tiny_tensors(), strict=False)
    with torch.inference_mode():
        return golden_of(network.eval()(golden_pixels(32)))


def test_views_are_the_same_for_ever() -> None:
    """Noise of bytes, whatever the library: the first and the last."""
    views = golden_views(8)
    assert views.shape == (4, 8, 8, 3)
    assert views.ravel()[:4].tolist() == [201, 255, 82, 18]
    assert views.ravel()[-4:].tolist() == [15, 59, 12, 141]


def test_another_activation_has_other_numbers() -> None:
    """The same network has the same ones."""
    assert not differ(golden(Tiny()), golden(Tiny()))
    assert differ(golden(Tiny()), golden(Smooth()))
    assert differ(golden(Tiny()), golden(Tiny())[:-1])


@given(st.integers(0, 15), st.floats(-1, 1))
def test_numbers_may_differ_by_a_ten_thousandth(place: int, amount: float) -> None:
    """Of the root mean square beside them."""
    numbers = (2.0, 0.5, 0.5, 0.5) * 4
    changed = tuple(value + amount * 1e-3 * (n == place) for n, value in enumerate(numbers))
    if abs(amount) < 0.19:
        assert not differ(numbers, changed)
    if abs(amount) > 0.21:
        assert differ(numbers, changed)


def test_features_in_another_order_have_other_numbers() -> None:
    """Vectors or positions that changed places; NaN differs from everything."""
    rows = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    assert differ(golden_of(rows.flatten(1)), golden_of(rows.flip(2).flatten(1)))
    assert differ(golden_of(rows.flatten(1)), golden_of(rows.flip(1).flatten(1)))
    good = golden_of(rows.flatten(1))
    assert not differ(good, good)
    assert differ((math.nan, *good[1:]), good)
    assert differ(good, (math.nan, *good[1:]))
    assert differ([], good)


def test_rows_of_another_network_are_not_added(
    run_extract: Extract, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its tensors are; nothing is written."""
    cache = Path(run_extract().cache)
    before = sorted(path.name for path in (cache / "shards").iterdir())
    other_activation(monkeypatch)
    draw_image(data / "train" / "1" / "new.png", 99)
    with pytest.raises(PipelineError, match=r"tiny computes other features now .*by the same versions"):
        run_extract()
    assert sorted(path.name for path in (cache / "shards").iterdir()) == before


def test_versions_that_changed_are_named(run_extract: Extract, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the libraries that build and compute the network."""
    run_extract()
    other_activation(monkeypatch)
    monkeypatch.setattr("torchvision.__version__", "9.9.9")
    draw_image(data / "train" / "1" / "new.png", 99)
    with pytest.raises(PipelineError, match=r"torchvision 0\..* there, 9\.9\.9 here"):
        run_extract()


def test_rows_without_golden_ones_are_added_to(
    run_extract: Extract, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""
    with monkeypatch.context() as earlier:
        made = {"device": "cpu", "code_path": "eager"}
        earlier.setattr(Backbone, "provenance", made)
        cache = FeatureCache.open(Path(run_extract().cache))
    assert "golden" not in cache.shards[0].header.provenance
    draw_image(data / "train" / "1" / "new.png", 99)
    assert run_extract().computed == 1


def test_a_model_of_another_network_is_not_opened(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says with which versions it was exported."""
    cache = Path(run_extract().cache)
    train_head(train_config(cache, tmp_path / "run"))
    model = tmp_path / "model.safetensors"
    monkeypatch.setattr("pipeline.commands.export.check_parity", lambda *_: {"images": 0, "max_abs_diff": 0.0})
    export(ExportConfig(tmp_path / "run", model))
    found = load_model(model)
    assert len(found.card.golden) == 16
    found.on("cpu", "float32")
    other_activation(monkeypatch)
    with pytest.raises(BundleError, match="tiny computes other features here than where"):
        load_model(model).on("cpu", "float32")


def test_weights_that_are_known_are_those_of_one_network(run_extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a cache is made."""
    monkeypatch.setattr(plan, "known", lambda *_: KnownWeights("smooth", "", "avgpool", 32, golden(Smooth())))
    with pytest.raises(WeightsError, match="these are the weights of smooth, from which tiny computes other features"):
        run_extract()


def test_a_changed_statistic_is_another_weight(run_extract: Extract, tmp_path: Path) -> None:
    """Refused field by field, as any other."""
    run_extract()
    changed: dict[str, Tensor] = {**tiny_tensors(), "features.0.bias": tiny_tensors()["features.0.bias"] + 1e-3}
    save_file(changed, tmp_path / "other.safetensors")
    with pytest.raises(ManifestMismatch, match="weights_digest"):
        run_extract(weights=str(tmp_path / "other.safetensors"))
