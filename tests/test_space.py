"""Spaces of a sweep: TOML files, random heads, grids, Optuna."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.errors import ConfigError
from pipeline.search.proposals import start_search
from pipeline.search.space import NARROW_RATE, Range, Space, default_space, first_trials

GOOD = """
basis = ["pool", "pyramid+white+lda:4"]
hidden = { low = 64, high = 256, log = true, steps = 3 }
lr = { low = 1e-4, high = 1e-2, log = true, steps = 2 }
dropout = { low = 0, high = 0.5 }
weight_decay = 0.1
"""


def config(tmp_path: Path, **options: object) -> SweepConfig:
    """A sweep that is never run."""
    return SweepConfig(tmp_path / "features", tmp_path / "run", **options)  # type: ignore[arg-type]


def loaded(tmp_path: Path, text: str) -> Space:
    """The space of a file with this text."""
    (tmp_path / "space.toml").write_text(text)
    return Space.load(tmp_path / "space.toml")


@given(seed=st.integers(0, 1000))
def test_random_heads_are_of_the_space(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Values from the lists, numbers within the ranges, whole where they count something; the rest are defaults."""
    head = loaded(tmp_path_factory.mktemp("space"), GOOD).sample(np.random.default_rng(seed))
    assert head.basis in ("pool", "pyramid+white+lda:4")
    assert type(head.hidden) is int
    assert 64 <= head.hidden <= 256
    assert 1e-4 <= head.lr <= 1e-2
    assert 0 <= head.dropout <= 0.5
    assert head.weight_decay == 0.1
    assert head.batch_size == HeadSettings.batch_size


