"""Backbones compared by their caches: on the same images, best first, with what their rows cost."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from conftest import Extract, tiny_tensors
from safetensors.torch import save_file
from scipy.stats import ttest_rel

from cache.errors import CacheError, HeadgraftError, MissingRows, UnknownSet
from cache.layout import HISTORY_FILE
from cache.store import FeatureCache
from cli import main
from pipeline.commands.compare import compare
from pipeline.commands.reduce import reduce_cache
from pipeline.config.heads import CompareConfig, ReduceConfig
from pipeline.errors import ConfigError, TargetExists
from pipeline.reporting.backbones import ComparedBackbone

Right = Callable[[int, int], bool]  # whether a head is right, by the numbers of cache and validation image


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of three epochs, by one thread."""
    monkeypatch.setattr("pipeline.heads.fit.MOST_EPOCHS", 3)
    monkeypatch.setattr("pipeline.commands.compare.available_cpus", lambda: 1)


@pytest.fixture
def caches(run_extract: Extract, tmp_path: Path) -> tuple[Path, Path]:
    """Of two backbones, the second without an augmented pass; the first has a row of 32 features."""
    run_extract(passes=1)
    save_file(tiny_tensors(1), tmp_path / "other.safetensors")
    run_extract(cache=tmp_path / "other", weights=str(tmp_path / "other.safetensors"))
    return tmp_path / "features", tmp_path / "other"


@pytest.fixture
def with_hits(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[Path, ...], Right], None]:
    """Have heads be right as told: images are numbered by their digests, whatever their order in the index."""

    def answer(caches: tuple[Path, ...], right: Right) -> None:
        asked = iter(enumerate(caches))

        def predicted(*_: object) -> torch.Tensor:
            number, cache = next(asked)
            index = FeatureCache.open(cache).index()
            images = index.split("valid")
            order = sorted(image.digest for image in images)
            named = [
                (label + (not right(number, order.index(image.digest)))) % len(index.classes)
                for image, label in zip(images, index.labels(images).tolist(), strict=True)
            ]
            return torch.eye(len(index.classes))[named]

        monkeypatch.setattr("pipeline.commands.compare.predict_validation", predicted)

    return answer


def test_the_best_is_first_and_the_difference_is_paired(
    caches: tuple[Path, Path], with_hits: Callable[[tuple[Path, ...], Right], None]
) -> None:
    """Right about 4 and 7 of 8 images, 3 of them by both: of one seed, the interval is that of a paired t-test."""
    with_hits(caches, lambda cache, image: image >= 4 if cache == 0 else image < 7)
    result = compare(CompareConfig(caches, seeds=1))
    best, other = result.backbones
    assert (best.cache, best.valid_accuracy, other.cache, other.valid_accuracy) == (
        str(caches[1]),
        0.875,
        str(caches[0]),
        0.5,
    )
    assert (best.difference, best.difference_low, best.difference_high) == (0, 0, 0)
    expected = ttest_rel([0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0]).confidence_interval()
    assert other.difference == -0.375
    assert (other.difference_low, other.difference_high) == pytest.approx((expected.low, expected.high))
    assert best.low < 0.875 < best.high
    first, second, *_ = result.in_words().splitlines()[1:]
    assert str(caches[1]) in first
    assert "-37.50" in second


def test_images_are_paired_by_content(
    caches: tuple[Path, Path],
    data: Path,
    run_extract: Extract,
    with_hits: Callable[[tuple[Path, ...], Right], None],
) -> None:
    """Files of other names lie in another order in their index."""
    for path in (data / "valid").glob("*/image_0.*"):
        path.rename(path.with_name(f"renamed{path.suffix}"))
    run_extract(cache=caches[1], weights=str(caches[1].with_suffix(".safetensors")))
    shutil.rmtree(data)  # the first cache knows the files by their former names
    orders = [[image.digest for image in FeatureCache.open(cache).index().split("valid")] for cache in caches]
    assert orders[0] != orders[1]
    with_hits(caches, lambda _, image: image % 3 == 0)
    for one in compare(CompareConfig(caches, seeds=1)).backbones:
        assert (one.valid_accuracy, one.difference_low, one.difference_high) == (0.375, 0, 0)


