"""A sweep on a cache of the tiny backbone: halving, journal, choice, results."""

import csv
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Extract, Times, logged
from sklearn.linear_model import LogisticRegression

from cache.errors import HeadgraftError
from cache.store import FeatureCache
from pipeline.bases.data import HeadData
from pipeline.bases.trainset import TrainingSet
from pipeline.commands.evaluate import evaluate
from pipeline.commands.report import report
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.heads import HeadSettings, SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ReportConfig
from pipeline.errors import ConfigError, RunError, TargetExists
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE, RUN_FILE
from pipeline.search.baselines import INVERSE_PENALTIES, SHRINKAGES, baselines
from pipeline.search.basis_cache import BasisCache
from pipeline.search.choice import choose
from pipeline.search.executor import Trial
from pipeline.search.halving import SuccessiveHalving, rungs
from pipeline.search.journal import Journal, Score
from pipeline.search.results import SweepResult, table
from pipeline.search.selection import Difference, Metric, corrected
from pipeline.search.space import NARROW_RATE
from pipeline.statistics.groups import join

SPACE = """
basis = ["pool", "pyramid+lda:1"]
hidden = [4, 8]
lr = { low = 1e-3, high = 3e-2, log = true }
batch_size = 8
"""


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache with one augmented pass, and a space beside it."""
    run_extract(passes=1)
    (tmp_path / "space.toml").write_text(SPACE)
    return tmp_path / "features"


def config(features: Path, **options: object) -> SweepConfig:
    """A sweep small enough for a test."""
    root = features.parent
    given: dict[str, object] = {
        "cache": features,
        "run": root / "run",
        "space": root / "space.toml",
        "heads": 10,
        "epochs": 4,
        "seeds": 2,
    }
    return SweepConfig(**{**given, **options})  # type: ignore[arg-type]  # checked by the config


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt the next sweep when it has `count` results."""
    record, calls = Journal.record, iter(range(count))

    def recorded(journal: Journal, head: int, score: Score) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        record(journal, head, score)

    monkeypatch.setattr(Journal, "record", recorded)


@pytest.mark.parametrize(
    ("heads", "epochs", "expected"),
    [
        (64, 20, [(64, 3), (16, 8), (4, 20)]),
        (64, 63, [(64, 9), (16, 24), (4, 63)]),
        (1000, 20, [(1000, 3), (250, 5), (63, 8), (16, 12), (4, 20)]),
        (5, 20, [(5, 3), (4, 20)]),
        (4, 20, [(4, 20)]),
        (1, 1, [(1, 1)]),
        (64, 1, [(64, 1)]),
        (64, 4, [(64, 1), (16, 2), (4, 4)]),
        (64, 2, [(64, 1), (4, 2)]),
    ],
)
def test_rungs_quarter_heads_and_lengthen(heads: int, epochs: int, expected: list[tuple[int, int]]) -> None:
    """Every head starts, at least four finish, and the last rung is the full length."""
    assert rungs(heads, epochs) == expected


def test_a_sweep_ends_in_a_run_that_evaluates(features: Path) -> None:
    """Heads, the chosen one with its mean over seeds, baselines; and the files of a run."""
    result = sweep(config(features))
    assert len(result.heads) == 10
    assert sorted(head.epochs for head in result.heads) == [1] * 3 + [4] * 7
    assert [head.finished for head in result.heads].count(True) == 7
    finished = [head for head in result.heads if head.finished]
    assert result.searched.valid_accuracy == max(head.valid_accuracy for head in finished)
    assert result.best.config in [head.config for head in finished]
    assert result.best.seeds == 2
    assert result.baselines.majority == 0.25
    assert 0 < result.basis_seconds < result.seconds
    run = Run.load(features.parent / "run")
    assert run.record.sweep is not None
    assert run.record.sweep["heads"] == 10
    assert run.record.config.seed == 1
    assert evaluate(EvaluateConfig(run.path, split="valid")).top1 == run.record.valid_accuracy


