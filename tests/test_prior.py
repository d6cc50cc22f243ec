"""The class prior of probabilities: what a correction adds, and what it brings on classes of unequal size."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, Extract, require_weights, train_config
from torch.nn.functional import nll_loss

from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import ExportConfig
from pipeline.errors import ConfigError
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng
from pipeline.model.file import load_model
from pipeline.model.prior import class_prior
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature, error_of, fit_temperature


def test_probabilities_are_multiplied_by_the_ratio_of_priors() -> None:
    """And normalised: Bayes' rule; back again is where it began."""
    head = Head.new(6, 5, 3, generator=torch.Generator().manual_seed(0)).eval()
    trained, wanted = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.6, 0.3, 0.1])
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = head(rows)
        expected = before.double().exp() * wanted.double() / trained.double()
        found = head.with_class_prior(trained, wanted)(rows)
        assert torch.allclose(found.double().exp(), expected / expected.sum(1, keepdim=True), atol=1e-6)
        back = head.with_class_prior(trained, wanted).with_class_prior(wanted, trained)
        assert torch.allclose(back(rows), before, atol=1e-5)


def test_a_balanced_head_is_calibrated_for_the_frequencies_it_met() -> None:
    """Three overlapping classes, 80, 15 and 5 % of the images: less loss and calibration error, better accuracy."""
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.tensor([0.80, 0.15, 0.05])
    centres = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.multinomial(frequencies, count, replacement=True, generator=generator)
        return centres[labels] + torch.randn(count, 2, generator=generator), labels

    (rows, labels), (others, truth) = drawn(4000), drawn(4000)
    weights = len(labels) / (3 * torch.bincount(labels, minlength=3))
    shape = HeadShape(2, 32, 3, 10 * math.ceil(4000 / 64))
    group = HeadGroup([HeadState.new(HeadHyperparameters(1e-2, 0.0, 0.0, 0), shape)], shape, weights)
    for epoch in range(1, 11):
        order = torch.randperm(4000, generator=shuffle_rng(0, epoch)).split(64)
        group.epoch((rows[part], labels[part]) for part in order)
    head = Head.from_tensors(group.weights(0))
    counts = torch.bincount(labels, minlength=3).double()
    corrected = head.with_class_prior(torch.full((3,), 1 / 3), counts / counts.sum())
    before, after = head(others), corrected(others)
    assert error_of(after, truth) < 0.5 * error_of(before, truth)
    assert float((before.exp().mean(0) - frequencies).abs().max()) > 0.1
    assert float((after.exp().mean(0) - frequencies).abs().max()) < 0.02
    assert float(nll_loss(after, truth)) < 0.8 * float(nll_loss(before, truth))
    assert float((after.argmax(1) == truth).double().mean()) > float((before.argmax(1) == truth).double().mean())


def test_a_temperature_and_a_prior_are_found_where_both_are_needed() -> None:
    """Logits that are 3 times too sure, of a head for equal classes: each is undone in its place."""
    generator = torch.Generator().manual_seed(0)
    logits, frequencies = 2 * torch.randn(4000, 3, generator=generator), torch.tensor([0.8, 0.15, 0.05])
    shift = (3 * frequencies).log()
    labels = torch.multinomial(torch.softmax(logits + shift, 1), 1, generator=generator)[:, 0]
    found = fit_temperature(torch.log_softmax(3 * logits, 1), labels, shift)
    assert found == pytest.approx(3, rel=0.1)
    assert error_of(at_temperature(torch.log_softmax(3 * logits, 1), 3.0, shift), labels) < 0.03


@pytest.fixture
def uneven(run_extract: Extract, data: Path) -> Path:
    """A cache of 3, 1, 3 and 3 training images."""
    for name in ("image_1.png", "image_1.jpg", "image_2.png", "image_2.jpg"):
        (data / "train" / "10" / name).unlink(missing_ok=True)
    run_extract()
    return data.parent / "features"


