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
from conftest import REPOSITORY, train_config

from cache.check import verify
from cache.manifest import json_digest
from cache.store import FeatureCache
from pipeline.commands.evaluate import evaluate
from pipeline.commands.train import train_head
from pipeline.config.models import EvaluateConfig
from pipeline.model.file import load_model
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