def test_the_default_head_and_one_in_each_basis_are_never_stopped(features: Path) -> None:
    """Whatever the space is; they count among the heads."""
    result = sweep(config(features))
    default = HeadSettings()
    known = [default, replace(default, basis="pool"), replace(default, basis="pyramid+lda:1", lr=NARROW_RATE)]
    assert [head.config for head in result.heads[:3]] == known
    assert all(head.finished for head in result.heads[:3])
    alone = sweep(config(features, run=features.parent / "alone", heads=1))
    assert [head.config for head in alone.heads] == [default]
    assert alone.best.won == "default"
    assert alone.best.difference == Difference(0, 0, 0, corrected=0)


def test_a_search_that_finds_nothing_better_ends_in_the_default_head(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so; one that does says by how much, over the same images and seeds."""
    (features.parent / "space.toml").write_text('basis = "pool"\nhidden = 2\nbatch_size = 8\nlr = [1e-9, 2e-9]\n')
    lost = sweep(config(features, epochs=30))
    assert lost.best.won == "default"
    assert lost.best.config == lost.default.config == HeadSettings()
    assert lost.best.mean == lost.default.mean >= lost.searched.mean
    assert lost.best.difference.value == pytest.approx(lost.searched.mean - lost.default.mean)
    run = Run.load(features.parent / "run")
    assert run.record.config.basis == HeadSettings.basis
    assert "no better head found: the default head is the best of 4 heads" in table(lost)
    assert "corrected for the choice" not in table(lost)
    (features.parent / "space.toml").write_text('basis = "pool"\nhidden = 16\nbatch_size = 8\nlr = [1e-2, 2e-2]\n')
    for module in ("pipeline.commands.sweep", "pipeline.search.choice"):
        monkeypatch.setattr(f"{module}.default_settings", lambda rows: HeadSettings(lr=1e-9))
    won = sweep(config(features, run=features.parent / "won", epochs=30))
    assert won.default.mean < won.searched.mean == won.best.mean
    assert won.best.won == "search"
    assert won.best.difference.value > 0
    assert "corrected for the choice" in table(won)
    assert "not clearly better" not in table(won)
    unsure = replace(won.best, difference=Difference(0.01, -0.02, 0.04, corrected=0.0))
    assert "+1.00 points (-2.00 to +4.00, 95 % over images), so it is not clearly" in table(replace(won, best=unsure))


def test_the_most_accurate_heads_go_on_beside_those_that_are_kept(features: Path, tmp_path: Path) -> None:
    """Of equally accurate ones those of lower loss."""
    journal = Journal.open(tmp_path / "journal", {})
    race = SuccessiveHalving(
        opened(features), journal, Metric("top1", np.zeros(8, np.int64), np.arange(8)), epochs=20, seed=0
    )
    heads = [Trial(n, HeadSettings("pool"), score_of(n % 4, loss=9 - n)) for n in range(8)]
    heads += [Trial(8, HeadSettings("full"), score_of(0), kept=True)]
    assert [head.number for head in race._survivors(heads, 3)] == [8, 7, 3, 6]


def score_of(right: int, epochs: int = 1, loss: float = 1.0, images: int = 8) -> Score:
    """A head that is right about the first `right` of some images."""
    return Score.of(epochs, loss, np.arange(images) < right)


def test_a_sweep_may_choose_by_the_mean_per_class(features: Path) -> None:
    """Accuracies in the results are then of that kind; another choice is another sweep."""
    result = sweep(config(features, choose_by="mean-per-class"))
    assert result.choose_by == "mean-per-class"
    with pytest.raises(ConfigError, match="--choose-by is 'loss'"):
        config(features, choose_by="loss")


def test_the_seeds_of_the_choice_merge_into_one_head(features: Path) -> None:
    """It has all their hidden units and the mean of their logits, and is a run like any other."""
    run = features.parent / "run"
    best = sweep(config(features, merge=True, seeds=3)).best
    merged = Run.load(run)
    assert merged.record.config.hidden == best.merged.hidden == 3 * best.config.hidden
    assert evaluate(EvaluateConfig(run, split="valid")).top1 == best.merged.valid_accuracy
    settings = {name: value for name, value in asdict(best.config).items() if name != "class_weights"}
    heads = []
    for seed in (1, 2, 3):
        place = features.parent / f"seed{seed}"
        train_head(TrainConfig(features, place, epochs=4, seed=seed, **settings))
        heads.append(Run.load(place).head)
    rows = torch.randn(50, len(merged.head.state_dict()["0.weight"].T))
    logits = torch.stack([head[:4](rows) for head in heads]).mean(0)
    assert torch.allclose(merged.head(rows), torch.log_softmax(logits, 1), atol=1e-5)


def test_a_sweep_of_logistic_regression(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads without a hidden layer are trained beside others; the seeds of one merge into another such head."""
    default = HeadSettings("pool", hidden=0, lr=0.03, batch_size=8)
    for module in ("commands.sweep", "search.choice"):
        monkeypatch.setattr(f"pipeline.{module}.default_settings", lambda _: default)
    (features.parent / "space.toml").write_text('basis = "pool"\nhidden = [0, 2]\nlr = 1e-4\nbatch_size = 8\n')
    result = sweep(config(features, search="grid", halving=False, merge=True, epochs=8))
    assert [(head.config.hidden, head.finished) for head in result.heads] == [(0, True), (0, True), (2, True)]
    assert result.best.won == "default"
    assert result.best.merged.hidden == Run.load(features.parent / "run").head.hidden_units == 0
    assert "as one merged head with no hidden layer" in table(result)
    page = report(ReportConfig(features.parent / "run")).report
    assert "basis pool, no hidden layer" in Path(page).read_text()


def test_results_are_a_table_a_json_file_and_a_csv_file(features: Path) -> None:
    """The same heads in each, the chosen one first, then the others by how far they came."""
    result = sweep(config(features))
    assert SweepResult.load(features.parent / "run") == result
    with open(features.parent / "run" / "heads.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    assert [int(row["epochs"]) for row in rows] == [4] * 7 + [1] * 3
    chosen = {name: str(value) for name, value in asdict(result.best.config).items()}
    assert {name: rows[0][name] for name in chosen} == chosen
    text = table(result)
    assert "the best of 10 heads, 7 of them trained to the end" in text
    assert "± " in text
    assert max(map(len, text.splitlines()[:11])) <= 120


def test_classes_that_the_choice_is_blind_to_are_counted(features: Path) -> None:
    """Those without validation images, which every extraction and split may leave."""
    cache = FeatureCache.open(features)
    index = cache.index()
    kept = tuple(image for image in index.images if image.split != "valid" or image.label not in ("10", "2"))
    cache.save_index(replace(index, images=kept, data="/none", root="/none"))
    lines: list[str] = []
    assert logged(lines, sweep, config(features, heads=2, seeds=1)).classes_without_validation == 2
    assert any("2 of 4 classes" in line and "'10', '2'" in line for line in lines)


def test_the_same_seed_gives_the_same_sweep(features: Path) -> None:
    """Heads, scores and choice."""
    first, second = (sweep(config(features, run=features.parent / name)) for name in "ab")
    assert first.heads == second.heads
    assert first.best == second.best


def test_a_killed_sweep_goes_on_without_repeating_what_was_done(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after every number of results: the same end, and no head trains twice to the same epoch."""
    whole = sweep(config(features, run=features.parent / "whole"))
    record, kept = Journal.record, []

    def stopped(journal: Journal, head: int, score: Score) -> None:
        record(journal, head, score)
        kept.append((head, score.epochs))
        if len(kept) % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", stopped)
    for _ in range(20):
        try:
            result = sweep(config(features))
            break
        except KeyboardInterrupt:
            continue
    assert len(kept) == len(set(kept)) == 17
    assert result.heads == whole.heads
    assert result.best == whole.best


def test_a_line_cut_short_by_a_kill_is_dropped(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head it was of trains again; anything else that is no journal is refused."""
    monkeypatch.setattr("pipeline.search.executor._LARGEST_GROUP", 1)
    calls = iter(range(100))
    real = Journal.record
    monkeypatch.setattr(
        Journal,
        "record",
        lambda j, h, s: real(j, h, s) if next(calls) < 4 else (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        sweep(config(features))
    monkeypatch.setattr(Journal, "record", real)
    journal = features.parent / "run" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-5])
    assert len(sweep(config(features)).heads) == 10
    for content in ("", "[]\n", '{"format":2,"asked":{}}\n{"head":"x"}\n', '{"format":1,"asked":{}}\n', "{\n"):
        (features.parent / "other").mkdir(exist_ok=True)
        (features.parent / "other" / "journal.jsonl").write_text(content)
        with pytest.raises(RunError, match="/other"):
            sweep(config(features, run=features.parent / "other"))


def test_other_settings_are_named_and_refused(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep goes on only as it was begun; a finished one is not touched; --overwrite begins anew."""
    stop_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sweep(config(features))
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"heads: .*10.*12\n  seed: .*0.*3"):
        sweep(config(features, heads=12, seed=3))
    sweep(config(features, seeds=1))
    with pytest.raises(TargetExists):
        sweep(config(features))
    assert len(sweep(config(features, heads=5, overwrite=True)).heads) == 5


def test_an_unfinished_sweep_is_named_where_a_run_is_wanted(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody should be led to overwrite it."""
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sweep(config(features))
    run = features.parent / "run"
    with pytest.raises(RunError, match="unfinished"):
        evaluate(EvaluateConfig(run))
    with pytest.raises(TargetExists, match="unfinished"):
        train_head(TrainConfig(features, run))
    assert (run / "journal.jsonl").is_file()


def test_overwriting_keeps_to_runs(features: Path, data: Path) -> None:
    """A folder of images stays as it is."""
    with pytest.raises(RunError, match="--run"):
        sweep(config(features, run=data, overwrite=True))
    with pytest.raises(TargetExists):
        sweep(config(features, run=data))


def test_what_is_wrong_with_the_rows_costs_no_run(features: Path) -> None:
    """Not even with --overwrite."""
    sweep(config(features, heads=2, seeds=1))
    for wrong in ({"cache": features.parent / "none"}, {"set": "other"}, {"passes": 9}):
        with pytest.raises(HeadgraftError):
            sweep(config(features, overwrite=True, **wrong))
    kept = Run.load(features.parent / "run").record.sweep
    assert kept is not None
    assert kept["heads"] == 2


def test_a_sweep_short_of_memory_trains_fewer_heads_at_once(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps no states of heads that wait: the same results, by training from the start again."""
    whole = sweep(config(features, run=features.parent / "whole", memory=1.0))
    monkeypatch.setattr("pipeline.search.executor.free_bytes", lambda device: 20_000)
    assert sweep(config(features, memory=1.0)).heads == whole.heads
    monkeypatch.setattr("pipeline.heads.fit.available_bytes", lambda: 100)
    with pytest.raises(RunError, match="--hidden"):
        sweep(config(features, run=features.parent / "other", memory=1.0))


def test_a_time_limit_ends_in_a_choice(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the heads that trained longest; without any there is nothing to choose."""
    now = iter(range(10_000))
    monkeypatch.setattr("pipeline.search.halving.time.monotonic", lambda: next(now))
    monkeypatch.setattr("pipeline.commands.sweep.time.monotonic", lambda: next(now))
    monkeypatch.setattr("pipeline.search.executor._LARGEST_GROUP", 1)
    result = sweep(config(features, time_limit=8.0, device="cpu"))
    trained = [head for head in result.heads if head.epochs]
    assert 0 < len(trained) == len(result.heads) < 10
    assert result.searched.config in [head.config for head in trained]
    with pytest.raises(RunError, match="--time-limit"):
        sweep(config(features, run=features.parent / "none", time_limit=0.5))


def opened(features: Path) -> BasisCache:
    """Bases of the only set."""
    return BasisCache(TrainingSet.open(features, None, None), 1 << 30)


def rows_of(bases: BasisCache, name: str) -> HeadData:
    """Of the only split."""
    (split,) = bases.splits(name)
    assert isinstance(split.data, HeadData)
    return split.data


def test_ties_go_to_the_smaller_head(features: Path) -> None:
    """And among equally small ones to that of lower loss; one that trained longer is preferred to a better one."""
    heads = [
        Trial(0, HeadSettings("pyramid+lda:1", 8), score_of(6, 4, 0.9)),
        Trial(1, HeadSettings("pyramid+lda:1", 4), score_of(6, 4, 0.8)),
        Trial(2, HeadSettings("pyramid", 4), score_of(6, 4, 0.1)),
        Trial(3, HeadSettings("pyramid+lda:1", 4), score_of(6, 4, 0.9)),
        Trial(4, HeadSettings("pyramid+lda:1", 4), score_of(8, 1, 0.1)),
    ]
    metric = Metric("top1", np.zeros(8, np.int64), np.arange(8))
    race = SuccessiveHalving(opened(features), Journal.open(features.parent / "journal", {}), metric, epochs=4, seed=0)
    assert choose(heads, race).number == 1


def test_a_head_is_the_same_in_any_company(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of one or of many, in one go or rung by rung: the same scores."""
    settings = [HeadSettings("pyramid", 8, lr=rate, batch_size=8) for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)]

    def scores(largest: int, halving: bool) -> list[float]:
        monkeypatch.setattr("pipeline.search.executor._LARGEST_GROUP", largest)
        journal = Journal.open(tmp_path / f"{largest}{halving}", {})
        heads = [Trial(number, one) for number, one in enumerate(settings)]
        bases = opened(features)
        metric = Metric("top1", rows_of(bases, "pyramid").valid_labels.numpy(), np.arange(8))
        SuccessiveHalving(bases, journal, metric, epochs=8, seed=0, halving=halving).run(heads)
        return [head.score.loss for head in heads if head.score.epochs == 8]

    alone = scores(1, halving=False)
    assert scores(8, halving=False) == alone
    assert set(scores(3, halving=True)) <= set(alone)


def test_bases_are_held_as_far_as_memory_goes(features: Path) -> None:
    """The one used longest ago goes first, and comes back the same."""
    wide = opened(features)
    narrow = replace(wide, memory=rows_of(wide, "pyramid").bytes * 2, _held={})
    before = rows_of(narrow, "pyramid")
    for name in ("pool", "pyramid+white", "pool+white", "pyramid"):
        narrow.splits(name)
    assert torch.equal(before.rows, rows_of(narrow, "pyramid").rows)
    assert sum(split.data.bytes for (split,) in narrow._held.values()) <= narrow.memory + before.bytes


def test_baselines_are_those_of_scikit_learn(features: Path) -> None:
    """The same classes for every validation image, at each shrinkage; logistic regression is its own."""
    data = rows_of(opened(features), "pool")
    found = baselines([data], "pool")
    x, y = data.rows[data.train_rows[:, 0]].double(), data.train_labels
    valid, truth = data.rows[data.valid_rows].double(), data.valid_labels
    means = torch.stack([x[y == label].mean(0) for label in range(4)])
    every, twice = data.rows[data.train_rows.T.flatten()].double(), y.repeat(data.train_rows.shape[1])
    means = torch.stack([every[twice == label].mean(0) for label in range(4)])
    within = (every - means[twice]).T @ (every - means[twice]) / len(every)
    accuracies = {}
    for shrinkage in SHRINKAGES:
        shrunken = within + shrinkage * within.diagonal().mean() * torch.eye(len(within))
        distance = torch.stack([torch.einsum("ni,ij,nj->n", d, shrunken.inverse(), d) for d in valid - means[:, None]])
        scores = torch.bincount(y).double().log()[:, None] - distance / 2
        accuracies[shrinkage] = float((scores.argmax(0) == truth).double().mean())
    assert (found.discriminant, found.shrinkage) == (
        max(accuracies.values()),
        max(accuracies, key=accuracies.__getitem__),
    )
    centre, scale = x.mean(0), x.std(0, correction=0)
    x, valid = (x - centre) / scale, (valid - centre) / scale
    logistic = {c: LogisticRegression(C=c, max_iter=1000).fit(x, y).score(valid, truth) for c in INVERSE_PENALTIES}
    assert found.logistic == max(logistic.values())
    assert found.best == max(found.discriminant, *logistic.values())


def test_baselines_that_cannot_be_fitted_are_left_out(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many features, and of one class: a sweep and its table do without."""
    data = rows_of(opened(features), "pool")
    one = data.train_labels == 0
    alone = replace(data, train_rows=data.train_rows[one], train_labels=data.train_labels[one])
    assert baselines([alone], "pool").logistic is None
    monkeypatch.setattr("pipeline.search.baselines.WIDEST", 7)
    result = sweep(config(features, heads=3, seeds=1))
    assert (result.baselines.discriminant, result.baselines.logistic) == (None, None)
    assert "top-1, in basis" in table(result)


def test_the_corrected_figure_is_over_all_heads(features: Path) -> None:
    """Those that were stopped among them, as the journal has them."""
    result = sweep(config(features, heads=8, seeds=1))
    run = config(features).run
    scores = [max(by_epochs.items())[1] for _, by_epochs in sorted(Journal.read(run).scores.items())]
    assert len({score.epochs for score in scores}) > 1
    cache = FeatureCache.open(features)
    index = cache.index()
    images = index.split("valid")
    metric = Metric.over(images, "top1", index, join(images))
    hits = np.stack([score.unpacked(len(images)) for score in scores])
    found = corrected(hits, metric, hits[0])
    assert found is not None
    assert result.searched.corrected == pytest.approx(found.accuracy)
    assert result.best.difference.corrected == pytest.approx(found.above)


def test_one_validation_image_gives_no_corrected_figure(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """The results are JSON all the same, and can be shown."""
    for path in sorted((data / "valid").rglob("*.*"))[1:]:
        path.unlink()
    run_extract()
    result = sweep(SweepConfig(tmp_path / "features", tmp_path / "run", heads=5, epochs=2, seeds=1))
    assert result.searched.corrected is None
    json.loads((tmp_path / "run" / "sweep.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert SweepResult.load(tmp_path / "run") == result
    assert "95 %" in table(result)


def test_baselines_of_a_class_without_images_are_finite(features: Path) -> None:
    """It is never named."""
    data = rows_of(opened(features), "pool")
    without = replace(
        data, train_rows=data.train_rows[data.train_labels > 0], train_labels=data.train_labels[data.train_labels > 0]
    )
    discriminant = baselines([without], "pool").discriminant
    assert discriminant is not None
    assert discriminant <= 0.75


def test_heads_that_end_in_no_numbers_lose(features: Path) -> None:
    """One rate beyond all sense among others stops nothing."""
    (features.parent / "space.toml").write_text('basis = "pool"\nhidden = 4\nbatch_size = 8\nlr = [1e-3, 1e-2, 1e30]\n')
    result = sweep(config(features, search="grid", heads=3))
    assert [head.valid_accuracy for head in result.heads if head.config.lr == 1e30] == [0.0]
    assert result.best.config.lr < 1


def test_optuna_sweeps_and_goes_on(features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch by batch, and from the journal as if it had not been stopped."""
    pytest.importorskip("optuna")
    whole = sweep(config(features, search="optuna", heads=8, run=features.parent / "whole"))
    real, calls = Journal.record, iter(range(100))
    monkeypatch.setattr(
        Journal,
        "record",
        lambda j, h, s: real(j, h, s) if next(calls) < 5 else (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        sweep(config(features, search="optuna", heads=8))
    monkeypatch.undo()
    assert sweep(config(features, search="optuna", heads=8)).heads == whole.heads


def test_a_streamed_sweep_is_a_sweep(features: Path) -> None:
    """Where nothing fits in memory, rows are read from the shards."""
    result = sweep(config(features, memory=1e-9, heads=5))
    assert result.best.seeds == 2
    assert (features / "projections").is_dir()


@pytest.mark.parametrize(
    "option",
    [{"heads": 0}, {"heads": 10**9}, {"seeds": 0}, {"time_limit": 0.0}, {"time_limit": float("nan")}, {"search": "all"},
     {"seed": -1}, {"seed": (1 << 32) - 2}, {"epochs": 0}, {"memory": -1.0}, {"device": "tpu"}],
)  # fmt: skip
def test_values_outside_their_range_are_refused(option: dict[str, object]) -> None:
    """When the configuration is made, before any work."""
    with pytest.raises(ConfigError):
        SweepConfig(Path("features"), Path("run"), **option)  # type: ignore[arg-type]


def test_nothing_is_left_open(features: Path) -> None:
    """A sweep leaves a run, a journal and its results, and no temporary file."""
    sweep(config(features, heads=2, seeds=1))
    assert sorted(path.name for path in (features.parent / "run").iterdir()) == [
        "basis.safetensors",
        "head.safetensors",
        "heads.csv",
        "journal.jsonl",
        "run.json",
        "sweep.json",
    ]


def test_no_kill_loses_a_result(features: Path, times: Times) -> None:
    """SIGKILL at random moments, the same command again each time: the end of a sweep that nobody killed."""
    options = ["--cache", features, "--space", features.parent / "space.toml", "--heads", 24, "--epochs", 40]
    program = [
        sys.executable,
        REPOSITORY / "cli.py",
        "sweep",
        *options,
        "--seeds",
        2,
        "--no-halving",
        "--json",
        "--run",
    ]

    def start(run: Path) -> subprocess.Popen[str]:
        command = [str(part) for part in (*program, run)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    whole = json.loads(start(features.parent / "whole").communicate()[0])
    run, moments = features.parent / "run", random.Random(0)
    journal = run / "journal.jsonl"
    for _ in range(times(2, 40)):
        process, aim = start(run), lines_of(journal) + moments.randrange(10)
        while process.poll() is None and lines_of(journal) < aim:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        if (run / "run.json").is_file():
            shutil.rmtree(run)  # it came to its end: begin anew
    found = json.loads(start(run).communicate()[0])
    for result in (found, whole):
        del result["baselines"]["seconds"]
    assert {name: found[name] for name in ("heads", "best", "baselines")} == {
        name: whole[name] for name in ("heads", "best", "baselines")
    }
    kept = [(line["head"], line["epochs"]) for line in map(json.loads, journal.read_text().splitlines()[1:])]
    assert len(kept) == len(set(kept)) == 24


def lines_of(path: Path) -> int:
    """Whole lines; 0 where there is no file."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.parametrize("content", [b"", b'{"format"'], ids=["empty", "cut short"])
def test_a_journal_without_a_line_is_refused(content: bytes, tmp_path: Path) -> None:
    """As a kill before its first line leaves it."""
    (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(RunError, match=r"journal\.jsonl.*no complete line"):
        Journal.read(tmp_path)


def test_a_sweep_of_version_0_1_is_reported_without_its_heads(features: Path) -> None:
    """Its journal has format 1, which lacks the hits of each image; to resume it is refused with what to do."""
    asked = config(features, heads=2, seeds=1)
    sweep(asked)
    journal = asked.run / JOURNAL_FILE
    first, _, rest = journal.read_text().partition("\n")
    journal.write_text(json.dumps({**json.loads(first), "format": 1}) + "\n" + rest)
    lines: list[str] = []
    assert logged(lines, report, ReportConfig(asked.run)).pictures
    assert any("0.1" in line and "--overwrite" in line for line in lines)
    (asked.run / RUN_FILE).unlink()
    with pytest.raises(RunError, match=r"0\.1.*--overwrite"):
        sweep(asked)