def run_of(cache: Path, weights: str) -> Run:
    """A trained run."""
    path = cache.parent / f"run-{weights}"
    train_head(train_config(cache, path, class_weights=weights, epochs=1))
    return Run.load(path)


@pytest.mark.parametrize(("weights", "prior"), [("balanced", "train"), ("none", "uniform")])
def test_what_a_head_was_trained_for_decides_what_is_added(uneven: Path, weights: str, prior: str) -> None:
    """A balanced head for equal classes, another for the images it met; the run's own head stays."""
    run = run_of(uneven, weights)
    index = run.open_cache(None).index()
    known = class_prior(run, index, prior)
    assert known is not None
    assert index.classes == CLASSES
    ratio = 4 * torch.tensor([0.3, 0.1, 0.3, 0.3])
    added = ratio.log() if prior == "train" else -ratio.log()
    for temperature in (1.0, 2.5):
        found = known.corrected(run, temperature).head.state_dict()["3.bias"]
        assert torch.allclose(found - run.head.state_dict()["3.bias"], temperature * added, atol=1e-5)
    assert class_prior(run, index, "none") is None


@pytest.mark.parametrize(("weights", "prior"), [("balanced", "uniform"), ("none", "train")])
def test_a_correction_that_changes_nothing_is_refused(uneven: Path, weights: str, prior: str) -> None:
    """With the reason; before anything is computed or written."""
    run = run_of(uneven, weights)
    with pytest.raises(ConfigError, match=f"--class-prior {prior} .*{weights}"):
        export(ExportConfig(run.path, uneven.parent / "model.safetensors", class_prior=prior))
    assert not (uneven.parent / "model.safetensors").exists()


def test_equally_many_images_leave_nothing_to_correct(run_extract: Extract, tmp_path: Path) -> None:
    """As in a set of equal classes; an unknown prior is wrong usage."""
    run_extract()
    run = run_of(tmp_path / "features", "balanced")
    with pytest.raises(ConfigError, match="equally many training images"):
        export(ExportConfig(run.path, tmp_path / "model.safetensors", class_prior="train"))
    with pytest.raises(ConfigError, match="--class-prior is 'valid'"):
        ExportConfig(run.path, tmp_path / "model.safetensors", class_prior="valid")


@pytest.mark.real
def test_a_corrected_model_passes_the_gate_and_says_so(data: Path, tmp_path: Path) -> None:
    """Its log-probabilities are those of the corrected head at the temperature, which is fitted after."""
    require_weights("alexnet")
    shutil.rmtree(data / "test")
    for path in [*(data / "train" / "10").iterdir()][1:]:
        path.unlink()
    settings = {"backbone": "alexnet", "image_size": 64, "precision": "float32", "device": "cpu"}
    extract(ExtractConfig(data, tmp_path / "features", passes=1, **settings))  # type: ignore[arg-type]
    run = run_of(tmp_path / "features", "balanced")
    results = {
        prior: export(ExportConfig(run.path, tmp_path / f"{prior}.safetensors", class_prior=prior, calibrate=False))
        for prior in ("none", "train")
    }
    assert results["train"].parity["max_abs_diff"] <= 1e-4
    assert results["train"].class_prior == "train"
    models = {prior: load_model(tmp_path / f"{prior}.safetensors") for prior in results}
    assert {prior: model.card.class_prior for prior, model in models.items()} == {"none": "none", "train": "train"}
    paths = sorted((data / "valid").rglob("*.*"))
    plain, corrected = (model.on("cpu", "float32").log_probs(paths) for model in models.values())
    expected = torch.log_softmax(plain + torch.tensor([0.3, 0.1, 0.3, 0.3]).log(), 1)
    assert torch.allclose(corrected, expected, atol=1e-5)
    calibrated = export(ExportConfig(run.path, tmp_path / "both.safetensors", class_prior="train"))
    assert calibrated.parity["max_abs_diff"] <= 1e-4
