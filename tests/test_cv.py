"""Cross-validation: folds, bases and heads that see nothing of what they predict, and an interval that holds."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, Extract, Times, grouped_table, logged, some_rows, train_config
from hypothesis import given
from hypothesis import strategies as st
from test_basis import NAMES, SHAPES, in_blocks
from torch import Tensor

from cache.index import ImageRecord
from cache.store import FeatureCache
from cli import main
from pipeline.bases.basis import Basis
from pipeline.bases.data import HeadData
from pipeline.bases.fit import fit_basis, start_basis
from pipeline.bases.sums import RegionSums, basis_of_sums, block_of
from pipeline.basis_name import BasisName
from pipeline.commands.curve import curve
from pipeline.commands.cv import cv
from pipeline.commands.evaluate import evaluate
from pipeline.commands.report import report
from pipeline.commands.train import train_head
from pipeline.config.folds import CurveConfig, CvConfig
from pipeline.config.heads import HeadSettings
from pipeline.config.models import EvaluateConfig, ReportConfig
from pipeline.cross_validation.predictions import SEARCHED, OutOfFold, compared
from pipeline.cross_validation.rows import ImageRows
from pipeline.cross_validation.training import out_of_fold
from pipeline.duplicates.near_duplicates import identical_files
from pipeline.errors import ConfigError, RunError
from pipeline.heads.fit import class_weights, hyperparameters_of, shape_of
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.row_layout import RowLayout
from pipeline.search.basis_cache import FoldedBasisCache
from pipeline.statistics.folds import folds_of_groups, stratified_folds
from pipeline.statistics.groups import join
from pipeline.statistics.intervals import accuracies

SETTINGS = HeadSettings(hidden=8, lr=1e-2, batch_size=8, basis="full")


def record(number: int, label: str, group: str = "") -> ImageRecord:
    """An image that no file is needed for."""
    return ImageRecord(f"{number}.jpg", f"{number * 2654435761 % 2**256:064x}", label, "train", 1, 0, group)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=30, max_size=90), st.integers(0, 2))
def test_folds_cut_no_group_and_spread_classes(images: list[tuple[int, int]], repeat: int) -> None:
    """Where images are alone, no class is in one fold with two images more than in another."""
    labels = torch.tensor([label for label, _ in images])
    grouped = [record(n, str(label), f"{group}") for n, (label, group) in enumerate(images)]
    folds = stratified_folds(grouped, labels, join(grouped), 5, repeat)
    places = {(one.group, int(fold)) for one, fold in zip(grouped, folds, strict=True)}
    assert set(Counter(group for group, _ in places).values()) == {1}
    alone = [record(n, str(label)) for n, (label, _) in enumerate(images)]
    folds = stratified_folds(alone, labels, join(alone), 5, repeat)
    for label in labels.unique():
        counts = torch.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_another_repeat_has_other_folds() -> None:
    """And the same one the same, whatever the order of the images."""
    images = [record(n, str(n % 3)) for n in range(60)]
    labels = torch.arange(60) % 3
    first, again, other = (stratified_folds(images, labels, join(images), 5, repeat) for repeat in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = stratified_folds([images[place] for place in order], labels[order], join(images), 5, 1)
    assert torch.equal(shuffled, first[order])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_basis_by_subtraction_is_the_one_fitted_from_scratch(name: str, shape: tuple[int, ...]) -> None:
    """The same rows in it, but for rotations and signs that no head depends on."""
    count, left = 60, slice(20, None)
    rows, labels = np.abs(some_rows(count, int(np.prod(shape)))) + np.float16(0.1), torch.arange(count) % 3
    layout = RowLayout.of(shape)
    start = start_basis(name, layout)
    x = start.apply(rows)
    block = block_of(BasisName.parse(name), layout, x.shape[1])
    assert block is not None
    whole, part = (
        RegionSums.of(in_blocks(x[some], labels[some])(), x.shape[1], block, 3)
        for some in (slice(0, count), slice(0, 20))
    )
    found = basis_of_sums(start, whole - part, layout)
    expected = fit_basis(start, in_blocks(x[left], labels[left]), 3, layout)
    assert [type(stage) for stage in found.stages] == [type(stage) for stage in expected.stages]
    one, other = (basis.apply(rows).double() for basis in (found, expected))
    assert (one @ one.T - other @ other.T).abs().max() < 1e-3 * (other @ other.T).abs().max()


def test_rows_with_vectors_before_a_map_are_fitted_by_sums() -> None:
    """Each vector by itself, as row by row."""
    layout, labels = RowLayout(4, (3, 3), 1), torch.arange(50) % 3
    rows = some_rows(50, layout.in_features)
    for name in ("pyramid+white", "full+white", "cls+white", "full+white+lda"):
        start = start_basis(name, layout)
        x = start.apply(rows)
        block = block_of(BasisName.parse(name), layout, x.shape[1])
        assert block is not None
        found = basis_of_sums(start, RegionSums.of(in_blocks(x, labels)(), x.shape[1], block, 3), layout)
        expected = fit_basis(start, in_blocks(x, labels), 3, layout)
        one, other = (basis.apply(rows).double() for basis in (found, expected))
        assert (one @ one.T - other @ other.T).abs().max() < 1e-3 * (other @ other.T).abs().max()


def head_data(count: int, seed: int, width: int = 12) -> HeadData:
    """Rows of three classes in float64, two views of each image."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2 * count + 5, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (count,), generator=generator)
    views = torch.arange(2 * count).view(count, 2)
    return HeadData(rows, views, labels, torch.arange(2 * count, 2 * count + 5), torch.zeros(5, dtype=torch.int64), 3)


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("hidden", [8, 0])
def test_heads_side_by_side_are_those_trained_alone(hidden: int, weights: str) -> None:
    """On rows of their own, with batches of other lengths and another number of them: to 1e-10 in float64."""
    datas = [head_data(count, count) for count in (29, 30, 33, 31)]
    settings = replace(SETTINGS, hidden=hidden, class_weights=weights)
    steps = [steps_of(data, settings, 4) for data in datas]
    found = fit_side_by_side(datas, settings, steps, [3] * 4, dtype=torch.float64)
    for head, data in zip(found, datas, strict=True):
        shape = shape_of(settings, data, 4)
        state = HeadState.new(hyperparameters_of(settings, 3), shape, torch.float64)
        alone = HeadGroup([state], shape, class_weights(settings, data))
        for epoch in range(1, 5):
            alone.epoch(data.batches(settings.batch_size, shuffle_rng(3, epoch)))
        expected = Head.from_tensors(alone.weights(0)).double()
        assert (head(data.rows) - expected(data.rows)).abs().max() < 1e-10


