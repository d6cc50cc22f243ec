"""Reduced caches: rows of R numbers in place of D, in the same format, whose heads fold back and leave the same way."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, Extract, draw_image, flowers, logged, require_weights, train_config
from safetensors.torch import save
from scipy.stats import norm
from test_parts import rows_of

from cache.check import verify
from cache.errors import CacheError, DamagedCache, HeadgraftError, MissingRows
from cache.info import info
from cache.layout import BASIS_FILE, REDUCTION_FILE
from cache.prune import forget
from cache.reduction import Reduction, save_basis
from cache.remote import pull, push
from cache.shard import Shard
from cache.store import FeatureCache
from pipeline.bases.reduced import reduction_basis
from pipeline.bases.trainset import TrainingSet
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.reduce import ReduceResult, reduce_cache
from pipeline.commands.report import report
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import ReduceConfig, SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, ReportConfig
from pipeline.duplicates.near_duplicates import identical_files, near_duplicates
from pipeline.errors import ConfigError, ParityError, PipelineError, RunError
from pipeline.labelling.label_issues import label_issues
from pipeline.model.file import load_model
from pipeline.model.parity_worker import answer
from pipeline.run import Run
from pipeline.run_folder import REPORT_FILE
from pipeline.statistics.intervals import paired_loss


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache of full features, clean and of one pass."""
    run_extract(passes=1)
    return tmp_path / "features"


def reduce_it(features: Path, **options: object) -> ReduceResult:
    """Into a folder beside it."""
    given: dict[str, object] = {
        "cache": features,
        "out": features.with_name("reduced"),
        "basis": "pool+pca:6",
        "seeds": 0,
    }
    return reduce_cache(ReduceConfig(**{**given, **options}))  # type: ignore[arg-type]  # checked by the config


