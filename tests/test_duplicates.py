"""Near-duplicates: what is found, at a threshold calibrated on the cache, and the groups that they make."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import CLASSES, Extract, draw_image, require_weights, some_flowers
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

import pipeline.duplicates.near_duplicates as near
from cache.index import ImageRecord
from cache.store import FeatureCache
from cli import main
from pipeline.commands.extract import extract
from pipeline.commands.reduce import reduce_cache
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import ReduceConfig
from pipeline.duplicates.near_duplicates import NearDuplicates, near_duplicates
from pipeline.duplicates.threshold import FalseAlarms, false_alarms
from pipeline.errors import ConfigError
from pipeline.statistics.groups import join


def found_in(path: Path, threshold: float | None = None) -> NearDuplicates:
    """Of the only set."""
    cache = FeatureCache.open(path)
    return near_duplicates(cache, cache.index(), threshold)


def units(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Directions (N, 32) without any near-duplicates, and labels (N,) of 20 classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(20, (count,), generator=generator)
    return normalize(torch.randn(count, 32, generator=generator), dim=1), labels


def calibrated(rows: Tensor, labels: Tensor) -> FalseAlarms:
    """Where there are enough pairs."""
    alarms = false_alarms(rows, labels)
    assert alarms is not None
    return alarms


def test_at_the_calibrated_threshold_few_false_pairs_are_expected_and_found() -> None:
    """One expected, as a bound: in ten sets without near-duplicates there are fewer than ten pairs in all."""
    false = 0
    for seed in range(10):
        rows, labels = units(1000, seed)
        least = calibrated(rows, labels).cosine(1 / (1000 * 999 / 2))
        false += int(((rows @ rows.T).triu(1) >= least).sum())
    assert false <= 10


def test_a_handful_of_copies_with_two_labels_does_not_move_the_threshold() -> None:
    """Images copied under another label, as label errors are: 5 raise it by less than 0.02, and 20 keep it below 1."""
    rows, labels = units(1000)
    before = calibrated(rows, labels).cosine(2e-6)
    for copies, most in ((5, before + 0.02), (20, 0.9)):
        rows[:copies], labels[:copies] = rows[20 : 20 + copies], (labels[20 : 20 + copies] + 1) % 20
        assert before <= calibrated(rows, labels).cosine(2e-6) < most


def test_the_rate_of_false_alarms_is_that_of_pairs_of_different_classes() -> None:
    """Counted where there are many; beyond, the inverse of the threshold."""
    rows, labels = units(1000)
    alarms = calibrated(rows, labels)
    different = (labels[:, None] != labels).triu(1)
    cosines = (rows @ rows.T)[different]
    assert alarms.pairs == int(different.sum())
    assert alarms.rate(0.3) == pytest.approx(float((cosines >= 0.3).double().mean()), rel=0.01)
    assert alarms.rate(alarms.cosine(1e-6)) == pytest.approx(1e-6)
    assert false_alarms(rows[:10], labels[:10]) is None
    assert false_alarms(rows, torch.zeros(1000, dtype=torch.int64)) is None


def copies_of(image: Image.Image) -> dict[str, Image.Image]:
    """Mirrored, shifted by 8 %, at half the size."""
    width, height = image.size
    return {
        "mirrored": ImageOps.mirror(image),
        "shifted": image.crop((round(0.08 * width), 0, width, round(0.92 * height))),
        "half": image.resize((width // 2, height // 2)),
    }


@pytest.mark.real
def test_mirrored_shifted_and_re_encoded_copies_are_found(tmp_path: Path) -> None:
    """Of real flowers, by real features: all copies of four of them, and of other pairs at most one."""
    require_weights("alexnet")
    for number, path in enumerate(some_flowers(60)):
        target = tmp_path / "data" / "train" / path.parent.name
        target.mkdir(parents=True)
        shutil.copy(path, target / f"{number}.jpg")
        if number < 4:
            image = Image.open(path).convert("RGB")
            image.save(target / f"{number}_encoded.jpg", quality=40)
            for kind, copy in copies_of(image).items():
                copy.save(target / f"{number}_{kind}.png")
    extract(ExtractConfig(tmp_path / "data", tmp_path / "features", backbone="alexnet", device="cpu"))
    found = found_in(tmp_path / "features")
    names = [(Path(pair.a).stem, Path(pair.b).stem) for pair in found.pairs]
    same = {tuple(sorted(pair)) for pair in names if pair[0].split("_")[0] == pair[1].split("_")[0]}
    for number in range(4):
        for kind in ("encoded", "mirrored", "shifted", "half"):
            assert (f"{number}", f"{number}_{kind}") in same
    assert len(found.pairs) - len(same) <= 1
    assert found.threshold.cosine is not None
    assert found.threshold.detection_rate is None


def with_copies(data: Path, run_extract: Extract, tmp_path: Path, passes: int = 0) -> Path:
    """40 images, one file twice under two labels, one picture in two formats."""
    for label in CLASSES:
        for number in range(4):
            draw_image(data / "train" / label / f"more_{number}.png", 500 + 10 * CLASSES.index(label) + number, label)
    original = sorted((data / "train" / "1").iterdir())[0]
    shutil.copy(original, data / "valid" / "10" / original.name)
    draw_image(data / "train" / "1" / "again.bmp", 0)
    draw_image(data / "train" / "1" / "again.png", 0)
    run_extract(passes=passes)
    return tmp_path / "features"


def test_near_duplicates_come_with_other_labels_first(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """A copy under another label, then a copy under the same; identical bytes are said."""
    pairs = found_in(with_copies(data, run_extract, tmp_path)).pairs
    assert pairs[0].labels[0] != pairs[0].labels[1]
    assert pairs[0].identical
    assert any(not pair.identical and {pair.a, pair.b} >= {"train/1/again.bmp", "train/1/again.png"} for pair in pairs)
    assert pairs == sorted(pairs, key=lambda p: (p.labels[0] == p.labels[1], -p.cosine, p.a, p.b))


def test_an_explicit_threshold_is_kept_and_rated(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """With a pass, the detection rate is that of its views; what is no cosine is refused."""
    path = with_copies(data, run_extract, tmp_path, passes=1)
    strict, loose = found_in(path, 0.99999), found_in(path, -1)
    assert strict.threshold.cosine == 0.99999
    assert all(pair.cosine >= 0.9999 for pair in strict.pairs)
    assert loose.threshold.detection_rate == 1.0
    assert loose.threshold.false_alarm_rate == 1.0
    assert strict.threshold.detection_rate is not None
    assert strict.threshold.detection_rate < 1
    for wrong in (float("nan"), 1.1):
        with pytest.raises(ConfigError, match="--threshold"):
            found_in(path, wrong)


def test_too_few_images_still_have_their_identical_files(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Where no threshold can be calibrated."""
    for label in CLASSES[1:]:
        shutil.rmtree(data / "train" / label)
        shutil.rmtree(data / "valid" / label)
        shutil.rmtree(data / "test" / label)
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "valid" / "1" / "copy.jpg")
    run_extract()
    found = found_in(tmp_path / "features")
    assert [(pair.a, pair.b, pair.identical) for pair in found.pairs] == [
        ("train/1/image_0.jpg", "valid/1/copy.jpg", True)
    ]
    assert found.threshold.cosine is None


