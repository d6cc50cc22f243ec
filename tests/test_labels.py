"""Label issues: which labels are checked, by what, and how many correct and wrong ones are flagged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import CLASSES, Extract, draw_dataset, draw_image, flowers, require_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache.index import ImageRecord
from cache.store import FeatureCache
from pipeline.bases.clean_rows import CleanRows
from pipeline.bases.moments import Moments
from pipeline.commands.extract import extract
from pipeline.config.extract import ExtractConfig
from pipeline.duplicates.near_duplicates import near_duplicates
from pipeline.labelling.label_issues import label_issues, out_of_fold
from pipeline.labelling.ridge import FOLDS, NO_LABEL, PENALTY, OutOfFoldRidge, fit_fold, known_classes
from pipeline.statistics.folds import stratified_folds
from pipeline.statistics.groups import Groups, join


@dataclass
class Rows:
    """Features (N, R) in memory, as label issues read them."""

    features: Tensor
    labels: Tensor
    images: Sequence[ImageRecord]

    @property
    def width(self) -> int:
        """R."""
        return self.features.shape[1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them, in two blocks."""
        for places in torch.arange(len(self.features)).chunk(2):
            yield self.features[places], places


def records(count: int, seed: int = 0) -> list[ImageRecord]:
    """Images of any contents."""
    random = np.random.default_rng(seed)
    return [ImageRecord(f"{one}.jpg", random.bytes(32).hex(), "a", "train", 1, 0) for one in range(count)]


def synthetic(counts: Sequence[int], separation: float) -> Rows:
    """Classes of normal distributions, all labels correct."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(len(counts), 64, generator=generator) * separation
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = means[labels] + torch.randn(len(labels), 64, generator=generator)
    return Rows(features, labels, records(len(labels)))


def alone(images: Sequence[ImageRecord]) -> Groups:
    """Each content a group."""
    return join(images, [])


def flagged(rows: Rows) -> Tensor:
    """Which labels (N,) the folds disagree with, classes that cannot be checked among them."""
    folds = stratified_folds(rows.images, rows.labels, alone(rows.images), FOLDS)
    return out_of_fold(cast(CleanRows, rows), folds, int(rows.labels.max()) + 1).argmax(1) != rows.labels


def test_correct_labels_of_rare_classes_are_seldom_flagged() -> None:
    """Of 20 images in classes of 4 beside classes of 100, 20 were flagged where all images had the same weight."""
    rows = synthetic([100] * 20 + [4] * 5, 0.7)
    wrong = flagged(rows)
    assert int(wrong[rows.labels >= 20].sum()) <= 2
    assert int(wrong[rows.labels < 20].sum()) <= 40


def test_the_balanced_fit_is_that_of_classes_with_equally_many_images() -> None:
    """Where all classes have as many, it is ridge regression as it was; more copies of a class change no mean."""
    rows = synthetic([10] * 4, 0.5)
    one_hot = torch.nn.functional.one_hot(rows.labels, 4).float()
    both = torch.cov(torch.cat([rows.features, one_hot], 1).T, correction=0)
    penalty = PENALTY * both[:64, :64].diagonal().mean() * torch.eye(64)
    weights, mean = fit_fold(moments(rows.features, rows.labels, 4))
    torch.testing.assert_close(mean, rows.features.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        weights, torch.linalg.solve(both[:64, :64] + penalty, both[:64, 64:]), atol=1e-5, rtol=1e-3
    )
    assert fit_fold(moments(rows.features, rows.labels, 5))[0][:, 4].abs().max() == 0


def moments(features: Tensor, labels: Tensor, classes: int) -> Moments:
    """Of rows that all have a label."""
    found = Moments.zeros(features.shape[1], classes + 1)
    found.add(features, labels)
    return found


def direct(features: Tensor, labels: Tensor, folds: Tensor, classes: int) -> Tensor:
    """The scores (N, C) by a fit of each fold from the beginning."""
    known = known_classes(labels, folds, classes)[0]
    kept = torch.where((labels != NO_LABEL) & known[labels], labels, classes)
    scores = torch.empty(len(features), classes)
    for fold in range(FOLDS):
        inside = folds == fold
        weights, mean = fit_fold(moments(features[~inside], kept[~inside], classes))
        scores[inside] = (features[inside] - mean) @ weights
    return scores.masked_fill(~known, -torch.inf)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_changed_labels_give_the_scores_of_a_complete_fit(seed: int) -> None:
    """Whatever is relabelled, unlabelled or labelled, to known classes or new ones, alone or several at once."""
    draw = torch.Generator().manual_seed(seed)
    rows = synthetic([30, 20, 12, 6], 0.7)
    folds = torch.randint(FOLDS, (len(rows.labels),), generator=draw)
    labels = rows.labels.clone()
    labels[torch.rand(len(labels), generator=draw) < 0.2] = NO_LABEL
    ridge = OutOfFoldRidge(rows.features, labels, folds, 4)
    for _ in range(12):
        places = torch.randperm(len(labels), generator=draw)[: int(torch.randint(1, 6, (), generator=draw))]
        label = int(torch.randint(-1, 6, (), generator=draw))
        labels[places] = label
        ridge.relabel(places, label)
        torch.testing.assert_close(
            ridge.scores, direct(rows.features, labels, folds, ridge.num_classes), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("classes", [1, 3])
def test_each_class_is_in_every_fold_whatever_the_order_of_files(classes: int) -> None:
    """Counts of a class differ by at most one between folds, also for classes of few images."""
    images = records(26 * classes)
    labels = torch.cat([torch.full((count,), one) for one in range(classes) for count in (26,)])
    folds = stratified_folds(images, labels, alone(images), FOLDS)
    for label in range(classes):
        counts = torch.bincount(folds[labels == label], minlength=FOLDS)
        assert int(counts.max() - counts.min()) <= 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    again = stratified_folds([images[place] for place in order], labels[order], alone(images), FOLDS)
    assert torch.equal(again, folds[order])


def test_groups_stay_in_one_fold() -> None:
    """Near-duplicates, and identical files with two labels."""
    images = records(60)
    images[1] = replace(images[1], digest=images[0].digest)
    labels = torch.arange(60) % 2
    groups = join(images, [(0.9, images[place].digest, images[place + 2].digest) for place in range(10, 40, 6)])
    folds = stratified_folds(images, labels, groups, FOLDS)
    numbers = groups.numbers(images)
    for number in np.unique(numbers):
        assert len(set(folds[torch.from_numpy(numbers == number)].tolist())) == 1
    assert folds[0] == folds[1]


def checked_set(data: Path, run_extract: Extract, tmp_path: Path) -> FeatureCache:
    """12 images of each of four colours in train, and one wrong label among them."""
    for label in CLASSES:
        for number in range(3, 12):
            draw_image(data / "train" / label / f"more_{number}.png", 1000 + 50 * CLASSES.index(label) + number, label)
    draw_image(data / "train" / "1" / "wrong.png", 5, "2")
    run_extract()
    return FeatureCache.open(tmp_path / "features")


def test_a_wrong_label_is_found_and_no_correct_one(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Four colours are told apart by any fit."""
    torch.manual_seed(0)
    cache = checked_set(data, run_extract, tmp_path)
    index = cache.index()
    found = label_issues(cache, index, alone(index.images))
    assert [(issue.image.path, index.classes[issue.suggested]) for issue in found.found] == [("train/1/wrong.png", "2")]
    assert found.checked == 57
    assert found.unchecked == {}


