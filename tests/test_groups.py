"""Groups of images that are no independent evidence: read, kept, and never cut by a split of the program's own."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Extract, draw_image, grouped_table, logged, train_config
from hypothesis import given
from hypothesis import strategies as st

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.commands.evaluate import evaluate
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import EvaluateConfig
from pipeline.errors import ConfigError, ImageSetError
from pipeline.inputs.images import ImageSet, stale_files
from pipeline.inputs.splitting import grouped_by, split_by_class


def record(number: int, label: str = "a", group: str = "", path: str = "") -> ImageRecord:
    """An image that no file is needed for."""
    return ImageRecord(path or f"{number}.jpg", f"{number * 2654435761 % 2**256:064x}", label, "", 1, 0, group)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=80), st.integers(0, 3))
def test_a_split_cuts_no_group(images: list[tuple[str, int]], seed: int) -> None:
    """Whatever its size, and whether it has one class or several; group 0 stands for none."""
    records = [record(n, label, str(group or "")) for n, (label, group) in enumerate(images)]
    split = split_by_class(records, seed)
    assert [image.path for image in split] == [image.path for image in records]
    places = Counter(group for group, _ in {(image.group, image.split) for image in split if image.group})
    assert set(places.values()) <= {1}
    assert {image.split for image in split} <= {"train", "valid", "test"}
    assert any(image.split == "train" for image in split)


def test_groups_are_taken_whole_as_long_as_they_fit() -> None:
    """Ten tracks of ten frames: one for validation and one for test; of two tracks, one."""
    tracks = [record(n, "a", f"track {n // 10}") for n in range(100)]
    assert Counter(image.split for image in split_by_class(tracks, 0)) == {"train": 80, "valid": 10, "test": 10}
    assert Counter(image.split for image in split_by_class(tracks[:20], 0)) == {"train": 10, "valid": 10}
    assert {image.split for image in split_by_class(tracks[:10], 0)} == {"train"}


def test_groups_come_from_paths() -> None:
    """By the first capture, wherever in the path it is found; what has none is a group of its own."""
    paths = ["camera_1/a.jpg", "camera_1/b.jpg", "camera_22/a.jpg", "other/a.jpg"]
    images, said = [record(n, path=path) for n, path in enumerate(paths)], list[str]()
    assert [one.group for one in logged(said, grouped_by, images, r"camera_(\d+)/")] == ["1", "1", "22", ""]
    assert said == ["--group-by: 1 path without a match, each a group of its own"]
    with pytest.raises(ImageSetError, match=r"found in no path, the first is 'camera_1/a.jpg'"):
        grouped_by(images, "(lens)")
    with pytest.raises(ImageSetError, match="the images have groups already"):
        grouped_by([replace(images[0], group="x")], "(a)")


@pytest.mark.parametrize(("expression", "wrong"), [("(", "is not a regular expression"), ("a+", "captures nothing")])
def test_an_expression_that_cannot_group_is_refused(expression: str, wrong: str) -> None:
    """Before any work."""
    with pytest.raises(ConfigError, match=wrong):
        ExtractConfig(Path("data"), Path("features"), group_by=expression)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV with a column of groups, two of which its splits cut."""
    lines = [("path", "label", "split", "group")]
    for number in range(24):
        path = draw_image(tmp_path / "images" / f"{number}.png", number, "10" if number % 2 else "1")
        split = ("train", "train", "valid", "test")[number % 4]
        lines.append((str(path), "10" if number % 2 else "1", split, f" burst {number // 3} " if number < 6 else ""))
    with open(tmp_path / "set.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return tmp_path / "set.csv"


def test_a_column_of_the_table_is_kept_in_the_index(table: Path, run_extract: Extract, tmp_path: Path) -> None:
    """With blanks left out; a change of groups is a change of the set, which training refuses to overlook."""
    run_extract(data=table)
    index = FeatureCache.open(tmp_path / "features").index()
    assert [image.group for image in index.images[:7]] == ["burst 0"] * 3 + ["burst 1"] * 3 + [""]
    ungrouped = replace(index, images=tuple(replace(image, group="") for image in index.images))
    assert index.digest != ungrouped.digest
    table.write_text(table.read_text().replace("burst 1", "burst 7"))
    assert stale_files(index)[0].endswith("3.png is now of group 'burst 7', was of 'burst 1'")


def test_a_table_without_splits_is_split_by_group(table: Path, tmp_path: Path) -> None:
    """As a folder without splits is; a column that may be misspelt is refused."""
    cells = [line.split(",") for line in table.read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("\n".join(",".join([row[0], row[1], row[3]]) for row in cells))
    images = ImageSet.scan(tmp_path / "plain.csv")
    assert not images.has_splits
    assert {image.split for image in images.images} == {"train", "valid", "test"}
    assert len({image.split for image in images.images if image.group == "burst 0"}) == 1
    (tmp_path / "wrong.csv").write_text(table.read_text().replace("split", "spilt", 1))
    with pytest.raises(ImageSetError, match="has a column 'spilt': rename it to split, or leave it out"):
        ImageSet.scan(tmp_path / "wrong.csv")


def test_a_split_that_cuts_groups_is_said(table: Path, run_extract: Extract, tmp_path: Path) -> None:
    """With their number, in the run as well."""
    run_extract(data=table)
    said: list[str] = []
    result = logged(said, train_head, train_config(tmp_path / "features", tmp_path / "run"))
    assert result.leaks["groups"] == 2
    assert any(line.startswith("groups in more than one split: 2") for line in said)


def test_an_interval_is_over_groups(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Images of one group count as little more than one: the interval is wider."""
    grouped = grouped_table(tmp_path / "grouped.csv", data, lambda _, split, label: f"{split}-{label}")
    widths = []
    for name, source in (("alone", data), ("grouped", grouped)):
        run_extract(data=source, set=name)
        train_head(train_config(tmp_path / "features", tmp_path / name, set=name))
        low, high = evaluate(EvaluateConfig(tmp_path / name, split="valid")).intervals["top1"]
        widths.append(high - low)
    assert widths[1] > widths[0]


def test_groups_by_path_are_known_again(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """The index says how they were read, so that it agrees with its folder."""
    run_extract(group_by=r"image_(\d)")
    index = FeatureCache.open(tmp_path / "features").index()
    assert index.group_by == r"image_(\d)"
    assert {image.group for image in index.split("train")} == {"0", "1", "2"}
    assert stale_files(index) == []
    again = SetIndex.load(tmp_path / "features" / "sets" / "data.json")
    assert again == index


def test_a_group_is_never_split_where_the_data_has_no_splits(data: Path, tmp_path: Path) -> None:
    """The numbers of the files as groups: each in one split."""
    images = ImageSet.scan((data / "train").rename(tmp_path / "plain"), group_by=r"image_(\d)").images
    assert len({(image.group, image.split) for image in images}) == len({image.group for image in images})