@pytest.fixture
def gate_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side of the parity gate in this process, which alone knows the tiny backbone."""

    def ask(request: dict[str, object]) -> object:
        return json.loads(json.dumps(answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr("pipeline.model.parity._ask_fresh_process", ask)


@pytest.fixture
def reduced(features: Path) -> Path:
    """The same cache, reduced to rows of six."""
    reduce_it(features)
    return features.with_name("reduced")


def test_every_row_is_there_in_its_basis(features: Path, reduced: Path) -> None:
    """As the basis inside makes it of the whole row, rounded once more; indexes, manifest and views are the same."""
    whole, small = FeatureCache.open(features), FeatureCache.open(reduced)
    assert small.row_shape == (6,)
    assert small.keys.tolist() == whole.keys.tolist()
    basis = reduction_basis(small)
    assert basis is not None
    rows, made = rows_of(features), rows_of(reduced)
    for key, row in rows.items():
        expected = basis.apply(np.frombuffer(row, np.float16)[None]).half().numpy()
        assert np.allclose(np.frombuffer(made[key], np.float16), expected[0], rtol=2e-3, atol=1e-3)
    assert small.manifest == whole.manifest
    assert small.index() == whole.index()
    assert verify(reduced).bad == []
    assert "to 6 by pool+pca:6; what that costs was not measured" in info(reduced).in_words()


def test_shards_are_of_the_same_format(reduced: Path) -> None:
    """They name the basis, so that nobody takes their rows for whole ones, not even who knows nothing of it."""
    digest = FeatureCache.open(reduced).basis_digest
    for path in (reduced / "shards").glob("*.h5"):
        header = Shard.open(path).header
        assert (header.basis, header.row_shape) == (digest, (6,))
    (reduced / REDUCTION_FILE).unlink()
    assert len(FeatureCache.open(reduced)) == 0


def test_it_goes_on_where_it_was_stopped(features: Path, reduced: Path, run_extract: Extract) -> None:
    """What is there is kept; what the cache has gained is added only where the basis is still that of its rows."""
    one, *_ = (reduced / "shards").glob("*.h5")
    lost = len(Shard.open(one))
    one.unlink()
    again = reduce_it(features)
    assert (again.computed, again.rows) == (lost, 36)
    before = rows_of(reduced)
    run_extract(passes=2)
    with pytest.raises(CacheError, match="--out"):
        reduce_it(features)
    assert rows_of(reduced) == before


def test_one_that_was_stopped_before_any_row_begins_anew(features: Path, tmp_path: Path) -> None:
    """Its basis and record are there, the manifest is not: whatever they say, another basis may take their place."""
    reduce_it(features, basis="pool+pca:5")
    out = features.with_name("reduced")
    for file in (out / "manifest.json", out / "sets" / "data.json", *out.glob("shards/*.h5")):
        file.unlink()
    for folder in ("shards", "sets", "projections"):
        (out / folder).rmdir()
    assert reduce_it(features).out_features == 6


def test_images_are_extracted_into_it(features: Path, reduced: Path, run_extract: Extract, data: Path) -> None:
    """Whole rows of new images pass through the basis and are never kept; the old rows are reused."""
    draw_image(data / "train" / "1" / "new.png", 77, "1")
    result = run_extract(cache=reduced, passes=1)
    assert (result.computed, result.reused) == (2, 36)
    run_extract(passes=1)
    whole, small = FeatureCache.open(features), FeatureCache.open(reduced)
    basis = reduction_basis(small)
    assert basis is not None
    keys = [image.key for image in whole.index().images if image.path.endswith("new.png")]
    assert len(keys) == 1
    key = [(keys[0], view) for view in ("pass:0", "pass:1")]
    assert torch.allclose(torch.from_numpy(small.read(key)).float(), basis.apply(whole.read(key)), atol=2e-3)
    assert run_extract(cache=reduced, passes=1, shard_of="1/2").computed == 0


@pytest.mark.usefixtures("gate_here")
def test_a_head_of_it_leaves_like_any_other(reduced: Path, tmp_path: Path) -> None:
    """Trained in seconds from small rows, scored, folded over whole rows, exported through the gate, and predicting."""
    run = tmp_path / "run"
    train_head(replace(train_config(reduced, run), basis=None))
    loaded = Run.load(run)
    assert loaded.record.basis == "full"
    assert loaded.record.reduction is not None
    assert loaded.record.reduction.basis == "pool+pca:6"
    assert loaded.folded_head()[0].in_features == 32
    assert 0 <= evaluate(EvaluateConfig(run)).top1 <= 1
    result = export(ExportConfig(run, tmp_path / "model.safetensors"))
    assert result.parity["max_abs_diff"] <= 1e-4
    assert result.parity["reduced_abs_diff"] < 0.05
    bundle = load_model(tmp_path / "model.safetensors")
    assert bundle.card.basis == "pool+pca:6 then full"
    assert report(ReportConfig(run)).bytes > 1000


@pytest.mark.parametrize("basis", ["full+white:2", "full+lda:1", "full+pca:3"])
def test_a_further_basis_folds_through_both(reduced: Path, tmp_path: Path, basis: str) -> None:
    """Over whole rows the folded head says what the head says behind both bases."""
    train_head(train_config(reduced, tmp_path / "run", basis=basis))
    run = Run.load(tmp_path / "run")
    rows = FeatureCache.open(reduced.with_name("features")).read(
        [(i.key, "pass:0") for i in FeatureCache.open(reduced).index().images]
    )
    behind = run.head(run.whole_basis.apply(rows))
    assert torch.allclose(run.folded_head()(torch.from_numpy(rows).float()), behind, atol=1e-4)


@pytest.mark.usefixtures("gate_here")
def test_the_gate_finds_a_row_of_another_image(reduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a reduced cache are held against those that their images give."""
    train_head(replace(train_config(reduced, tmp_path / "run"), basis=None))
    read = FeatureCache.read
    monkeypatch.setattr(FeatureCache, "read", lambda self, keys: read(self, keys)[::-1].copy())
    with pytest.raises(ParityError):
        export(ExportConfig(tmp_path / "run", tmp_path / "model.safetensors"))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_sweep_of_it(reduced: Path, tmp_path: Path) -> None:
    """In bases that its rows can be in."""
    result = sweep(SweepConfig(reduced, tmp_path / "run", heads=6, epochs=2, seeds=1))
    assert {head.config.basis for head in result.heads} <= {"full", "full+lda:4+pca:6", "full+lda:8+pca:6"}
    assert Run.load(tmp_path / "run").folded_head()[0].in_features == 32


