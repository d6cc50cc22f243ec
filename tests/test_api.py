"""The public names: `import pipeline as hg`, functions of options, features as arrays, results in a notebook."""

import inspect
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, Extract

import pipeline as hg
from cache.errors import MissingRows
from cache.store import FeatureCache
from cli import main
from pipeline import api
from pipeline.config.heads import TrainConfig
from pipeline.errors import ConfigError
from pipeline.run_record import TrainResult


def test_importing_it_imports_no_torch() -> None:
    """In a new process; the first name that is used does."""
    code = "import sys, pipeline as hg; assert 'torch' not in sys.modules; hg.load_model; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_version_is_that_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on the command line; where nothing is installed it says so, since the report has it on its page."""
    said = CliRunner().invoke(main, ["--version"])
    assert said.output == f"headgraft, version {metadata.version('headgraft')}\n"
    assert hg.__version__ in said.output

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert "not installed" in CliRunner().invoke(main, ["--version"]).output


def test_every_public_name_is_there_and_no_other() -> None:
    """Also for completion; an unknown name is an AttributeError that says so."""
    assert all(getattr(hg, name) is getattr(api, name) for name in api.__all__)
    assert set(api.__all__) <= set(dir(hg))
    with pytest.raises(AttributeError, match="extrct"):
        _ = hg.extrct  # type: ignore[attr-defined]


def test_a_command_has_the_options_of_its_config() -> None:
    """Its signature, and a word about each in its text."""
    assert list(inspect.signature(hg.train_head).parameters) == [field.name for field in fields(TrainConfig)]
    described = inspect.getdoc(hg.train_head) or ""
    assert all(f"    {field.name}: " in described for field in fields(TrainConfig))
    with pytest.raises(ConfigError, match="dropout"):
        hg.train_head("nowhere", "run", dropout=2)  # type: ignore[arg-type]  # a path may be text


def test_features_are_arrays_of_a_split(run_extract: Extract) -> None:
    """Clean views in the order of the index, then the augmented passes of training images."""
    cache = FeatureCache.open(Path(run_extract(passes=1).cache))
    index, train = cache.index(), cache.index().split("train")
    found = hg.load_features(cache.path, "train", passes=1)
    rows = cache.read([(image.key, f"pass:{number}") for number in (0, 1) for image in train])
    assert np.array_equal(found.X, rows.astype(np.float32))
    assert found.y.tolist() == 2 * index.labels(train).tolist()
    assert found.paths.tolist() == 2 * [image.path for image in train]
    assert found.groups.tolist() == found.paths.tolist()  # there are no groups
    assert found.digests.tolist() == 2 * [image.digest for image in train]
    assert set(found.splits) == {"train"}
    assert repr(found) == f"Features(X: 24 x {cache.in_features} of train, 4 classes)"
    assert found.passes.tolist() == [0] * len(train) + [1] * len(train)
    assert found.classes == index.classes


def test_features_of_several_splits_are_those_of_each(run_extract: Extract) -> None:
    """One after the other."""
    cache = run_extract().cache
    both, *each = (hg.load_features(cache, split) for split in ("train+valid", "train", "valid"))
    assert np.array_equal(both.X, np.concatenate([one.X for one in each]))
    assert np.array_equal(both.y, np.concatenate([one.y for one in each]))


def test_pooled_features_are_means_over_the_map(run_extract: Extract) -> None:
    """(N, channels), of rows of channels x height x width."""
    cache = FeatureCache.open(Path(run_extract().cache))
    whole, pooled = (hg.load_features(cache.path, "valid", regions=regions) for regions in ("full", "pool"))
    assert np.allclose(pooled.X, whole.X.reshape(len(whole.X), cache.row_shape[0], -1).mean(2), atol=1e-6)


def test_identical_files_and_near_duplicates_are_of_one_group(data: Path, run_extract: Extract) -> None:
    """Or folds of scikit-learn would have an image on both sides."""
    known = next((data / "train" / "1").iterdir())
    (data / "train" / "1" / "again.png").write_bytes(known.read_bytes())
    found = hg.load_features(run_extract().cache, "train")
    same = found.digests == found.digests[list(found.paths).index("train/1/again.png")]
    assert same.sum() == 2
    assert len({*found.groups[same]}) == 1
    assert len({*found.groups}) == len(found.groups) - 1
    near = hg.load_features(run_extract().cache, "train", group_near_duplicates=True)
    assert len({*near.groups}) < len({*found.groups})  # noise of one colour looks the same


def test_features_that_are_not_there_are_refused(run_extract: Extract) -> None:
    """A split, regions, a pass."""
    cache = run_extract().cache
    with pytest.raises(ConfigError, match="'valdi'"):
        hg.load_features(cache, "train+valdi")
    with pytest.raises(ConfigError, match="no unlabelled images, it has train, valid, test"):
        hg.load_features(cache, "unlabelled")
    with pytest.raises(ConfigError, match=r"pool\+white"):
        hg.load_features(cache, regions="pool+white")
    with pytest.raises(MissingRows, match="0 augmented passes, 2 asked"):
        hg.load_features(cache, passes=2)


class Cells(HTMLParser):
    """Text of the cells of tables; every element that is opened must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_a_result_shows_itself_in_a_notebook(run_extract: Extract, tmp_path: Path) -> None:
    """Its words, and all its fields, of lists a table."""
    result = hg.train_head(Path(run_extract().cache), tmp_path / "run", epochs=12)
    cells = Cells(result._repr_html_()).cells
    assert result.in_words() in cells
    assert {field.name for field in fields(TrainResult)} <= set(cells)
    assert {"10 of 12", "train_loss", f"{result.epochs[0].train_loss:.4g}"} <= set(cells)


def test_names_of_files_are_no_markup_in_a_notebook(run_extract: Extract) -> None:
    """They may hold anything."""
    result = run_extract()
    result.set = "<b>bold</b>"
    assert "<b>bold</b>" in "".join(Cells(result._repr_html_()).cells)
    assert "<b>" not in result._repr_html_()