def test_a_range_in_its_logarithm_has_as_many_small_numbers_as_large() -> None:
    """Half of them under the geometric mean."""
    space, numbers = Space({"lr": Range(1e-4, 1e-2, log=True)}), np.random.default_rng(0)
    rates = np.array([space.sample(numbers).lr for _ in range(400)])
    assert 0.4 < (rates < 1e-3).mean() < 0.6


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    """Ranges by their steps; one without steps cannot be a grid."""
    space = loaded(tmp_path, GOOD.replace("high = 0.5", "high = 0.5, steps = 2"))
    heads = space.grid()
    assert len(heads) == len(set(heads)) == 2 * 3 * 2 * 2
    assert sorted({head.hidden for head in heads}) == [64, 128, 256]
    assert sorted({head.lr for head in heads}) == [1e-4, 1e-2]
    with pytest.raises(ConfigError, match=r"space\.toml: dropout"):
        loaded(tmp_path, GOOD).grid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "expected some of basis, hidden"),
        ("droput = 0.5", "did you mean 'dropout'"),
        ("lr = { low = 1, hihg = 2 }", "lr is { low = 1, hihg = 2 }, expected { low = A, high = B }"),
        ("lr = { low = 1e-3 }", "lr is { low = 0.001 }, expected"),
        (
            "lr = { low = 1e-2, high = 1e-3 }",
            "lr is { low = 0.01, high = 0.001 }, expected { low = A, high = B } with A < B",
        ),
        ("lr = { low = 1e-3, high = 1e-2, steps = 1 }", "lr is .*steps.* 2"),
        ("dropout = { low = 0, high = 0.5, log = true }", "above 0 if log"),
        ("lr = 0", "expected a number above 0"),
        ("dropout = [0.2, 1.0]", "under 1"),
        ("hidden = 12.5", "hidden is 12.5, expected an integer"),
        ("hidden = true", "hidden is true, expected an integer"),
        ("hidden = []", r"hidden is \[\]"),
        ("hidden = [64, 64]", "64, 64.*twice"),
        ('basis = "middle"', "is not a basis"),
        ('basis = { low = "a", high = "b" }', "basis is { low = .*, expected a text"),
        ('lr = "fast"', 'lr is "fast", expected a number'),
        ("lr = nan", "expected a number above 0"),
        ("lr =", "cannot be read as TOML"),
        ("# nothing yet", "names no setting"),
        ('lr = { low = 1e-3, high = 1e-2, log = "yes" }', 'log = "yes" }, expected'),
    ],
)
def test_a_space_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """Names nobody knows with the nearest that is known; values that no head can have."""
    with pytest.raises(ConfigError, match=message) as refused:
        loaded(tmp_path, text)
    assert str(refused.value).count("expected") <= 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As is one of other bytes than text."""
    with pytest.raises(ConfigError, match=r"none\.toml"):
        Space.load(tmp_path / "none.toml")
    (tmp_path / "space.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="TOML"):
        Space.load(tmp_path / "space.toml")


def test_random_search_proposes_distinct_heads_and_all_of_a_small_space(tmp_path: Path) -> None:
    """The same for the same seed, others for another."""
    first, second, other = (
        start_search(config(tmp_path, heads=40, seed=seed), default_space("pyramid+white", 102, 1000), []).ask()
        for seed in (1, 1, 2)
    )
    assert len(set(first)) == 40
    assert first == second != other
    few = start_search(config(tmp_path, heads=40), Space({"hidden": (8, 16), "dropout": (0.1, 0.2)}), []).ask()
    assert len(set(few)) == 4


def test_a_grid_larger_than_asked_for_is_refused(tmp_path: Path) -> None:
    """With both numbers."""
    space = Space({"hidden": tuple(range(1, 9))})
    with pytest.raises(ConfigError, match=r"\b8\b.*--heads is 4"):
        start_search(config(tmp_path, search="grid", heads=4), space, [])
    search = start_search(config(tmp_path, search="grid", heads=8), space, [])
    assert len(search.ask()) == 8
    assert search.ask() == []


def test_optuna_learns_from_batch_to_batch(tmp_path: Path) -> None:
    """Told that small rates do well, it proposes smaller ones later; told the same, it proposes the same."""
    pytest.importorskip("optuna")
    space = Space({"lr": Range(1e-4, 1.0, log=True), "hidden": (8, 16)})

    def found() -> list[list[HeadSettings]]:
        search = start_search(config(tmp_path, search="optuna", heads=40), space, [])
        batches = []
        while batch := search.ask():
            batches.append(batch)
            search.tell([(head, 1.0 - head.lr, 20) for head in batch])
        return batches

    batches = found()
    assert 36 <= sum(map(len, batches)) <= 40
    first, last = (np.median([np.log(head.lr) for head in batches[n]]) for n in (0, -1))
    assert last < first
    assert found() == batches


def test_optuna_is_told_the_epoch_of_a_score_and_which_heads_were_stopped(tmp_path: Path) -> None:
    """A stopped head is a pruned trial with its score at its epoch, not a finished one with a worse result."""
    pytest.importorskip("optuna")
    search = start_search(config(tmp_path, search="optuna", heads=8, epochs=20), Space({"lr": Range(1e-4, 1.0)}), [])
    first, second = search.ask()
    search.tell([(first, 0.9, 20), (second, 0.5, 1)])
    finished, stopped = search._study.trials  # type: ignore[attr-defined]
    assert (finished.state.name, finished.value, finished.intermediate_values) == ("COMPLETE", 0.9, {20: 0.9})
    assert (stopped.state.name, stopped.intermediate_values) == ("PRUNED", {1: 0.5})


def test_contenders_are_the_default_and_one_in_each_basis() -> None:
    """Once each; at a higher rate where the basis is narrow."""
    default = HeadSettings("full")
    assert first_trials(Space({"lr": (1.0,)}), default) == [default]
    assert first_trials(Space({"basis": ("full", "pool")}), default) == [default, HeadSettings("pool")]
    assert first_trials(Space({"basis": ("full+lda",)}), default) == [default, HeadSettings("full+lda", lr=NARROW_RATE)]


def test_the_default_space_suits_the_classes_and_rows() -> None:
    """Few classes have few discriminants: principal directions stand beside them, no more than there are."""
    assert default_space("full", 2, 60).domains["basis"] == ("full", "full+lda:4+pca:60", "full+lda:8+pca:60")
    assert default_space("full", 64, 900).domains["basis"] == ("full", "full+lda:4+pca:64", "full+lda:8+pca:64")
    assert default_space("pool", 65, 900).domains["basis"] == ("pool", "pool+lda:4", "pool+lda:8")


def test_the_default_space_draws_the_wide_basis_less_often() -> None:
    """Its heads take about five times as long."""
    space, numbers = default_space("pyramid+white", 102, 10_000), np.random.default_rng(0)
    drawn = Counter(space.sample(numbers).basis for _ in range(1500))
    assert drawn.keys() == set(space.domains["basis"])  # type: ignore[arg-type]  # a tuple
    assert 50 < drawn["pyramid+white"] < 150 < 600 < drawn["pyramid+white+lda:4"]