def image_rows(count: int, num_classes: int, seed: int, basis: str = "full", apart: float = 1.5) -> ImageRows:
    """Clean rows of classes around centres that `seed` draws, 8 features."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 8, generator=generator) * apart
    labels = torch.randint(num_classes, (count,), generator=generator)
    rows = centres[labels] + torch.randn(count, 8, generator=generator)
    layout = RowLayout(8)
    return ImageRows(start_basis(basis, layout), layout, num_classes, rows, torch.arange(count)[:, None], labels)


@pytest.mark.parametrize("basis", ["full+white", "full+lda", "full+white+lda", "full+pca:3"])
def test_labels_and_rows_of_a_fold_change_nothing_that_predicts_it(basis: str) -> None:
    """Other labels, and rows turned round: the basis and the head of the others are the same."""
    rows = image_rows(90, 3, 0, basis)
    folds = torch.arange(90) % 3
    before = out_of_fold(rows, folds, SETTINGS, 3, 0, 1 << 30)
    held_out = folds == 1
    changed = replace(rows, labels=torch.where(held_out, 2 - rows.labels, rows.labels))
    after = out_of_fold(changed, folds, SETTINGS, 3, 0, 1 << 30)
    assert np.abs(after[held_out] - before[held_out]).max() < 5e-2
    assert np.abs(after[~held_out] - before[~held_out]).max() > 0.2
    other = replace(rows, rows=torch.where(held_out[:, None], 30 - rows.rows, rows.rows))
    every = torch.arange(90)
    one, two = (some.basis_without(some.sums(every), every[held_out]) for some in (rows, other))
    for first, second in zip(one.tensors().values(), two.tensors().values(), strict=True):
        assert (first.abs() - second.abs()).abs().max() < 1e-3


def test_heads_that_run_away_are_refused(features: Path) -> None:
    """With what to do, as train-head says it; nothing is written."""
    with pytest.raises(RunError, match=r"became NaN or infinite: lower --lr, now 1e\+30"):
        cv(config(features, lr=1e30))
    assert not (features / "cv").exists()


def test_few_folds_at_a_time_are_all_of_them_at_once() -> None:
    """Memory decides how many are trained together, and nothing else."""
    rows = image_rows(80, 3, 0)
    folds = torch.arange(80) % 5
    whole, little = (out_of_fold(rows, folds, SETTINGS, 3, 0, memory) for memory in (1 << 30, 1))
    assert np.abs(whole - little).max() < 1e-6


def test_intervals_hold_the_truth(times: Times) -> None:
    """In 90 to 99 of 100 sets the accuracy of the folds' heads on fresh images is inside; single images and bursts."""
    count, inside = times(30, 200), 0
    for seed in range(count):
        burst = 1 + 3 * (seed % 2)
        rows = image_rows(120, 4, seed, apart=0.9)
        noise = torch.randn(120 * burst, 8, generator=torch.Generator().manual_seed(seed)) * (0.3 if burst > 1 else 0)
        rows = replace(
            rows,
            rows=rows.rows.repeat_interleave(burst, 0) + noise,
            labels=rows.labels.repeat_interleave(burst),
            views=torch.arange(120 * burst)[:, None],
        )
        groups = np.arange(120).repeat(burst)
        folds = torch.from_numpy(groups) % 5
        settings = replace(SETTINGS, hidden=0, lr=3e-2, batch_size=32)
        log_probs = out_of_fold(rows, folds, settings, 5, seed, 1 << 30)
        truth = true_accuracy(rows, folds, settings, seed, burst > 1)
        found = accuracies(log_probs.astype(np.float64), rows.labels.numpy(), groups)["top1"]
        inside += found.low <= truth <= found.high
    assert 0.9 * count - 2 <= inside
    if count >= 200:
        assert inside <= 0.99 * count


