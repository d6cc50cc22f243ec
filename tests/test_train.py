"""Stage two on a cache of the tiny backbone, and scores of a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Extract, draw_image, logged, train_config
from safetensors.torch import load, save

from cache.errors import CacheError, MissingRows
from cache.projections import save_projection
from cache.store import FeatureCache
from pipeline.bases.data import HeadData
from pipeline.commands.evaluate import evaluate
from pipeline.commands.train import train_head
from pipeline.config.heads import HeadSettings, TrainConfig
from pipeline.config.models import EvaluateConfig, ExportConfig
from pipeline.errors import ConfigError, DataChanged, PipelineError, RunError, TargetExists
from pipeline.heads.fit import class_weights
from pipeline.heads.head import Head, merge_heads
from pipeline.machine.device import CPU, computes_bfloat16
from pipeline.run import Run
from pipeline.run_folder import BASIS_FILE, HEAD_FILE
from pipeline.statistics.calibration import calibration_error
from pipeline.statistics.scoring import score


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache with one augmented pass."""
    run_extract(passes=1)
    return tmp_path / "features"


def test_a_head_learns_and_the_last_epoch_is_kept(features: Path, tmp_path: Path) -> None:
    """Colours are told apart; the head that is saved is the one whose accuracy is told."""
    result = train_head(train_config(features, tmp_path / "run", epochs=30, hidden=16))
    last = result.epochs[-1]
    assert result.valid_accuracy == last.valid_accuracy >= 0.75
    assert (last.epoch, result.valid_loss) == (30, last.valid_loss)
    scored = evaluate(EvaluateConfig(tmp_path / "run", split="valid"))
    assert scored.top1 == result.valid_accuracy
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss


def test_a_run_holds_three_files_and_what_it_was_made_from(features: Path, tmp_path: Path) -> None:
    """Class order, digests and configuration are in run.json; the head's tensors have their places' names."""
    train_head(train_config(features, tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "basis.safetensors",
        "head.safetensors",
        "run.json",
    ]
    run = Run.load(tmp_path / "run")
    cache = FeatureCache.open(features)
    assert run.classes == CLASSES
    assert run.record.base_digest == cache.manifest.base.digest
    assert run.record.set_digest == cache.index().digest
    assert run.record.config.passes == 1
    assert run.record.products == ("bfloat16" if computes_bfloat16(CPU) else "float32")
    assert [key for key, _ in run.folded_head().named_parameters()] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert run.folded_head()[0].in_features == cache.in_features == 32


@pytest.mark.parametrize("basis", ["full", "pool", "pyramid+white", "pca:4", "full+white+pca:3"])
def test_a_run_predicts_the_same_folded_and_in_its_basis(features: Path, tmp_path: Path, basis: str) -> None:
    """Also after it was loaded: within 1e-4 in log-probability."""
    train_head(train_config(features, tmp_path / "run", basis=basis))
    run = Run.load(tmp_path / "run")
    cache = FeatureCache.open(features)
    rows = cache.read([(image.key, "pass:0") for image in cache.index().images])
    with torch.inference_mode():
        inside = run.head(run.basis.apply(rows))
        folded = run.folded_head()(torch.from_numpy(rows.astype(np.float32)))
    assert float((inside - folded).abs().max()) < 1e-4


def test_the_same_seed_gives_the_same_head_byte_for_byte(features: Path, tmp_path: Path) -> None:
    """Whether the projection was just made or is read from the cache, and whatever the global generator's state."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(hash(name) % 1000)
        train_head(train_config(features, tmp_path / name, seed=seed, basis="pyramid+white"))
    a, b, c = ((tmp_path / name / "head.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "basis.safetensors").read_bytes() == (tmp_path / "b" / "basis.safetensors").read_bytes()


def test_the_projection_is_kept_and_made_anew_when_damaged(features: Path, tmp_path: Path) -> None:
    """One file for two runs; with its bytes changed, the next run still gives the same head."""
    train_head(train_config(features, tmp_path / "a"))
    train_head(train_config(features, tmp_path / "b"))
    (kept,) = (features / "projections").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    train_head(train_config(features, tmp_path / "c"))
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in "abc"]
    assert heads[0] == heads[1] == heads[2]


def test_projections_may_be_deleted_folder_and_all(features: Path, tmp_path: Path) -> None:
    """They are made again."""
    shutil.rmtree(features / "projections")
    train_head(train_config(features, tmp_path / "run"))
    assert len(list((features / "projections").iterdir())) == 1


def test_the_global_generator_is_left_alone(features: Path, tmp_path: Path) -> None:
    """Training draws from its own generators."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    train_head(train_config(features, tmp_path / "run"))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_existing_run_is_refused_unless_overwritten(features: Path, tmp_path: Path) -> None:
    """And left as it was."""
    train_head(train_config(features, tmp_path / "run"))
    before = (tmp_path / "run" / "head.safetensors").read_bytes()
    with pytest.raises(TargetExists):
        train_head(train_config(features, tmp_path / "run", seed=1))
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == before
    train_head(train_config(features, tmp_path / "run", seed=1, overwrite=True))
    assert (tmp_path / "run" / "head.safetensors").read_bytes() != before


def test_a_run_cannot_be_a_file(features: Path, tmp_path: Path) -> None:
    """Also with --overwrite it is an error of ours, and the file stays."""
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError):
        train_head(train_config(features, tmp_path / "run", overwrite=True))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_changed_is_noticed(features: Path, data: Path, tmp_path: Path) -> None:
    """A relabelled image stops training with what to do; extracting again, it goes."""
    (data / "train" / "1" / "image_0.jpg").rename(data / "train" / "2" / "was_1.jpg")
    with pytest.raises(DataChanged) as caught:
        train_head(train_config(features, tmp_path / "run"))
    assert "train/1/image_0.jpg is gone" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_out_of_reach_does_not_matter(features: Path, data: Path, tmp_path: Path) -> None:
    """Training needs no images."""
    shutil.rmtree(data)
    assert train_head(train_config(features, tmp_path / "run")).epochs


