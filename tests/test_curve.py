"""The learning curve: nested parts, the law through their errors, and forecasts that hold."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import Extract, Times, logged, train_config
from hypothesis import given
from hypothesis import strategies as st

from cache.index import ImageRecord
from cli import main
from pipeline.commands.curve import SHARES, curve
from pipeline.commands.report import report
from pipeline.commands.train import train_head
from pipeline.config.folds import CurveConfig
from pipeline.config.models import ReportConfig
from pipeline.cross_validation.learning_curve import curve_path
from pipeline.statistics.folds import nested_parts
from pipeline.statistics.groups import join
from pipeline.statistics.power_law import PowerLaw, curve_of, fit_power_laws

COUNTS = np.array([80.0, 160.0, 320.0, 480.0, 640.0])


def record(number: int, label: str, group: str = "") -> ImageRecord:
    """An image that no file is needed for."""
    return ImageRecord(f"{number}.jpg", f"{number * 2654435761 % 2**256:064x}", label, "train", 1, 0, group)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=5, max_size=80), st.integers(0, 2))
def test_parts_are_nested_and_keep_groups_and_classes(images: list[tuple[int, int]], draw: int) -> None:
    """Each holds the one before; the last holds all; a class is in every part; no group is divided."""
    records = [record(n, str(label), str(group)) for n, (label, group) in enumerate(images)]
    labels = torch.tensor([label for label, _ in images])
    parts = [set(part.tolist()) for part in nested_parts(records, labels, join(records), SHARES, draw)]
    assert all(small <= large for small, large in pairwise(parts))
    assert parts[-1] == set(range(len(records)))
    assert {int(labels[place]) for place in parts[0]} == set(labels.tolist())
    for part in parts:
        inside = {records[place].group for place in part}
        assert part == {place for place, one in enumerate(records) if one.group in inside}


def test_images_alone_are_in_their_share_of_each_class() -> None:
    """Of 40 of a class five, ten, twenty, thirty, forty; another draw takes others."""
    records = [record(n, str(n % 2)) for n in range(80)]
    labels = torch.arange(80) % 2
    one, other = (nested_parts(records, labels, join(records), SHARES, draw) for draw in (0, 1))
    assert [Counter(labels[part].tolist()) for part in one] == [{0: n, 1: n} for n in (5, 10, 20, 30, 40)]
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("law", [PowerLaw(0.05, 2.0, 0.5), PowerLaw(0.0, 1.0, 0.3), PowerLaw(0.1, 30.0, 1.2)])
def test_the_law_is_found(law: PowerLaw) -> None:
    """From errors without noise, also at four times the images."""
    found = fit_power_laws(COUNTS, law.at(COUNTS)[None], np.ones(5))[0]
    assert found.at(2560.0) == pytest.approx(law.at(2560.0), abs=2e-3)
    assert (found.a, found.c) == pytest.approx((law.a, law.c), abs=0.06)


def test_forecasts_hold(times: Times) -> None:
    """Errors drawn by a law, of images that are harder or easier, by heads of five folds: at four times the images."""
    count, inside = times(20, 200), 0
    law = PowerLaw(0.04, 2.0, 0.5)
    for seed in range(count):
        generator = np.random.default_rng(seed)
        hardness = generator.random(800)
        heads = generator.normal(0, 0.005, (5, 5))  # of the five folds
        fold_of = np.arange(800) % 5
        wrong = (hardness < law.at(COUNTS)[:, None] + heads[:, fold_of]).astype(float)
        _, _, forecast = curve_of(COUNTS, wrong, fold_of, np.arange(800), np.array([2560.0]))
        inside += int(forecast[0].low <= law.at(2560.0) <= forecast[0].high)
    assert inside >= 0.85 * count


def test_a_curve_of_a_cache(run_extract: Extract, tmp_path: Path) -> None:
    """Colours: points of rising numbers of images, forecasts, the classes, a drawing."""
    run_extract(passes=1)
    asked = CurveConfig(
        tmp_path / "features", folds=2, hidden=8, lr=1e-2, epochs=10, batch_size=8, basis="pool", svg=tmp_path / "c.svg"
    )
    found = curve(asked)
    assert found.images == 20
    assert [point.images for point in found.points] == sorted(point.images for point in found.points)
    assert found.points[-1].images == 10
    assert all(0 <= point.low <= point.error <= point.high <= 1 for point in found.points)
    assert [point.images for point in found.forecast] == [20, 40, 80]
    assert len(found.classes) == 4
    assert "<svg" in (tmp_path / "c.svg").read_text()
    assert "~by err" not in found.in_words()
    assert found.in_words().count("~") == 4


def test_its_json_is_what_is_promised(run_extract: Extract, tmp_path: Path) -> None:
    """points, fit and forecast."""
    run_extract()
    args = [
        "curve",
        "--cache",
        str(tmp_path / "features"),
        "--folds",
        "2",
        "--epochs",
        "2",
        "--basis",
        "pool",
        "--json",
    ]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["points"][0].keys() == {"images", "error", "low", "high"}
    assert found["fit"].keys() == {"a", "b", "c"}
    assert found["forecast"][0].keys() == {"images", "error", "low", "high"}


def test_the_page_shows_the_curve_of_the_set_as_it_is(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """With its forecasts; not that of other images, nor of a file that is none."""
    run_extract(passes=1)
    asked = CurveConfig(tmp_path / "features", folds=2, hidden=8, lr=1e-2, epochs=10, batch_size=8, basis="pool")
    found = curve(asked)
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    report(ReportConfig(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h3>Learning curve</h3>" in page
    for point in found.forecast:
        assert f"<td>{point.images} images</td><td>{100 * point.error:.1f}\u00a0%" in page
    path = curve_path(tmp_path / "features", "data")
    path.write_text("{}")
    said: list[str] = []
    logged(said, report, ReportConfig(tmp_path / "run"))
    assert any(line.startswith("without the learning curve") for line in said)
    found.save(path, "0" * 64)
    report(ReportConfig(tmp_path / "run"))
    assert "<h3>Learning curve</h3>" not in (tmp_path / "run" / "report.html").read_text()
