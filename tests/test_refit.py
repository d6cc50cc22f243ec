"""A head retrained on training and validation images: what it is, and what its run says about validation images."""

from pathlib import Path

import pytest
import torch
from conftest import Extract, draw_image, logged, train_config

from cache.store import FeatureCache
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.heads import SweepConfig
from pipeline.config.models import EvaluateConfig, ExportConfig
from pipeline.errors import ConfigError, RunError
from pipeline.model.prior import class_prior
from pipeline.run import Run
from pipeline.run_folder import HELD_OUT_FILE


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache with one augmented pass."""
    run_extract(passes=1)
    return tmp_path / "features"


def test_validation_figures_are_of_the_head_before(features: Path, tmp_path: Path) -> None:
    """The head is another one; the log-probabilities of validation images are those of the first one."""
    before = train_head(train_config(features, tmp_path / "before", basis="pyramid+white"))
    after = train_head(train_config(features, tmp_path / "after", basis="pyramid+white", refit=True))
    assert (before.refit, after.refit) == (False, True)
    assert after.valid_accuracy == before.valid_accuracy
    cache = FeatureCache.open(features)
    index = cache.index()
    one, two = (Run.load(tmp_path / name) for name in ("before", "after"))
    assert torch.allclose(two.log_probs(cache, index, "valid")[0], one.log_probs(cache, index, "valid")[0], atol=1e-6)
    assert not torch.allclose(two.log_probs(cache, index, "test")[0], one.log_probs(cache, index, "test")[0], atol=1e-3)
    said: list[str] = []
    assert logged(said, evaluate, EvaluateConfig(tmp_path / "after", split="valid")).top1 == before.valid_accuracy
    assert said[-1].startswith("these are scores of the head before it was retrained")


def test_the_head_has_learnt_the_validation_images(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Of a class that is grey in validation alone: the first head cannot know, the retrained one does."""
    for number, path in enumerate(sorted((data / "valid" / "1").iterdir())):
        draw_image(path, 700 + number, "grey")
    run_extract()
    settings = {"epochs": 100, "hidden": 16, "basis": "full", "dropout": 0.0}
    train_head(train_config(tmp_path / "features", tmp_path / "run", refit=True, **settings))
    cache = FeatureCache.open(tmp_path / "features")
    run, index = Run.load(tmp_path / "run"), cache.index()
    grey = [image for image in index.split("valid") if image.label == "1"]
    here = [image.label == "1" for image in index.split("valid")]
    assert run.held_out is not None
    assert (run.held_out[here].argmax(1) != 0).all()
    after = run.head(run.basis.apply(cache.read([(image.key, "pass:0") for image in grey])))
    assert (after.argmax(1) == 0).all()


@pytest.mark.parametrize("merge", [False, True])
def test_the_choice_of_a_sweep_is_retrained(features: Path, tmp_path: Path, merge: bool) -> None:
    """With its own settings, and with the seeds that are merged."""
    (tmp_path / "space.toml").write_text('basis = "pool"\nhidden = 8\nlr = 0.01\nbatch_size = 8\ndropout = 0.5\n')
    asked = {"space": tmp_path / "space.toml", "heads": 2, "epochs": 3, "seeds": 2, "merge": merge}
    result = sweep(SweepConfig(features, tmp_path / "run", refit=True, **asked))  # type: ignore[arg-type]
    run = Run.load(tmp_path / "run")
    assert run.record.refit
    assert run.held_out is not None
    assert run.head.hidden_units == result.best.config.hidden * (2 if merge else 1)


def test_class_frequencies_are_those_of_both_splits(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Of three training and six validation images of a class, nine."""
    for number in range(4):
        draw_image(data / "valid" / "1" / f"more_{number}.png", 900 + number, "1")
    run_extract()
    for name, refit in (("before", False), ("after", True)):
        train_head(train_config(tmp_path / "features", tmp_path / name, refit=refit, class_weights="balanced"))
    index = FeatureCache.open(tmp_path / "features").index()
    with pytest.raises(ConfigError, match="equally many training images"):
        class_prior(Run.load(tmp_path / "before"), index, "train")
    prior = class_prior(Run.load(tmp_path / "after"), index, "train")
    assert prior is not None
    assert prior.wanted.tolist() == pytest.approx([9 / 24, 5 / 24, 5 / 24, 5 / 24])


def test_a_run_without_its_predictions_is_damaged(features: Path, tmp_path: Path) -> None:
    """They are one of its files."""
    train_head(train_config(features, tmp_path / "run", refit=True))
    (tmp_path / "run" / HELD_OUT_FILE).unlink()
    with pytest.raises(RunError, match="is damaged"):
        Run.load(tmp_path / "run")


def test_a_temperature_for_flips_needs_images_that_were_not_seen(features: Path, tmp_path: Path) -> None:
    """Which are not there any more: refused before any work."""
    train_head(train_config(features, tmp_path / "run", refit=True))
    with pytest.raises(RunError, match="trained on its validation images too"):
        export(ExportConfig(tmp_path / "run", tmp_path / "model.safetensors", tta="flip"))
