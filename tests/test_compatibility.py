"""What the first version of the formats wrote still opens, and gives the same numbers to the last bit.

tests/data/a5956e8 was written by the program of that commit: 24 images, a cache with one augmented pass, a run on it, a
reduced cache, a run on that, and a model.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Extract, train_config
from safetensors.torch import load_file

from cache.check import verify
from cache.manifest import json_digest
from cache.store import FeatureCache
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.predict import predict
from pipeline.commands.report import report
from pipeline.commands.train import train_head
from pipeline.config.models import EvaluateConfig, ExportConfig, PredictConfig, ReportConfig
from pipeline.model.file import load_model
from pipeline.model.parity_worker import answer
from pipeline.run import Run

WRITTEN = REPOSITORY / "tests" / "data" / "a5956e8"
EXPECTED: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text())


@pytest.fixture
def written(tmp_path: Path, tiny: str) -> Path:
    """A copy whose indexes name its images where they are now."""
    shutil.copytree(WRITTEN, tmp_path / "written")
    for path in tmp_path.glob("written/*/sets/data.json"):
        stored = json.loads(path.read_text())
        stored["data"] = stored["root"] = str(tmp_path / "written" / "data")
        body = {name: value for name, value in stored.items() if name not in ("format", "sha256")}
        path.write_text(json.dumps({**stored, "sha256": json_digest(body)}))
    return tmp_path / "written"


@pytest.mark.parametrize(("name", "rows"), [("cache", "rows"), ("reduced", "reduced_rows")])
def test_a_cache_has_the_same_digests_and_rows(name: str, rows: str) -> None:
    """Its identity, every shard as it was written, every row bit for bit."""
    cache = FeatureCache.open(WRITTEN / name)
    index = cache.index()
    assert cache.manifest.base.digest == EXPECTED["base_digest"]
    assert cache.manifest.augmentation is not None
    assert cache.manifest.augmentation.digest == EXPECTED["augmentation_digest"]
    assert index.digest == EXPECTED["set_digest"]
    found = cache.read(sorted(index.row_keys(1)))
    assert hashlib.sha256(found.tobytes()).hexdigest() == EXPECTED[rows]
    assert verify(cache.path).bad == []


@pytest.mark.parametrize(
    ("cache", "run", "basis"), [("cache", "run", "pool+white"), ("reduced", "run-reduced", "full")]
)
def test_a_run_is_evaluated_and_trained_again(written: Path, tmp_path: Path, cache: str, run: str, basis: str) -> None:
    """From the cache it was trained on, wherever that is now."""
    record = Run.load(written / run).record
    valid = evaluate(EvaluateConfig(written / run, cache=written / cache, split="valid"))
    assert valid.top1 == record.valid_accuracy
    if run == "run":
        scored = evaluate(EvaluateConfig(written / run, cache=written / cache))
        assert scored.top1 == EXPECTED["top1"]
        assert scored.ece == pytest.approx(EXPECTED["ece"])
    again = train_head(train_config(written / cache, tmp_path / "again", basis=basis))
    assert Run.load(tmp_path / "again").record.set_digest == record.set_digest
    assert len(again.epochs) == 3


@pytest.mark.usefixtures("tiny")
def test_a_model_predicts_the_same() -> None:
    """Log-probabilities of the test images, from the files."""
    bundle = load_model(WRITTEN / "model.safetensors")
    paths = [WRITTEN / "data" / name for name in EXPECTED["files"]]
    log_probs, failed = bundle.log_probs(bundle.backbone(torch.device("cpu"), "float32"), paths)
    assert failed == {}
    assert np.allclose(log_probs.numpy(), EXPECTED["log_probs"], rtol=0, atol=1e-5)


def test_a_cache_is_extended(written: Path, run_extract: Extract) -> None:
    """By a second augmented pass; rows that it has are used, and stay as they are."""
    before = FeatureCache.open(written / "cache")
    keys = sorted(before.index().row_keys(1))
    rows = before.read(keys)
    weights = str(written / "tiny.safetensors")
    found = run_extract(data=written / "data", cache=written / "cache", weights=weights, passes=2)
    assert (found.computed, found.reused) == (12, 36)
    after = FeatureCache.open(written / "cache")
    assert after.index().digest == EXPECTED["set_digest"]
    assert np.array_equal(after.read(keys), rows)


@pytest.mark.parametrize(("cache", "run"), [("cache", "run"), ("reduced", "run-reduced")])
def test_a_run_is_reported_and_exported(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, run: str
) -> None:
    """The page is of its accuracy; the model of before and the one of now choose the same classes.

    The weights file lies elsewhere than the shards record, and another process does not know the tiny backbone.
    """
    monkeypatch.setattr("pipeline.model.parity._ask_fresh_process", lambda asked: json.loads(json.dumps(answer(asked))))
    monkeypatch.setattr("pipeline.commands.export.load_tensors", lambda *_: load_file(written / "tiny.safetensors"))
    page = report(ReportConfig(written / run, cache=written / cache))
    assert page.valid["top1"]["value"] == Run.load(written / run).record.valid_accuracy
    model = tmp_path / "model.safetensors"
    export(ExportConfig(written / run, model, cache=written / cache, calibrate=False))
    images = (str(written / "data" / "test"),)
    now = predict(PredictConfig(model, images, device="cpu")).predictions
    assert len(now) == 4
    if run == "run":
        then = predict(PredictConfig(WRITTEN / "model.safetensors", images, device="cpu")).predictions
        assert [one["top"][0]["label"] for one in now] == [one["top"][0]["label"] for one in then]
        assert all(one["answered"] and one["unknown_p"] is None for one in then)