def test_images_in_parts_are_compared_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are in memory; of each image the nearest are kept."""
    generator = torch.Generator().manual_seed(0)
    rows = normalize(torch.randn(50, 4, generator=generator), dim=1)
    expected = near._close(lambda some: rows[some], 50, 0.8)
    monkeypatch.setattr(near, "_BLOCK", 8)
    monkeypatch.setattr(near, "_HELD", 16)
    in_parts = near._close(lambda some: rows[some], 50, 0.8)
    assert {(a, b) for a, b, _ in in_parts.tolist()} == {(a, b) for a, b, _ in expected.tolist()}
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    for place in range(50):
        nearest = int(cosines[place].argmax())
        if cosines[place, nearest] >= 0.8:
            assert (min(place, nearest), max(place, nearest)) in {(a, b) for a, b, _ in expected.tolist()}
    monkeypatch.setattr(near, "NEAREST", 1)
    assert 0 < len(near._close(lambda some: rows[some], 50, -1)) <= 50


def records(count: int) -> list[ImageRecord]:
    """Images of different contents."""
    return [ImageRecord(f"{one}.jpg", f"{one:064x}", "a", "train", 1, 0) for one in range(count)]


def test_a_chain_of_pairs_does_not_swallow_a_set() -> None:
    """Groups have at most a tenth of the images and 100; the highest cosines are joined first."""
    images = records(3000)
    chain = [(1 - one / 3000, images[one].digest, images[one + 1].digest) for one in range(2999)]
    numbers = join(images, chain).numbers(images)
    sizes = np.bincount(numbers)
    assert sizes.max() == 100
    assert len(set(numbers[:100].tolist())) == 1
    few = join(images[:30], chain[:29]).numbers(images[:30])
    assert np.bincount(few).max() == 3
    assert join(images[:2], chain[:1]).numbers(images[:2]).tolist() == [0, 0]


def test_identical_files_are_one_group_however_many() -> None:
    """Beyond any limit of chains, and the numbers do not depend on the order of files."""
    same = [ImageRecord(f"{one}.jpg", "f" * 64, "a", "train", 1, 0) for one in range(20)]
    images = [*records(5), *same]
    groups = join(images, [])
    assert len(set(groups.numbers(same).tolist())) == 1
    assert len(set(groups.numbers(images).tolist())) == 6
    assert join(images[::-1], []).of == groups.of


def test_the_command_says_both_rates(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """In words and as JSON."""
    path = str(with_copies(data, run_extract, tmp_path, passes=1))
    shown = CliRunner().invoke(main, ["cache", "info", path, "--duplicates"])
    assert shown.exit_code == 0, shown.output
    assert "false pairs of different classes expected: " in shown.stdout
    assert "of augmented views recognised" in shown.stdout
    rates = json.loads(CliRunner().invoke(main, ["cache", "info", path, "--duplicates", "--json"]).stdout)
    assert rates["near_duplicates"].keys() == {"threshold", "false_alarm_rate", "expected_false", "detection_rate"}
    assert None not in rates["near_duplicates"].values()
    refused = CliRunner().invoke(main, ["cache", "info", path, "--threshold", "0.9"])
    assert refused.exit_code != 0
    assert "--duplicates" in refused.output


def test_rows_of_a_reduced_cache_are_compared_as_they_are(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Without a map there are no regions to mirror; copies in another format are found all the same."""
    path = with_copies(data, run_extract, tmp_path)
    reduce_cache(ReduceConfig(path, tmp_path / "small", "pool+pca:4", seeds=0))
    pairs = {(pair.a, pair.b) for pair in found_in(tmp_path / "small").pairs}
    assert ("train/1/again.bmp", "train/1/again.png") in pairs