def test_caches_that_are_equal_differ_by_nothing(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """The same heads are trained on each; of equals the one that was named first is first."""
    copy = shutil.copytree(caches[0], tmp_path / "copy")
    result = compare(CompareConfig((copy, caches[0])))
    assert [one.cache for one in result.backbones] == [str(copy), str(caches[0])]
    assert (result.passes, result.seeds, result.images, result.epochs) == (1, 3, 8, 3)
    assert all(one.difference_low <= 0 <= one.difference_high for one in result.backbones)
    assert result.backbones[0].valid_accuracy == result.backbones[1].valid_accuracy


def test_heads_see_the_passes_that_all_caches_have(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """Unless fewer are asked for; more are refused."""
    assert compare(CompareConfig(caches, seeds=1)).passes == 0
    copy = shutil.copytree(caches[0], tmp_path / "copy")
    assert compare(CompareConfig((caches[0], copy), passes=0, seeds=1)).passes == 0
    with pytest.raises(MissingRows, match="--passes"):
        compare(CompareConfig(caches, passes=1))


def test_the_command_prints_one_object(caches: tuple[Path, Path]) -> None:
    """With the fields of the result, and with what each backbone costs; nothing is written but projections."""
    result = CliRunner().invoke(main, ["compare", *map(str, caches), "--seeds", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["set"], found["images"]) == ("data", 8)
    for one in found["backbones"]:
        assert list(one) == [field.name for field in fields(ComparedBackbone)]
        assert (one["backbone"], one["basis"], one["bytes_per_image"]) == ("tiny", "pyramid+white", 64)
        assert one["images_per_second"] > 0


def test_without_a_record_of_extraction_there_is_no_rate(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor a point in the chart; where no cache has one, no chart is drawn, which is said before any training."""
    (caches[0] / HISTORY_FILE).unlink()
    chart = tmp_path / "charts" / "backbones.svg"
    result = compare(CompareConfig(caches, seeds=1, svg=chart))
    rates = {one.cache: one.images_per_second for one in result.backbones}
    assert rates[str(caches[0])] is None
    assert rates[str(caches[1])]
    assert "tiny, features" not in chart.read_text("utf-8")
    (caches[1] / HISTORY_FILE).unlink()
    with pytest.raises(ConfigError, match="--svg"):
        compare(CompareConfig(caches, svg=chart, overwrite=True))


def test_the_chart_is_an_svg_file(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """With the names as text, in colours that need no page; one that is there is overwritten only if asked for."""
    named = shutil.copytree(caches[0], tmp_path / "<$b$ & c>")
    chart = tmp_path / "backbones.svg"
    compare(CompareConfig((caches[1], named), seeds=1, svg=chart))
    root = ElementTree.fromstring(chart.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"tiny, other", "tiny, <$b$ & c>", "seconds for 1,000 images"} <= texts
    assert "var(" not in chart.read_text("utf-8")
    with pytest.raises(TargetExists, match="--overwrite"):
        compare(CompareConfig(caches, svg=chart))


def test_a_reduced_cache_is_compared_too(caches: tuple[Path, Path], tmp_path: Path) -> None:
    """Its backbone is named with the basis of the reduction; it has no record of an extraction."""
    small = tmp_path / "small"
    reduce_cache(ReduceConfig(caches[0], small, basis="pool+pca:6", seeds=0))
    found = {one.cache: one for one in compare(CompareConfig((caches[0], small), seeds=1)).backbones}
    one = found[str(small)]
    assert (one.backbone, one.basis, one.bytes_per_image) == ("tiny, reduced by pool+pca:6", "full", 12)
    assert one.images_per_second is None


def test_caches_that_cannot_be_compared_are_refused(
    caches: tuple[Path, Path], data: Path, run_extract: Extract, tmp_path: Path
) -> None:
    """In a sentence that names the cache: other splits, another set, one cache, the same one twice."""
    link = tmp_path / "link"
    link.symlink_to(caches[0])
    for few, message in ((caches[:1], "features"), ((caches[0], caches[0]), "features"), ((caches[0], link), "link")):
        with pytest.raises(ConfigError, match=message):
            CompareConfig(few)
    with pytest.raises(UnknownSet, match="--set"):
        compare(CompareConfig(caches, set="flowers"))
    moved = shutil.copytree(data, tmp_path / "moved" / "data")
    one, *_ = (moved / "train" / "1").iterdir()
    one.rename(moved / "valid" / "1" / one.name.replace("image", "moved"))
    run_extract(data=moved, cache=tmp_path / "third", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(CacheError, match=r"third.* in 1 training") as refused:
        compare(CompareConfig((*caches, tmp_path / "third")))
    assert isinstance(refused.value, HeadgraftError)
