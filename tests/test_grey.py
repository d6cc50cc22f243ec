"""16-bit grey of 12 bits: said before any row is computed, scaled where asked for, by the exported model too."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, Extract, train_config
from PIL import Image

from cache.errors import ManifestMismatch
from cache.store import FeatureCache
from pipeline.commands.export import export
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import ExportConfig
from pipeline.errors import ConfigError, ImageSetError
from pipeline.inputs.decode import Decoding
from pipeline.inputs.grey import narrow_range
from pipeline.model.file import load_model
from pipeline.model.parity_worker import answer


def draw_grey(root: Path, scale: int, most: int) -> Path:
    """A set of 16-bit grey PNGs, a brightness a class, their values up to `most`."""
    for split, count in (("train", 3), ("valid", 2)):
        for place, label in enumerate(CLASSES):
            for number in range(count):
                path = root / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(100 * place + 10 * number + count).integers(0, 40, (40, 44))
                values = (50 * place + noise) * scale
                values[0, 0] = most
                Image.fromarray(values.astype(np.uint16)).save(path)
    return root


def rows(cache: Path) -> np.ndarray:
    """All clean rows of the only set, in the order of the index."""
    opened = FeatureCache.open(cache)
    return opened.read([(image.key, "pass:0") for image in opened.index().images])


def test_a_narrow_range_is_said_with_the_option_that_helps(run_extract: Extract, tmp_path: Path) -> None:
    """Before anything is computed; a set that uses the range has no warning."""
    lines: list[str] = []
    run_extract(data=draw_grey(tmp_path / "narrow", 16, 3934), cache=tmp_path / "a", say=lines.append)
    [line] = [line for line in lines if "grey" in line]
    assert "3,934 of 65,535" in line
    assert "--grey-range 4095" in line
    wide: list[str] = []
    run_extract(data=draw_grey(tmp_path / "wide", 256, 60000), cache=tmp_path / "b", say=wide.append)
    assert not [line for line in wide if "grey" in line]


def test_a_range_that_is_asked_for_is_part_of_the_identity_and_gives_the_rows_of_8_bits(
    run_extract: Extract, tmp_path: Path
) -> None:
    """12 bits scaled by 4095 are the picture of 16 bits within rounding; auto finds 4095, and follows the cache."""
    narrow, wide = draw_grey(tmp_path / "narrow", 16, 4095), draw_grey(tmp_path / "wide", 257, 65535)
    run_extract(data=narrow, cache=tmp_path / "given", grey_range="4095")
    run_extract(data=narrow, cache=tmp_path / "auto", grey_range="auto")
    run_extract(data=wide, cache=tmp_path / "wide16")
    assert np.array_equal(rows(tmp_path / "given"), rows(tmp_path / "auto"))
    assert np.abs(rows(tmp_path / "given") - rows(tmp_path / "wide16")).max() < 0.05
    assert FeatureCache.open(tmp_path / "auto").manifest.base.decoding == "rgb-1 grey:4095"
    assert run_extract(data=narrow, cache=tmp_path / "given", grey_range="auto").computed == 0
    with pytest.raises(ManifestMismatch, match="grey:4095"):
        run_extract(data=narrow, cache=tmp_path / "given")


def test_the_exported_model_decodes_as_the_cache_did(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parity gate holds, the card has the policy, and predicting sees what training saw."""
    narrow = draw_grey(tmp_path / "narrow", 16, 4095)
    run_extract(data=narrow, cache=tmp_path / "features", grey_range="4095")
    train_head(train_config(tmp_path / "features", tmp_path / "run", epochs=30))
    # A fresh process does not know the tiny backbone.
    monkeypatch.setattr("pipeline.model.parity._ask_fresh_process", lambda asked: json.loads(json.dumps(answer(asked))))
    export(ExportConfig(tmp_path / "run", tmp_path / "model.safetensors"))
    bundle = load_model(tmp_path / "model.safetensors")
    assert bundle.preprocessing.policy == Decoding(4095)
    files = sorted((narrow / "valid").rglob("*.png"))
    found = [one.top[0].label for one in bundle.predict(files, top_k=1)]
    assert found == [file.parent.name for file in files]


def test_auto_without_16_bit_grey_and_values_out_of_range_are_refused(run_extract: Extract, tmp_path: Path) -> None:
    """With what to do."""
    with pytest.raises(ImageSetError, match="leave the option out"):
        run_extract(grey_range="auto")
    for value in ("12", "70000", "many", "-1"):
        with pytest.raises(ConfigError, match=f"--grey-range.*{json.dumps(value)[1:-1]}"):
            ExtractConfig(tmp_path, tmp_path / "features", grey_range=value)


def test_a_pipe_named_as_an_image_is_never_waited_for(tmp_path: Path) -> None:
    """Sampling reads regular files only."""
    os.mkfifo(tmp_path / "pipe.png")
    assert narrow_range([tmp_path / "pipe.png"], Decoding()) is None