def test_a_class_that_cannot_be_checked_is_listed_and_never_flagged(
    data: Path, run_extract: Extract, tmp_path: Path
) -> None:
    """One, two or four images, or many near-duplicates of one, say nothing of a label."""
    draw_dataset(data)
    (data / "train" / "few").mkdir()
    for number in range(4):
        draw_image(data / "train" / "few" / f"{number}.png", 700 + number, "1")
    cache = checked_set(data, run_extract, tmp_path)
    index = cache.index()
    few = index.classes.index("few")
    found = label_issues(cache, index, alone(index.images))
    assert found.unchecked == {few: 4}
    assert found.checked == 57
    assert all(few not in (issue.label, issue.suggested) for issue in found.found)
    ten = [image.digest for image in index.images if image.label == "10" and image.split == "train"]
    near = join(index.images, [(0.9, ten[0], other) for other in ten[1:5]])  # 14 images, enough groups
    assert label_issues(cache, index, near).unchecked == {few: 4}


@pytest.mark.real
def test_wrong_labels_come_first(tmp_path: Path) -> None:
    """Of flowers with 5 % of the training labels changed, at least 60 % are among the first 5 % of the label issues."""
    require_weights("alexnet")
    lines, generator = ["path,label,split"], np.random.default_rng(0)
    folders = sorted((flowers() / "train").iterdir(), key=lambda folder: -len(list(folder.iterdir())))[:12]
    images = [(path, folder.name) for folder in folders for path in sorted(folder.glob("*.jpg"))[:40]]
    flipped = set(generator.choice(len(images), len(images) // 20, replace=False).tolist())
    for number, (path, label) in enumerate(images):
        others = [folder.name for folder in folders if folder.name != label]
        shown = generator.choice(others) if number in flipped else label
        lines.append(f"{path},{shown},train")
    lines += [f"{path},{path.parent.name},valid" for folder in folders for path in sorted(folder.glob("*.jpg"))[40:42]]
    (tmp_path / "noisy.csv").write_text("\n".join(lines))
    settings: dict[str, Any] = {"backbone": "alexnet", "image_size": 128, "device": "cpu", "precision": "float32"}
    extract(ExtractConfig(tmp_path / "noisy.csv", tmp_path / "features", **settings))
    cache = FeatureCache.open(tmp_path / "features")
    index = cache.index()
    wrong = {index.split("train")[number].digest for number in flipped}
    issues = label_issues(cache, index, near_duplicates(cache, index).groups).found
    first = [one.image.digest for one in issues if one.image.split == "train"][: len(images) // 20]
    assert len(wrong & set(first)) >= 0.6 * len(wrong)