def test_validation_is_needed(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Without valid/ there is no head."""
    shutil.rmtree(data / "valid")
    run_extract()
    with pytest.raises(RunError, match="valid/"):
        train_head(train_config(tmp_path / "features", tmp_path / "run"))


def test_one_class_or_one_image_is_refused_with_what_to_do(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Before anything is fitted."""
    content = (data / "train" / "1" / "image_0.jpg").read_bytes()
    for split in ("train", "valid"):
        for path in (data / split).rglob("*.*"):
            path.unlink()
            path.with_suffix(".jpg").write_bytes(content)
    run_extract()
    with pytest.raises(RunError, match="one image"):
        train_head(train_config(tmp_path / "features", tmp_path / "run"))
    for split in ("train", "valid", "test"):
        for label in CLASSES[1:]:
            shutil.rmtree(data / split / label)
    run_extract()
    with pytest.raises(RunError, match="'1'"):
        train_head(train_config(tmp_path / "features", tmp_path / "run"))


@pytest.mark.parametrize("memory", [None, 1e-9], ids=["in memory", "streamed"])
@pytest.mark.parametrize("basis", ["pyramid+white", "pyramid+white+lda", "pyramid+lda"])
def test_one_image_per_class_trains(
    run_extract: Extract, data: Path, tmp_path: Path, basis: str, memory: float | None
) -> None:
    """Its clean view alone has no spread within a class to whiten by, which is said; an augmented pass has."""
    for path in (data / "train").rglob("image_[12].*"):
        path.unlink()
    run_extract()
    config = train_config(tmp_path / "features", tmp_path / "run", basis=basis, memory=memory)
    lines: list[str] = []
    assert logged(lines, train_head, config).epochs
    assert any("not whitened" in line for line in lines) == ("white" in basis)
    run_extract(passes=1)
    lines.clear()
    assert logged(lines, train_head, replace(config, overwrite=True)).epochs
    assert not any("not whitened" in line for line in lines)


def test_leaks_are_counted(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Distinct contents that stand in two splits, and that have two labels."""
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "valid" / "1" / "leak.jpg")
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "test" / "1" / "leak.jpg")
    shutil.copy(data / "train" / "10" / "image_0.png", data / "train" / "2" / "also.png")
    run_extract()
    lines: list[str] = []
    result = logged(lines, train_head, train_config(tmp_path / "features", tmp_path / "run"))
    assert result.leaks == {"across_splits": 1, "two_labels": 1}
    assert any("identical images" in line for line in lines)


def test_a_class_absent_from_validation_is_no_fault(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Its output stays in its place; that no head is chosen for it is said and counted."""
    shutil.rmtree(data / "valid" / "10")
    run_extract()
    lines: list[str] = []
    config = train_config(tmp_path / "features", tmp_path / "run", epochs=30, hidden=16)
    assert logged(lines, train_head, config).classes_without_validation == 1
    assert any("1 of 4 classes" in line and "'10'" in line for line in lines)
    assert evaluate(EvaluateConfig(tmp_path / "run", split="train")).top1 >= 0.75


def test_classes_of_one_or_two_training_images_are_named(run_extract: Extract, tmp_path: Path, data: Path) -> None:
    """With how many they have; copies of one image count once."""
    for name in ("image_0", "image_1"):
        next((data / "train" / "10").glob(f"{name}.*")).unlink()
    other, copied = sorted((data / "train" / "2").iterdir())[:2]
    copied.write_bytes(other.read_bytes())
    run_extract()
    lines: list[str] = []
    logged(lines, train_head, train_config(tmp_path / "features", tmp_path / "run"))
    assert [line for line in lines if "'10' (1), '2' (2)" in line]


def test_a_run_of_another_cache_is_refused(features: Path, run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Other settings, or another set of the same settings, are not scored."""
    train_head(train_config(features, tmp_path / "run"))
    run_extract(cache=tmp_path / "other", image_size=64)
    with pytest.raises(RunError, match="--cache"):
        evaluate(EvaluateConfig(tmp_path / "run", cache=tmp_path / "other"))
    draw_image(data / "test" / "1" / "more.png", 700)
    run_extract(passes=1)
    with pytest.raises(RunError, match="--split-seed"):
        evaluate(EvaluateConfig(tmp_path / "run"))
    with pytest.raises(CacheError, match="nowhere"):
        evaluate(EvaluateConfig(tmp_path / "run", cache=tmp_path / "nowhere"))


def test_a_moved_cache_is_found_by_name(features: Path, tmp_path: Path) -> None:
    """With --cache, scores are the same."""
    train_head(train_config(features, tmp_path / "run"))
    first = evaluate(EvaluateConfig(tmp_path / "run"))
    moved = features.rename(tmp_path / "moved")
    assert evaluate(EvaluateConfig(tmp_path / "run", cache=moved)) == first


def test_every_scoring_is_written_into_the_run(features: Path, tmp_path: Path) -> None:
    """A split looked at twice has two entries."""
    train_head(train_config(features, tmp_path / "run"))
    for split in ("test", "test", "valid"):
        evaluate(EvaluateConfig(tmp_path / "run", split=split))
    scored = json.loads((tmp_path / "run" / "run.json").read_text())["scored"]
    assert [entry["split"] for entry in scored] == ["test", "test", "valid"]


def test_heads_of_other_seeds_are_scored_as_if_each_was_trained(features: Path, tmp_path: Path) -> None:
    """The run stays as it is; a head that one seed does not make, and a model, are refused with the reason."""
    config = train_config(features, tmp_path / "run", seed=3)
    train_head(config)
    found = evaluate(EvaluateConfig(config.run, split="valid", seeds=3))
    assert found.seeds is not None
    each = [train_head(replace(config, run=tmp_path / str(seed), seed=seed)).valid_accuracy for seed in (3, 4, 5)]
    assert found.seeds.top1 == each
    assert found.seeds.mean == pytest.approx(np.mean(each))
    assert found.seeds.std == pytest.approx(np.std(each, ddof=1))
    assert f"3 seeds: top-1 {np.mean(each):.2%} ± " in found.in_words()
    assert Run.load(config.run).record.config.seed == 3
    train_head(replace(config, run=tmp_path / "all", refit=True))
    with pytest.raises(ConfigError, match="trained on validation images too: leave it out"):
        evaluate(EvaluateConfig(tmp_path / "all", seeds=2))
    (tmp_path / "model").touch()
    with pytest.raises(ConfigError, match="--seeds is not for"):
        evaluate(EvaluateConfig(tmp_path / "model", seeds=2))


@pytest.mark.parametrize("name", ["run.json", "head.safetensors", "basis.safetensors"])
def test_a_damaged_run_is_refused(features: Path, tmp_path: Path, name: str) -> None:
    """Each of its files cut short is one clear error."""
    train_head(train_config(features, tmp_path / "run"))
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RunError, match="--overwrite"):
        Run.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value"),
    [("set", None), ("cache", 3), ("classes", "roses"), ("classes", ["1", "1", "1"]), ("classes", [[], [], []]),
     ("config", []), ("files", {}), ("scored", 1), ("valid_accuracy", "good"), ("versions", [])],
)  # fmt: skip
def test_a_record_with_a_field_of_another_type_is_refused(
    name: str, value: object, features: Path, tmp_path: Path
) -> None:
    """run.json edited by hand or by another program: one clear error, also where the field is not there at all."""
    train_head(train_config(features, tmp_path / "run"))
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    for changed in ({**record, name: value}, {key: kept for key, kept in record.items() if key != name}):
        file.write_text(json.dumps(changed))
        with pytest.raises(RunError, match="--overwrite"):
            Run.load(tmp_path / "run")


def test_a_head_for_another_basis_is_refused(features: Path, tmp_path: Path) -> None:
    """Where files and record were exchanged together, the widths still tell."""
    for run, basis in (("a", "pool"), ("b", "pyramid")):
        train_head(train_config(features, tmp_path / run, basis=basis))
    shutil.copy(tmp_path / "a" / HEAD_FILE, tmp_path / "b" / HEAD_FILE)
    records = {run: json.loads((tmp_path / run / "run.json").read_text()) for run in ("a", "b")}
    records["b"]["files"][HEAD_FILE] = records["a"]["files"][HEAD_FILE]
    (tmp_path / "b" / "run.json").write_text(json.dumps(records["b"]))
    with pytest.raises(RunError, match="--overwrite"):
        evaluate(EvaluateConfig(tmp_path / "b"))


def test_a_head_larger_than_memory_is_refused(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than asked of the system, which may end the process."""
    monkeypatch.setattr("pipeline.heads.fit.available_bytes", lambda: 10**6)
    with pytest.raises(RunError, match=r"60000 .*--hidden"):
        train_head(train_config(features, tmp_path / "run", hidden=60_000, memory=1.0))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """An empty folder, given to evaluate."""
    with pytest.raises(RunError, match=r"run\.json"):
        evaluate(EvaluateConfig(tmp_path))


@pytest.mark.parametrize(
    "option",
    [{"hidden": -1}, {"epochs": 0}, {"batch_size": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"lr": 0.0},
     {"lr": float("nan")}, {"weight_decay": -1.0}, {"passes": -1}, {"basis": "middle"}, {"hidden": 10**12},
     {"batch_size": 10**30}, {"epochs": 10**9}, {"passes": 10**9}, {"seed": -1}, {"seed": 1 << 80},
     {"memory": float("inf")}, {"memory": float("nan")}, {"basis": "pool+white:" + "9" * 400},
     {"basis": "pool+pca:" + "9" * 5000}],
)  # fmt: skip
def test_values_outside_their_range_are_refused(option: dict[str, object]) -> None:
    """When the configuration is made, before any work."""
    with pytest.raises(PipelineError):
        TrainConfig(Path("features"), Path("run"), **option)  # type: ignore[arg-type]


def test_a_head_is_linear_relu_dropout_linear_logsoftmax() -> None:
    """In that order; its outputs are log-probabilities."""
    head = Head.new(6, 5, 3, 0.5, generator=torch.Generator().manual_seed(0))
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Dropout", "Linear", "LogSoftmax"]
    with torch.inference_mode():
        assert torch.allclose(head.eval()(torch.randn(4, 6)).exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_head_comes_back_from_its_tensors(hidden: int) -> None:
    """Sizes are read from the tensors."""
    head = Head.new(6, hidden, 3, 0.5).eval()
    x = torch.randn(4, 6)
    again = Head.from_tensors(dict(head.state_dict()))
    assert (again.in_features, again.hidden_units, again.num_classes) == (6, hidden, 3)
    with torch.inference_mode():
        assert torch.equal(again(x), head(x))


def test_heads_without_a_hidden_layer_merge_into_their_mean() -> None:
    """The mean of the logits is that of the weights; heads that were merged stay as they were."""
    heads = [Head.new(6, 0, 3, generator=torch.Generator().manual_seed(seed)).eval() for seed in range(3)]
    x = torch.randn(4, 6)
    with torch.inference_mode():
        expected = torch.log_softmax(torch.stack([head.last(x) for head in heads]).mean(0), 1)
        merged = merge_heads(heads)
        assert torch.allclose(merged(x), expected, atol=1e-6)
    assert merged.hidden_units == 0


def test_logistic_regression_is_a_head(features: Path, tmp_path: Path) -> None:
    """Two tensors; it learns, and is folded, temperature-scaled and prior-corrected as any head."""
    result = train_head(train_config(features, tmp_path / "run", hidden=0, epochs=30, basis="pyramid+white"))
    run = Run.load(tmp_path / "run")
    assert result.valid_accuracy == evaluate(EvaluateConfig(tmp_path / "run", split="valid")).top1 >= 0.75
    assert load((tmp_path / "run" / HEAD_FILE).read_bytes()).keys() == {"head.0.weight", "head.0.bias"}
    assert run.record.config.hidden == 0
    cache = FeatureCache.open(features)
    rows = cache.read([(image.key, "pass:0") for image in cache.index().images])
    inside, folded = run.head(run.basis.apply(rows)), run.folded_head()
    assert folded.architecture == "Linear(32, 4), LogSoftmax"
    assert float((inside - folded(torch.from_numpy(rows.astype(np.float32)))).abs().max()) < 1e-4
    even, wanted = torch.full((4,), 0.25), torch.tensor([0.4, 0.3, 0.2, 0.1])
    corrected = run.head.with_class_prior(even, wanted, 1.7).temperature_scaled(1.7)
    expected = torch.log_softmax(inside / 1.7 + wanted.log(), 1)
    assert torch.allclose(corrected(run.basis.apply(rows)), expected, atol=1e-5)


def test_scores_are_what_a_count_by_hand_gives() -> None:
    """Seven classes, eight images, one class absent: top-1, top-5 and the mean over the classes that are there."""
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5])
    places = torch.tensor([0, 0, 1, 1, 2, 3, 6, 6])  # the last two are wrong, and so is the third
    logits = torch.zeros(8, 7)
    logits[torch.arange(8), places] = 3.0
    logits += torch.arange(7) * -0.01
    result = score(torch.log_softmax(logits, 1), labels, "test")
    assert result.images == 8
    assert result.top1 == pytest.approx(5 / 8)
    assert result.mean_per_class == pytest.approx((2 / 3 + 1 + 1 + 1 + 0 + 0) / 6)
    order = logits.argsort(dim=1, descending=True)[:, :5]
    assert result.top5 == pytest.approx(float((order == labels[:, None]).any(1).float().mean()))
    for name, (low, high) in result.intervals.items():
        assert 0 <= low < getattr(result, name) < high <= 1


def test_scores_of_one_class_and_of_few_classes_are_defined() -> None:
    """All images of one class; with no more than five classes, top-5 says nothing and is none."""
    seven = torch.log_softmax(torch.eye(7)[torch.zeros(4, dtype=torch.long)] * 9, 1)
    assert score(seven, torch.zeros(4, dtype=torch.long), "test").top1 == 1
    four = torch.log_softmax(torch.eye(4), 1)
    few = score(four, torch.tensor([1, 0, 3, 2]), "test")
    assert few.top5 is None
    assert few.intervals.keys() == {"top1", "mean_per_class"}


def test_calibration_error_over_15_bins_is_as_defined() -> None:
    """Weighted gaps between accuracy and mean confidence of each bin."""
    confidence = np.array([0.95, 0.97, 0.50, 0.52, 1.0])
    correct = np.array([True, False, True, True, True])
    high = abs(correct[[0, 1, 4]].mean() - confidence[[0, 1, 4]].mean()) * 3
    middle = abs(correct[2:4].mean() - confidence[2:4].mean()) * 2
    assert calibration_error(confidence, correct) == pytest.approx((high + middle) / 5)


def test_more_passes_than_there_are_say_what_to_do(features: Path, tmp_path: Path) -> None:
    """Extracting "again" would not help: how many there are, and both ways on."""
    with pytest.raises(MissingRows, match=r"\b1\b.*--passes 4"):
        train_head(train_config(features, tmp_path / "run", passes=4))


def test_overwriting_replaces_runs_only(features: Path, data: Path, tmp_path: Path) -> None:
    """A folder of images given by mistake stays as it is; what a killed training left does not stand in the way."""
    before = sorted(data.rglob("*"))
    with pytest.raises(RunError, match="--run"):
        train_head(train_config(features, data, overwrite=True))
    assert sorted(data.rglob("*")) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / HEAD_FILE).write_bytes(b"half")
    train_head(train_config(features, tmp_path / "run", overwrite=True))
    Run.load(tmp_path / "run")


def test_one_class_is_nothing_to_train_on(run_extract: Extract, tmp_path: Path) -> None:
    """Everything would be right."""
    for split in ("train", "valid"):
        draw_image(tmp_path / "one" / split / "rose" / "a.png", 1)
    run_extract(data=tmp_path / "one")
    with pytest.raises(RunError, match="'rose'"):
        train_head(train_config(tmp_path / "features", tmp_path / "run"))


def test_options_that_a_target_has_no_use_for_are_refused(features: Path, tmp_path: Path) -> None:
    """Rather than ignored."""
    train_head(train_config(features, tmp_path / "run"))
    for unused in ({"data": tmp_path}, {"precision": "float32"}, {"device": "cpu"}):
        with pytest.raises(ConfigError, match="/run"):
            evaluate(EvaluateConfig(tmp_path / "run", **unused))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="--cache"):
        evaluate(EvaluateConfig(tmp_path / "model.safetensors", cache=features))
    with pytest.raises(RunError, match="none"):
        evaluate(EvaluateConfig(tmp_path / "none"))