def test_what_is_lost_is_measured_and_kept(features: Path) -> None:
    """Over the same seeds on either; a second run measures nothing anew, unless other seeds are asked for."""
    accuracy = reduce_it(features, seeds=2).accuracy
    assert accuracy["seeds"] == 2
    assert accuracy["lost"] == pytest.approx(accuracy["whole"]["mean"] - accuracy["reduced"]["mean"])
    out = features.with_name("reduced")
    kept = Reduction.load(out)
    assert kept is not None
    assert kept.accuracy == accuracy == reduce_it(features, seeds=2).accuracy
    assert reduce_it(features, seeds=1).accuracy["seeds"] == 1
    assert f"costs {100 * accuracy['lost']:.2f} points of validation accuracy" in info(out).in_words()


def test_an_interval_of_the_loss_is_over_seeds_and_images() -> None:
    """Heads of three seeds on the same 800 images, which differ in how hard they are for either: it covers the truth.

    The standard error over seeds alone does not.
    """
    generator, covered, by_seeds = np.random.default_rng(0), 0, 0
    for _ in range(300):
        of_image, of_seed = generator.normal(0, 0.7, (2, 1, 800)), generator.normal(0, 0.1, (2, 3, 1))
        shared, rest = generator.normal(0, 2, (1, 1, 800)), generator.normal(0, 0.5, (2, 3, 800))
        whole, reduced = shared + of_image + of_seed + rest + np.array([3.6, 3.4])[:, None, None] > 0
        truth = norm.cdf(3.6 / (scale := math.sqrt(4.75))) - norm.cdf(3.4 / scale)
        found = paired_loss(whole, reduced)
        covered += found["low"] <= truth <= found["high"]
        by_seeds += abs(found["lost"] - truth) <= 1.96 * found["error"]
    assert 280 <= covered <= 297
    assert by_seeds < 240


def test_heads_that_agree_on_all_images_lose_nothing() -> None:
    """With no more than one seed, and with the same hits: no division by 0."""
    hits = np.array([[True, False, True]])
    assert paired_loss(hits, hits) == {"lost": 0, "error": 0, "low": 0, "high": 0}
    one = paired_loss(hits, ~hits)
    assert one["low"] < one["lost"] < one["high"]
    assert one["error"] == 0


def test_runs_know_their_rows(features: Path, reduced: Path, tmp_path: Path) -> None:
    """A run of full features is not scored on reduced ones, nor the other way round, nor on those of another basis."""
    train_head(train_config(features, tmp_path / "whole"))
    train_head(replace(train_config(reduced, tmp_path / "small"), basis=None))
    reduce_it(features, out=tmp_path / "other", basis="pool+pca:5")
    for run, cache in (("whole", reduced), ("small", features), ("small", tmp_path / "other")):
        with pytest.raises(RunError, match="--cache"):
            evaluate(EvaluateConfig(tmp_path / run, cache=cache))