def true_accuracy(rows: ImageRows, folds: Tensor, settings: HeadSettings, seed: int, noisy: bool) -> float:
    """Of the same heads on 20,000 images drawn as these were."""
    fresh = image_rows(20_120, 4, seed, apart=0.9)
    x, labels = fresh.rows[120:], fresh.labels[120:]
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * (0.3 if noisy else 0)
    every = torch.arange(len(folds))
    datas = [rows.data(Basis("full", ()), every[folds != one], every[folds == one]) for one in range(5)]
    heads = fit_side_by_side(datas, settings, [steps_of(data, settings, 5) for data in datas], [seed] * 5)
    return float(np.mean([float((head(x).argmax(1) == labels).double().mean()) for head in heads]))


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache with one augmented pass."""
    run_extract(passes=1)
    return tmp_path / "features"


def config(features: Path, **options: Any) -> CvConfig:
    """Small folds."""
    return CvConfig(
        features, **{"folds": 4, "hidden": 8, "lr": 1e-2, "epochs": 20, "batch_size": 8, "basis": "pool", **options}
    )


def test_each_image_of_train_and_valid_is_predicted_once(features: Path) -> None:
    """Colours are told apart; the file holds what the figures were made of, and test images are left alone."""
    said: list[str] = []
    result = logged(said, cv, config(features))
    index = FeatureCache.open(features).index()
    assert result.images == 20 == len(index.split("train")) + len(index.split("valid"))
    assert [fold.images for fold in result.folds] == [5] * 4
    assert result.interval[0] <= result.accuracy <= result.interval[1]
    assert result.accuracy >= 0.75
    assert any("8 validation images without augmented passes" in line for line in said)
    found = OutOfFold.load(Path(result.predictions))
    assert sorted(found.paths) == sorted(image.path for image in index.images if image.split != "test")
    assert tuple(found.classes) == CLASSES
    assert found.hits.mean() == pytest.approx(result.accuracy)
    with np.load(result.predictions) as stored:
        assert stored["log_probs"].shape == (20, 4)
        assert stored["folds"].shape == (20,)


def test_repeats_are_other_folds_and_one_mean(features: Path) -> None:
    """An image counts once in the interval, however often it is predicted."""
    once, thrice = (cv(config(features, repeats=repeats)) for repeats in (1, 3))
    assert len(thrice.folds) == 3 * len(once.folds)
    assert thrice.folds[:4] == once.folds
    assert thrice.accuracy == pytest.approx(np.mean([fold.accuracy for fold in thrice.folds]))
    width = once.interval[1] - once.interval[0]
    assert thrice.interval[1] - thrice.interval[0] > width / 2


def test_two_settings_are_compared_on_the_same_folds(features: Path, tmp_path: Path) -> None:
    """By Nadeau and Bengio's test and by McNemar's; other folds are refused."""
    first = cv(config(features, predictions=tmp_path / "first.npz"))
    result = cv(config(features, epochs=1, lr=1e-5, against=tmp_path / "first.npz"))
    assert result.against is not None
    assert result.against.value == pytest.approx(result.accuracy - first.accuracy)
    assert result.against.low <= result.against.value <= result.against.high
    value, low, high = result.against.mean_per_class
    assert value == pytest.approx(result.mean_per_class - first.mean_per_class)
    assert low <= value <= high
    assert np.mean([one.recall for one in result.classes]) == pytest.approx(result.mean_per_class)
    assert sum(one.images for one in result.classes) == result.images
    assert [one.recall for one in result.classes] == sorted(one.recall for one in result.classes)
    assert f"lowest recall: {result.classes[0].label}" in result.in_words()
    with pytest.raises(RunError, match="are of other folds, expected the same"):
        cv(config(features, folds=5, against=tmp_path / "first.npz"))
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(RunError, match="holds no predictions of headgraft cv"):
        cv(config(features, against=tmp_path / "bad.npz"))


def test_the_corrected_test_is_that_of_nadeau_and_bengio() -> None:
    """By hand: four folds with differences 1, 0, 0 and 0 of 10 images each."""
    folds = np.repeat(np.arange(4), 10)[None]
    right, wrong = np.zeros((1, 40, 2), np.float32), np.zeros((1, 40, 2), np.float32)
    wrong[0, :10, 1] = 1
    paths = np.array([f"{n:02}" for n in range(40)])
    made = [
        OutOfFold(
            paths, paths, np.zeros(40, np.int64), np.array(["a", "b"]), log_probs, folds, np.arange(40), "x", SETTINGS
        )
        for log_probs in (right, wrong)
    ]
    found = compared(*made)
    error = (0.25 * (1 / 4 + 1 / 3)) ** 0.5
    assert found.value == 0.25
    assert found.high - found.value == pytest.approx(3.182 * error, rel=1e-3)
    assert (found.only_these, found.only_others) == (10, 0)
    assert found.mcnemar_p == pytest.approx(2 / 2**10)


def test_groups_by_path_make_folds(run_extract: Extract, data: Path, features: Path, tmp_path: Path) -> None:
    """One for each group, where that is asked for; a class of one group is said, and all of them are refused."""
    lines = ["path,label,split,group"]
    for number, path in enumerate(sorted(data.rglob("*.*g"))):
        group = "alone" if path.parent.name == "1" else f"{path.parent.name} {number % 2}"
        lines.append(f"{path},{path.parent.name},train,{group}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    run_extract(data=tmp_path / "set.csv", set="grouped", passes=1)
    said: list[str] = []
    result = logged(said, cv, config(features, set="grouped", folds=5, leave_one_group_out=True))
    assert (result.images, result.groups, len(result.folds), result.unseen) == (24, 7, 7, 6)
    assert any(line.startswith("1 class of one group each: their 6 images cannot be") for line in said)
    with pytest.raises(RunError, match="7 groups of images cannot make 8 folds"):
        cv(config(features, set="grouped", folds=8))
    with pytest.raises(RunError, match="each class is one group"):
        cv(config(features, set="data", folds=2, group_by=r"(\d+)/image"))
    with pytest.raises(RunError, match="no two images are of one group"):
        cv(config(features, set="data", folds=5, leave_one_group_out=True))
    with pytest.raises(ConfigError, match="--leave-one-group-out has as many folds as groups"):
        config(features, folds=3, leave_one_group_out=True)


def test_another_file_is_not_overwritten(features: Path, tmp_path: Path) -> None:
    """By --predictions; earlier predictions are."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"nothing.npz holds no predictions .*No such file"):
        cv(config(features, against=tmp_path / "nothing.npz"))
    with pytest.raises(RunError, match=r"notes.txt holds no predictions .*not an .npz file"):
        cv(config(features, predictions=tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for _ in range(2):
        cv(config(features, predictions=tmp_path / "first.npz"))


def test_folds_of_groups_are_numbered_from_zero() -> None:
    """Each group one."""
    images = [record(n, "a", str(n // 2)) for n in range(6)]
    folds = folds_of_groups(images, join(images))
    assert sorted(folds.unique().tolist()) == [0, 1, 2]
    assert all(folds[2 * n] == folds[2 * n + 1] for n in range(3))


def test_a_set_without_validation_can_be_cross_validated(
    features: Path, run_extract: Extract, data: Path, tmp_path: Path
) -> None:
    """All images in train: no other command but this one takes it."""
    lines = [f"{path},{path.parent.name},train" for path in sorted(data.rglob("*.*g"))]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,split", *lines]))
    run_extract(data=tmp_path / "all.csv", set="all", passes=1)
    result = CliRunner().invoke(main, ["cv", "--cache", str(features), "--set", "all", "--basis", "pool", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {
        "images",
        "groups",
        "folds",
        "accuracy",
        "interval",
        "mean_per_class",
        "ece",
        "seconds",
        "predictions",
    } <= found.keys()
    assert (found["images"], found["passes"]) == (24, 1)


def test_near_duplicates_are_one_group(features: Path) -> None:
    """By the cache's own threshold: noise of one colour looks the same."""
    said: list[str] = []
    result = logged(said, cv, config(features, folds=2, group_near_duplicates=True))
    assert result.groups < 20
    assert any(line.startswith("near-duplicates: ") for line in said)


def test_a_comparison_takes_the_near_duplicates_of_the_other(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone finds others; those of a file that joined none are not taken for its folds."""
    for name, near in (("near", True), ("plain", False)):
        cv(config(features, folds=2, group_near_duplicates=near, predictions=tmp_path / f"{name}.npz"))
    monkeypatch.setattr("pipeline.cross_validation.prepare.near_duplicates", lambda _, index: identical_files(index))
    found = cv(config(features, folds=2, group_near_duplicates=True, against=tmp_path / "near.npz"))
    assert found.groups == len({*OutOfFold.load(tmp_path / "near.npz").groups}) < 20
    assert found.against is not None
    assert found.against.value == 0
    assert cv(config(features, folds=2, group_near_duplicates=True, against=tmp_path / "plain.npz")).groups == 20


def test_classes_that_are_confused_are_counted_over_repeats() -> None:
    """As a mean; those with most images first, and none that are right."""
    predicted = np.array([[0, 1, 1, 1, 2], [0, 1, 1, 1, 1]])
    found = OutOfFold(
        paths=np.array(list("abcde")),
        digests=np.array(list("abcde")),
        labels=np.array([0, 0, 0, 1, 2]),
        classes=np.array(["x", "y", "z"]),
        log_probs=np.log(np.eye(3, dtype=np.float32)[predicted] * 0.9 + 0.03),
        folds=np.zeros((2, 5), np.int64),
        groups=np.arange(5),
        backbone="",
        settings=None,
    )
    assert found.confused() == [("x", "y", 2.0), ("z", "y", 0.5)]


def test_a_report_has_what_cross_validation_found(features: Path, tmp_path: Path) -> None:
    """Of the set as it is; a damaged file is said, and left out."""
    train_head(train_config(features, tmp_path / "run"))

    def words() -> str:
        page = Path(report(ReportConfig(tmp_path / "run", overwrite=True)).report).read_text()
        return re.sub(r"<[^>]*>", "", page)

    before = words()
    assert "Cross-validation: " not in before
    assert "headgraft cv --cache" in before
    result, said = cv(config(features)), list[str]()
    after = words()
    assert "Cross-validation: each of the 20 training and validation images" in after
    assert f"{100 * result.accuracy:.1f}\u00a0%" in after
    assert "headgraft cv --cache" not in after
    least = result.classes[0]
    assert f"Lowest recall by cross-validation: {least.label} ({round(least.recall * 5)} of 5)" in after
    assert "by cross-validation" not in before
    truth, predicted, images = OutOfFold.load(Path(result.predictions)).confused()[0]
    assert f"{truth} predicted as {predicted} ({images:.0f})" in after
    Path(result.predictions).write_bytes(b"PK")
    logged(said, report, ReportConfig(tmp_path / "run", overwrite=True))
    assert any(line.startswith("without cross-validation: ") for line in said)


def test_images_like_those_of_training_are_scored_apart(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Those of a group that training has: the others alone are new to the head."""
    grouped_table(
        tmp_path / "set.csv",
        data,
        lambda path, split, label: label if label in ("1", "10") else path.stem + split + label,
    )
    run_extract(data=tmp_path / "set.csv", set="set")
    train_head(train_config(tmp_path / "features", tmp_path / "run", set="set"))
    found = evaluate(EvaluateConfig(tmp_path / "run", split="test"))
    assert found.images == 4
    assert found.unrelated is not None
    assert found.unrelated.images <= 2
    assert "without a near-duplicate or group mate in training" in found.in_words()
    assert evaluate(EvaluateConfig(tmp_path / "run", split="train")).unrelated is None


def test_rows_beyond_the_memory_are_refused(features: Path) -> None:
    """With what they take, and what to do."""
    with pytest.raises(RunError, match=r"32 rows of 8 features take .* in two copies, .* are allowed"):
        cv(config(features, memory=1e-6))


def test_settings_chosen_in_each_fold_see_nothing_of_it(run_extract: Extract, tmp_path: Path) -> None:
    """The images that chose are those of the other folds; the head is the one that `cv` trains with these settings."""
    run_extract(passes=1)
    seen: list[set[str]] = []

    def without(bases: FoldedBasisCache, fold: int) -> FoldedBasisCache:
        others = leave_out(bases, fold)
        assert {int(number) for number in others.folds} == {0, 1}
        assert len(others.images) == len(others.folds) < len(bases.images)
        seen.append({image.path for image in others.images})
        return others

    leave_out = FoldedBasisCache.without
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FoldedBasisCache, "without", without)
        given = CvConfig(tmp_path / "features", folds=3, epochs=4, device="cpu")  # elsewhere the same to rounding
        found = cv(replace(given, heads=4, predictions=tmp_path / "nested.npz"))
    nested = OutOfFold.load(tmp_path / "nested.npz")
    assert nested.settings is None
    assert nested.search is not None
    assert nested.search.keys() == set(SEARCHED)
    assert len(found.chosen) == 3
    for fold, paths in enumerate(seen):
        assert paths == set(nested.paths[nested.folds[0] != fold])
        options = {name: value for name, value in vars(found.chosen[fold]).items() if name != "class_weights"}
        cv(replace(given, predictions=tmp_path / "plain.npz", **options))
        plain, here = OutOfFold.load(tmp_path / "plain.npz"), nested.folds[0] == fold
        assert np.allclose(nested.log_probs[0][here], plain.log_probs[0][here], atol=1e-4)
    assert "settings chosen in each" in found.in_words()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 8}, "--heads chooses --hidden"),
        ({"folds": 2}, "--folds is 2"),
        ({"leave_one_group_out": True}, "--heads is for --folds"),
        ({"heads": 0, "choose_by": "mean-per-class"}, "--choose-by is for --heads"),
        ({"heads": 0, "space": Path("space.toml")}, "--space is for --heads"),
    ],
)
def test_what_a_choice_in_each_fold_does_not_go_with(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Settings that it would not use, too few folds to sweep over, groups as folds."""
    with pytest.raises(ConfigError, match=message):
        CvConfig(tmp_path, **{"heads": 4, **options})


def test_a_file_of_another_program_is_not_overwritten(run_extract: Extract, tmp_path: Path) -> None:
    """Not even where the cache keeps predictions and learning curves: one sentence, and it stays."""
    run_extract()
    folder = tmp_path / "features" / "cv"
    folder.mkdir()
    np.savez(folder / "data.npz", mine=np.arange(3))
    (folder / "data.json").write_text("[1]")
    with pytest.raises(RunError, match="move it away, or name another file with --predictions"):
        cv(CvConfig(tmp_path / "features", folds=2, epochs=1))
    with pytest.raises(RunError, match="is no learning curve"):
        curve(CurveConfig(tmp_path / "features", folds=2, epochs=1))
    assert np.load(folder / "data.npz")["mine"].tolist() == [0, 1, 2]
    assert (folder / "data.json").read_text() == "[1]"
