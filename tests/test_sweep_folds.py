"""A sweep that chooses out of fold: what heads are scored on, and the run it ends in, without validation images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Extract, logged
from PIL import Image

from cache.store import FeatureCache
from pipeline.bases.trainset import TrainingSet
from pipeline.commands.cv import cv
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.report import report
from pipeline.commands.sweep import sweep
from pipeline.config.folds import CvConfig
from pipeline.config.heads import SweepConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, ReportConfig
from pipeline.cross_validation.predictions import OutOfFold
from pipeline.duplicates.near_duplicates import near_duplicates
from pipeline.errors import ConfigError, RunError
from pipeline.model.parity_worker import answer
from pipeline.reporting.confusion import class_rows
from pipeline.reporting.findings import find
from pipeline.run import Run
from pipeline.search.basis_cache import FoldedBasisCache, bases_of
from pipeline.search.journal import Journal
from pipeline.statistics.calibration import fit_temperature

SPACE = """
basis = ["pool+white", "pyramid+lda:1"]
hidden = 8
lr = [0.003, 0.01]
batch_size = 8
dropout = [0.2, 0.5]
"""


@pytest.fixture
def features(run_extract: Extract, data: Path, tmp_path: Path) -> Path:
    """A cache with one augmented pass of images that are all in train, but for those of test."""
    for path in sorted((data / "valid").rglob("*.*")):
        path.rename(data / "train" / path.parent.name / f"v_{path.name}")
    shutil.rmtree(data / "valid")
    run_extract(passes=1)
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path / "features"


def config(features: Path, **options: object) -> SweepConfig:
    """A sweep small enough for a test."""
    root = features.parent
    given: dict[str, object] = {"run": root / "run", "space": root / "space.toml", "heads": 6, "epochs": 6, "seeds": 2}
    return SweepConfig(**{"cache": features, **given, "folds": 3, **options})  # type: ignore[arg-type]


def test_a_head_is_scored_as_cross_validation_scores_it(features: Path, tmp_path: Path) -> None:
    """The same images are right, whether it was trained with others, in several goes, or by `cv`."""
    result = sweep(config(features))
    index = FeatureCache.open(features).index()
    scores = Journal.read(tmp_path / "run").scores
    for number in (0, 2, len(result.heads) - 1):
        head = result.heads[number].config
        options = {name: getattr(head, name) for name in ("hidden", "dropout", "lr", "batch_size", "basis")}
        found = cv(CvConfig(features, folds=3, epochs=6, predictions=tmp_path / f"{number}.npz", **options))
        last = scores[number].get(6)
        if last is None:
            continue
        own = OutOfFold.load(tmp_path / f"{number}.npz")
        assert own.digests.tolist() == [image.digest for image in index.split("train", "valid")]
        assert np.array_equal(last.unpacked(len(own.labels)), own.hits[0])
        assert result.heads[number].valid_accuracy == pytest.approx(found.accuracy)


@pytest.mark.parametrize("merge", [False, True])
def test_the_choice_is_trained_on_all_images(features: Path, tmp_path: Path, merge: bool) -> None:
    """And its run says of each image what heads that did not see it say: of a set without validation images."""
    result = sweep(config(features, merge=merge))
    run = Run.load(tmp_path / "run")
    index = FeatureCache.open(features).index()
    train = index.split("train")
    assert (run.record.refit, run.record.folds, result.folds) == (True, 3, 3)
    assert run.held_out is not None
    assert run.held_out.shape == (len(train), len(index.classes))
    assert torch.allclose(run.held_out.exp().sum(1), torch.ones(len(train)), atol=1e-4)
    assert run.head.hidden_units == result.best.config.hidden * (2 if merge else 1)
    said: list[str] = []
    scores = logged(said, evaluate, EvaluateConfig(tmp_path / "run", split="train"))
    assert scores.top1 == pytest.approx(run.record.valid_accuracy)
    assert any(line.startswith("these are scores of out-of-fold predictions") for line in said)
    assert scores.out_of_fold
    assert scores.in_words().startswith("train (out of fold), 20 images")
    with pytest.raises(RunError, match="score others with --split train or test"):
        evaluate(EvaluateConfig(tmp_path / "run", split="valid"))
    if merge:
        assert scores.top1 == pytest.approx(result.best.merged.valid_accuracy)
    # The head itself has seen them.
    seen = run.head(run.basis.apply(FeatureCache.open(features).read([(image.key, "pass:0") for image in train])))
    assert (seen - run.held_out).abs().max() > 1e-3


def test_a_model_and_a_page_come_from_it(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temperature is that of the out-of-fold predictions; card and page say what their figures are."""
    # A fresh process does not know the tiny backbone.
    monkeypatch.setattr("pipeline.model.parity._ask_fresh_process", lambda asked: json.loads(json.dumps(answer(asked))))
    sweep(config(features))
    run = Run.load(tmp_path / "run")
    index = FeatureCache.open(features).index()
    exported = export(ExportConfig(tmp_path / "run", tmp_path / "model.safetensors"))
    assert run.held_out is not None
    labels = torch.from_numpy(index.labels(index.split("train")))
    assert exported.calibration.temperature == pytest.approx(fit_temperature(run.held_out, labels) or 1.0)
    assert exported.calibration.ece.keys() == {"out_of_fold"}
    assert exported.parity["images"] == len({image.digest for image in index.split("train")})
    found = report(ReportConfig(tmp_path / "run"))
    assert found.valid["top1"]["value"] == pytest.approx(run.record.valid_accuracy)
    assert found.scored_by == "out-of-fold"
    assert "out-of-fold accuracy" in found.in_words()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "held-out images" in page
    assert "over 3 folds" in page
    assert "over 20 training and" in page  # what an epoch without a cache would compute
    assert "headgraft cv" not in page
    findings = find(run, FeatureCache.open(features), index, {})
    rows = class_rows(index, findings.confusion, {}, [])
    assert [row.predicted for row in rows] == [5] * 4
    assert np.mean([row.recall for row in rows]) == pytest.approx(findings.scores["mean_per_class"].value)