def test_what_cannot_be_is_refused_in_a_sentence(features: Path, reduced: Path, tmp_path: Path) -> None:
    """Nothing that is there is touched."""
    before = rows_of(reduced)
    cases: list[tuple[type[HeadgraftError], str, dict[str, object]]] = [
        (CacheError, "pool.pca:6", {"cache": reduced, "out": tmp_path / "again", "basis": "pca:2"}),
        (ConfigError, "--out", {"out": features}),
        (CacheError, "pool.pca:6.*--out", {"basis": "pool+pca:5"}),
        (PipelineError, "pca:8", {"out": tmp_path / "wide", "basis": "pool+pca:100"}),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message):
            reduce_it(features, **options)
    assert not (tmp_path / "wide").exists()
    with pytest.raises(ConfigError, match="--basis full"):
        ReduceConfig(features, tmp_path / "x", basis="full")
    with pytest.raises(PipelineError, match="full"):
        train_head(train_config(reduced, tmp_path / "run", basis="pyramid"))
    with pytest.raises(CacheError, match="--out"):
        reduce_it(features, cache=features, out=shutil.copytree(features, tmp_path / "copy"))
    with pytest.raises(MissingRows):
        train_head(train_config(reduced, tmp_path / "run", basis="full", passes=2))
    assert rows_of(reduced) == before


def test_a_damaged_basis_or_record_is_refused(reduced: Path) -> None:
    """Without its basis, a reduced row says nothing."""
    basis, record = reduced / BASIS_FILE, reduced / REDUCTION_FILE
    sound, said = basis.read_bytes(), record.read_bytes()
    for file, damage in (
        (basis, sound[:-1] + bytes([sound[-1] ^ 1])),
        (basis, sound[:100]),
        (record, said.replace(b"pool+pca:6", b"pool+pca:7")),
        (record, b"{}"),
        (record, b"[1"),
    ):
        file.write_bytes(damage)
        with pytest.raises(DamagedCache, match="reduce"):
            FeatureCache.open(reduced)
        basis.write_bytes(sound)
        record.write_bytes(said)
    basis.unlink()
    with pytest.raises(DamagedCache, match=r"basis\.safetensors cannot be read"):
        FeatureCache.open(reduced)


@pytest.fixture
def moved(data: Path, tmp_path: Path) -> Path:
    """The same images, one training image of each class in test and one test image in train."""
    other = tmp_path / "other"
    shutil.copytree(data, other)
    for label in CLASSES:
        one, *_ = sorted((other / "train" / label).iterdir())
        (first,) = (other / "test" / label).iterdir()
        first.rename(other / "train" / label / f"from_test{first.suffix}")
        one.rename(other / "test" / label / f"from_train{one.suffix}")
    return other


@pytest.mark.parametrize("basis", ["pool+white+pca:6", "pool+lda"])
def test_labels_of_held_out_images_do_not_come_in_with_the_rows(
    features: Path, moved: Path, run_extract: Extract, tmp_path: Path, basis: str
) -> None:
    """A set with images in test that the reduction saw the labels of is refused, before a run is begun; its own is not.

    So is one that was split again.
    """
    reduce_it(features, basis=basis)
    out = features.with_name("reduced")
    run_extract(data=moved, cache=out, set="other", passes=1)
    for train in (
        lambda: train_head(train_config(out, tmp_path / "run", set="other", basis="full")),
        lambda: sweep(SweepConfig(out, tmp_path / "run", set="other", heads=2, epochs=1, seeds=1)),
    ):
        with pytest.raises(RunError, match=r"\b4\b.*--set other"):
            train()
    assert not list((tmp_path / "run").glob("*.json*"))
    train_head(train_config(out, tmp_path / "run", set="data", basis="full"))
    assert Run.load(tmp_path / "run").record.leaks["in_reduction"] == 0


def test_held_out_images_without_their_labels_are_said_and_recorded(
    features: Path, reduced: Path, moved: Path, run_extract: Extract, tmp_path: Path
) -> None:
    """Principal directions know no labels: one line, and the number in the run."""
    run_extract(data=moved, cache=reduced, set="other", passes=1)
    said: list[str] = []
    logged(said, train_head, train_config(reduced, tmp_path / "run", set="other", basis="full"))
    assert any("fitted on 4 images" in line and "without their labels" in line for line in said)
    assert Run.load(tmp_path / "run").record.leaks["in_reduction"] == 4
    cache = FeatureCache.open(reduced)
    index = cache.index("other")
    assert label_issues(cache, index, identical_files(index).groups).found is not None