def test_paths_may_be_given_as_text(features: Path, tmp_path: Path) -> None:
    """As most callers from Python do."""
    config = TrainConfig(cache=str(features), run=str(tmp_path / "run"))  # type: ignore[arg-type]
    assert (config.cache, config.run) == (features, tmp_path / "run")
    assert ExportConfig(run="a", model="b", names="c").names == Path("c")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [HEAD_FILE, BASIS_FILE])
def test_parts_of_another_run_are_refused(name: str, features: Path, tmp_path: Path) -> None:
    """A head behind another basis would still give numbers."""
    for seed, run in enumerate(("a", "b")):
        train_head(train_config(features, tmp_path / run, seed=seed, passes=seed, basis="pyramid+white"))
    shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    with pytest.raises(RunError, match=name):
        Run.load(tmp_path / "b")


def test_weights_that_are_no_numbers_are_not_kept(features: Path, tmp_path: Path) -> None:
    """A rate beyond all sense: the loss of the only epoch is taken before its last step, the weights after."""
    for option in ({"lr": 1e30}, {"weight_decay": 1e300}):
        with pytest.raises(RunError, match="--lr"):
            train_head(train_config(features, tmp_path / "run", epochs=1, **option))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change", ["no tensors", "no rows", "few rows", "other type", "flat", "other basis", "shuffled"]
)
def test_a_projection_that_does_not_agree_with_the_cache_is_made_again(
    change: str, features: Path, tmp_path: Path
) -> None:
    """Even where its digest holds: the run is the same as before."""
    train_head(train_config(features, tmp_path / "a", basis="pool"))
    (kept,) = (features / "projections").glob("*.safetensors")
    tensors = load(kept.read_bytes())
    source = kept.name.partition("-")[0]
    kept.unlink()
    rows = tensors.pop("rows")
    changed = {
        "no tensors": b"nothing",
        "no rows": save(tensors),
        "few rows": save({"rows": rows[:3].contiguous(), **tensors}),
        "other type": save({"rows": rows.double(), **tensors}),
        "flat": save({"rows": rows.flatten(), **tensors}),
        "other basis": save({"rows": rows[:, :2].contiguous()}),
        "shuffled": save({"rows": rows.flip(0).contiguous(), **tensors}),
    }
    save_projection(features, source, changed[change])
    train_head(train_config(features, tmp_path / "b", basis="pool"))
    assert (tmp_path / "a" / "head.safetensors").read_bytes() == (tmp_path / "b" / "head.safetensors").read_bytes()


def test_a_set_without_training_images_is_refused(features: Path, tmp_path: Path) -> None:
    """As where none of them could be decoded."""
    cache = FeatureCache.open(features)
    known = cache.index()
    cache.save_index(replace(known, images=known.split("valid"), data="/none", root="/none"))
    with pytest.raises(RunError, match="no training images"):
        train_head(train_config(features, tmp_path / "run"))


def test_balanced_classes_weigh_the_same(features: Path) -> None:
    """In inverse proportion to their images, 1 on average over the images."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    data = HeadData(torch.zeros(6, 4), torch.arange(6)[:, None], labels, torch.tensor([0]), torch.tensor([0]), 3)
    weights = class_weights(HeadSettings(class_weights="balanced"), data)
    assert weights is not None
    assert torch.allclose(weights, torch.tensor([2 / 3, 2.0, 1.0]))
    assert float(weights[labels].mean()) == pytest.approx(1)
    assert class_weights(HeadSettings(), data) is None