def test_it_resumes_with_the_same_folds_only(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is not done again."""
    record, left = Journal.record, iter(range(3))

    def stopped(journal: Journal, head: int, score: object) -> None:
        record(journal, head, score)  # type: ignore[arg-type]
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stopped)
        with pytest.raises(KeyboardInterrupt):
            sweep(config(features))
    done = Journal.read(tmp_path / "run").scores
    with pytest.raises(RunError, match="folds"):
        sweep(config(features, folds=4))
    result = sweep(config(features))
    after = Journal.read(tmp_path / "run").scores
    assert all(after[head][epochs] == score for head, by in done.items() for epochs, score in by.items())
    alone = sweep(config(features, run=tmp_path / "alone"))
    assert [head.valid_accuracy for head in result.heads] == [head.valid_accuracy for head in alone.heads]


def test_without_folds_validation_images_are_needed(features: Path) -> None:
    """As ever."""
    with pytest.raises(RunError, match="has no validation images"):
        sweep(config(features, folds=0))
    with pytest.raises(ConfigError, match="--folds is 1"):
        config(features, folds=1)
    with pytest.raises(ConfigError, match="leave out --refit"):
        config(features, refit=True)
    with pytest.raises(RunError, match="cannot make 99 folds"):
        sweep(config(features, folds=99))


def test_rows_of_all_folds_fit_or_are_refused(features: Path) -> None:
    """One sentence, before any head is trained."""
    with pytest.raises(RunError, match="rows of the folds in basis"):
        sweep(config(features, memory=18e-6))


def test_results_read_back(features: Path, tmp_path: Path) -> None:
    """The accuracy of baselines is out of fold too: no more than all images."""
    result = sweep(config(features, heads=3))
    stored = json.loads((tmp_path / "run" / "sweep.json").read_text())
    assert stored["folds"] == 3
    assert "out-of-fold accuracy" in result.in_words()
    assert 0 < result.baselines.majority < 1


def test_near_duplicates_stay_in_one_fold(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Where asked for; otherwise their number is said."""
    for label in ("1", "2"):
        source = sorted((data / "train" / label).iterdir())[0]
        with Image.open(source) as image:
            image.convert("RGB").save(data / "train" / label / "again.png")
    run_extract()
    (tmp_path / "space.toml").write_text(SPACE)
    trainset = TrainingSet.open(tmp_path / "features", None, None)
    asked = config(tmp_path / "features", group_near_duplicates=True)
    bases = bases_of(asked, trainset, 1 << 30)
    assert isinstance(bases, FoldedBasisCache)
    fold_of = {image.path: int(fold) for image, fold in zip(bases.images, bases.folds, strict=True)}
    near = near_duplicates(trainset.cache, trainset.index)
    pairs = [(pair.a, pair.b) for pair in near.pairs if pair.a in fold_of and pair.b in fold_of]
    assert pairs
    numbers = near.groups.numbers(bases.images).tolist()
    assert len(set(zip(numbers, bases.folds.tolist(), strict=True))) == len(set(numbers)) < len(numbers)
    said: list[str] = []
    logged(said, sweep, replace(asked, group_near_duplicates=False, heads=2))
    folds = bases_of(replace(asked, group_near_duplicates=False), trainset, 1 << 30)
    assert isinstance(folds, FoldedBasisCache)
    apart = {image.path: int(fold) for image, fold in zip(folds.images, folds.folds, strict=True)}
    assert any("in another fold" in line for line in said) == any(apart[a] != apart[b] for a, b in pairs)
    with pytest.raises(ConfigError, match="--group-near-duplicates is for --folds"):
        replace(asked, folds=0)