def test_an_image_that_a_set_has_in_two_splits_is_a_leak_of_the_set(
    data: Path, run_extract: Extract, tmp_path: Path
) -> None:
    """And does not keep a set from the cache that was reduced by it."""
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "valid" / "1" / "twin.jpg")
    run_extract(passes=1)
    reduce_it(tmp_path / "features", basis="pool+lda")
    train_head(train_config(tmp_path / "reduced", tmp_path / "run", basis="full"))
    leaks = Run.load(tmp_path / "run").record.leaks
    assert leaks == {"across_splits": 1, "two_labels": 0, "in_reduction": 0}


def test_labels_are_not_checked_on_rows_that_have_seen_them(features: Path, tmp_path: Path) -> None:
    """A fit that leaves an image out has seen its label all the same: refused, and the page says why."""
    reduce_it(features, basis="pool+lda")
    out = features.with_name("reduced")
    train_head(train_config(out, tmp_path / "run", basis="full"))
    cache = FeatureCache.open(out)
    with pytest.raises(RunError, match=r"pool\+lda.*\b12\b"):
        label_issues(cache, cache.index(), identical_files(cache.index()).groups)
    result = report(ReportConfig(tmp_path / "run"))
    assert result.label_issues == []
    assert "fitted on the labels" in result.unchecked
    near = near_duplicates(cache, cache.index(), 0.9).threshold
    assert near.false_alarm_rate is near.expected_false is None
    assert "Labels cannot be checked" in (tmp_path / "run" / REPORT_FILE).read_text()


def test_the_images_a_reduction_was_fitted_on_travel_with_it(
    features: Path, moved: Path, run_extract: Extract, tmp_path: Path
) -> None:
    """A cache that was fetched from a URL refuses the same sets; one that does not name the images is refused."""
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    reduce_it(features, basis="pool+lda")
    push(features.with_name("reduced"), (tmp_path / "store").as_uri())
    pull((tmp_path / "store").as_uri(), tmp_path / "pulled")
    run_extract(data=moved, cache=tmp_path / "pulled", set="other", passes=1)
    with pytest.raises(RunError, match="4 images"):
        TrainingSet.open(tmp_path / "pulled", "other", None)
    reduction, basis = Reduction.load(tmp_path / "pulled"), reduction_basis(FeatureCache.open(tmp_path / "pulled"))
    assert reduction is not None
    assert basis is not None
    replace(reduction, digest=save_basis(tmp_path / "pulled", save(basis.tensors()))).save(tmp_path / "pulled")
    with pytest.raises(RunError, match="4 images"):  # the training images of the set it was fitted on
        TrainingSet.open(tmp_path / "pulled", "other", None)
    forget(tmp_path / "pulled", "data")
    with pytest.raises(DamagedCache, match="cache reduce"):
        TrainingSet.open(tmp_path / "pulled", "other", None)


@pytest.mark.real
def test_real_flowers_in_a_fiftieth(tmp_path: Path) -> None:
    """AlexNet's rows of 9,216 in 128: the head folds back over whole rows and passes the gate."""
    require_weights("alexnet")
    data = tmp_path / "data"
    for split, count in (("train", 12), ("valid", 3)):
        for label in sorted(folder.name for folder in (flowers() / split).iterdir())[:12]:
            (data / split / label).mkdir(parents=True)
            for image in sorted((flowers() / split / label).iterdir())[:count]:
                (data / split / label / image.name).symlink_to(image)
    extract(ExtractConfig(data, tmp_path / "features", backbone="alexnet"))
    config = ReduceConfig(tmp_path / "features", tmp_path / "reduced", basis="pyramid+pca:128", seeds=1)
    result = reduce_cache(config)
    assert result.bytes * 45 < result.source_bytes
    train_head(TrainConfig(tmp_path / "reduced", tmp_path / "run", hidden=64, epochs=5))
    assert export(ExportConfig(tmp_path / "run", tmp_path / "model.safetensors")).parity["max_abs_diff"] <= 1e-4
