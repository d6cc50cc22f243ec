"""Scanning: three kinds of data, class order, splits, refusals, and noticing a folder that changed."""

import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, REPOSITORY, draw_dataset, draw_image

from cache.index import SetIndex, SkippedImage
from pipeline.errors import ImageSetError
from pipeline.inputs.images import ImageSet, stale_files


def folder_of_classes(root: Path, count: int = 20) -> Path:
    """Class folders without splits."""
    for number, label in enumerate(CLASSES):
        for n in range(count):
            draw_image(root / label / f"{n}.png", 1000 * number + n, label, (8, 8))
    return root


def scanned(data: Path) -> SetIndex:
    """The index of a data set as extract would save it."""
    return ImageSet.scan(data).index("set")


def test_classes_sort_as_names_not_as_numbers(data: Path) -> None:
    """Folders '1', '10', '100', '2' stand in that order, and labels are folder names."""
    images = ImageSet.scan(data)
    assert images.classes == ("1", "10", "100", "2")
    assert all(image.path.split("/")[1] == image.label for image in images.images)


def test_a_folder_of_splits_is_read_as_it_stands(data: Path) -> None:
    """Files go to the split of their folder, with digest and size."""
    index = scanned(data)
    assert index.counts() == {"train": 12, "valid": 8, "test": 4}
    image = index.images[0]
    assert image.size == (data / image.path).stat().st_size
    assert len(image.digest) == 64


def test_val_is_another_name_of_valid(data: Path) -> None:
    """A folder val/ is the validation split."""
    (data / "valid").rename(data / "val")
    assert scanned(data).counts()["valid"] == 8


def test_test_and_valid_may_be_missing(data: Path) -> None:
    """Extraction needs neither."""
    shutil.rmtree(data / "test")
    shutil.rmtree(data / "valid")
    assert scanned(data).counts() == {"train": 12, "valid": 0, "test": 0}


def test_a_folder_of_classes_is_split_within_each_class_as_the_documents_say(tmp_path: Path) -> None:
    """The counts of the quick start, whatever the seed."""
    quickstart = (REPOSITORY / "docs" / "quickstart.md").read_text("utf-8")
    table = [tuple(map(int, row)) for row in re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", quickstart, re.M)]
    assert {3, 4, 5, 8, 10, 20} <= {count for count, *_ in table}
    for count, *_ in table:
        for number in range(count):
            (tmp_path / f"of {count}").mkdir(exist_ok=True)
            (tmp_path / f"of {count}" / f"{number}.png").write_bytes(f"{count} {number}".encode())
    for seed in (0, 7):
        found = Counter((image.label, image.split) for image in ImageSet.scan(tmp_path, seed).images)
        for count, *split in table:
            assert [found[f"of {count}", name] for name in ("train", "valid", "test")] == split


def test_the_split_follows_from_seed_and_contents_alone(tmp_path: Path) -> None:
    """The same seed splits the same, also elsewhere and under other names; another seed splits otherwise."""
    first = folder_of_classes(tmp_path / "data")
    second = tmp_path / "moved"
    for path in first.rglob("*.png"):
        target = second / path.parent.name / f"renamed_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)

    def splits(data: Path, seed: int) -> dict[str, str]:
        return {image.digest: image.split for image in ImageSet.scan(data, seed).images}

    assert splits(first, 3) == splits(first, 3) == splits(second, 3)
    assert splits(first, 3) != splits(first, 4)


def test_identical_files_stay_in_one_split(tmp_path: Path) -> None:
    """Copies of every image, within the class and in another class, share its split."""
    root = folder_of_classes(tmp_path / "data", 10)
    for path in sorted(root.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy_{path.name}"))
        shutil.copy(path, root / "2" / f"also_{path.parent.name}_{path.name}")
    splits: dict[str, set[str]] = {}
    for image in ImageSet.scan(root).images:
        splits.setdefault(image.digest, set()).add(image.split)
    assert all(len(found) == 1 for found in splits.values())


def test_a_class_of_one_image_goes_to_train(tmp_path: Path) -> None:
    """And one of two images has one in train and one in valid."""
    root = tmp_path / "data"
    draw_image(root / "one" / "a.png", 1)
    draw_image(root / "two" / "a.png", 2)
    draw_image(root / "two" / "b.png", 3)
    found = sorted((image.label, image.split) for image in ImageSet.scan(root).images)
    assert found == [("one", "train"), ("two", "train"), ("two", "valid")]


def test_a_csv_gives_paths_labels_and_splits(tmp_path: Path) -> None:
    """Paths are relative to the CSV; val is valid; a byte order mark is no part of a column's name."""
    for n in range(3):
        draw_image(tmp_path / "images" / f"{n}.png", n)
    file = tmp_path / "split.csv"
    file.write_text(
        "\ufeffpath,label,split\nimages/0.png,10,train\nimages/1.png,10,val\nimages/2.png,10,test\n", "utf-8"
    )
    index = scanned(file)
    assert [(i.path, i.label, i.split) for i in index.images] == [
        ("images/0.png", "10", "train"),
        ("images/1.png", "10", "valid"),
        ("images/2.png", "10", "test"),
    ]
    assert index.root == str(tmp_path)


@pytest.mark.parametrize("name", ["split.CSV", "split.txt"])
def test_a_csv_of_any_name_has_its_folder_as_root(tmp_path: Path, name: str) -> None:
    """Every record's path leads from the index's root to its file, whatever the CSV is called."""
    draw_image(tmp_path / "a.png", 1)
    (tmp_path / name).write_text("path,label,split\na.png,x,train\n")
    index = scanned(tmp_path / name)
    assert Path(index.root, index.images[0].path).is_file()


def test_a_folder_called_like_a_csv_is_its_own_root(tmp_path: Path) -> None:
    """The suffix of a folder means nothing."""
    draw_image(tmp_path / "data.csv" / "train" / "x" / "a.png", 1)
    index = scanned(tmp_path / "data.csv")
    assert Path(index.root, index.images[0].path).is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.png,x\n", "with the columns path,label,split"),
        ("", "with the columns path,label,split"),
        ("path,label,split\na.png,x,holdout\n", "line 2"),
        ("path,label,split\na.png,,train\n", "line 2"),
        ("path,label,split\na.png,x\0,train\n", "no usable label"),
        ("path,label,split\na.png,x,\n", "line 2"),
        ("path,label,split\na.png,x,unlabelled\n", "line 2"),
        ("path,label,split\nb.png,x,train\n", "1 file not there"),
        ("path,label,split\na.png,x,train\n./a.png,y,valid\n", "names a file twice"),
        ("path,label,split\n", "no row below its header"),
        ("path,label,split\na.png,x,test\n", "no images in train"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """Each fault has its own message."""
    draw_image(tmp_path / "a.png", 1)
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(ImageSetError, match=message):
        ImageSet.scan(tmp_path / "split.csv")


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    """Binary data given as DATA is one clear error."""
    file = tmp_path / "model.bin"
    file.write_bytes(np.random.default_rng(0).integers(65, 90, 200_000).astype(np.uint8).tobytes())
    with pytest.raises(ImageSetError):
        ImageSet.scan(file)


def test_hidden_files_and_folders_are_ignored(data: Path) -> None:
    """Neither '.ipynb_checkpoints' as a class or split, nor '._image.jpg', nor a hidden folder within a class."""
    draw_image(data / "train" / ".ipynb_checkpoints" / "a.png", 91)
    draw_image(data / ".ipynb_checkpoints" / "1" / "a.png", 92)
    draw_image(data / "train" / "1" / ".ipynb_checkpoints" / "a.png", 93)
    draw_image(data / "train" / "1" / "._image.png", 94)
    images = ImageSet.scan(data)
    assert images.classes == CLASSES
    assert len(images.images) == 24


def test_files_that_are_no_images_are_ignored(data: Path) -> None:
    """By their suffix, whatever its case."""
    (data / "train" / "1" / "Thumbs.db").write_bytes(b"x")
    draw_image(data / "train" / "1" / "UPPER.PNG", 95)
    assert len(ImageSet.scan(data).images) == 25


def test_a_class_unknown_to_train_is_refused(data: Path) -> None:
    """Named with its split; a class that valid lacks is no fault."""
    shutil.rmtree(data / "valid" / "1")
    draw_image(data / "valid" / "rose" / "a.png", 96)
    with pytest.raises(ImageSetError, match=r"valid.*'rose'"):
        ImageSet.scan(data)


def test_the_wrong_level_is_met_with_the_right_one(data: Path) -> None:
    """A split, a folder above the data set, and a class folder each say what was meant."""
    with pytest.raises(ImageSetError, match=f"did you mean {re.escape(str(data))}"):
        ImageSet.scan(data / "train")
    with pytest.raises(ImageSetError, match=f"did you mean {re.escape(str(data))}"):
        ImageSet.scan(data.parent)
    with pytest.raises(ImageSetError, match=f"did you mean {re.escape(str(data / 'train'))}"):
        ImageSet.scan(data / "train" / "1")


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    """A missing folder and an empty one."""
    with pytest.raises(ImageSetError, match="none"):
        ImageSet.scan(tmp_path / "none")
    with pytest.raises(ImageSetError, match="holds no images"):
        ImageSet.scan(tmp_path)


def test_a_loop_of_links_is_refused(data: Path) -> None:
    """A link to a folder above it ends in an error that names it, not in endless listing."""
    (data / "train" / "1" / "again").symlink_to(data / "train", target_is_directory=True)
    with pytest.raises(ImageSetError, match="loop"):
        ImageSet.scan(data)


def test_links_to_files_and_folders_are_followed(data: Path, tmp_path: Path) -> None:
    """A linked file counts under its own name with its target's digest."""
    outside = draw_image(tmp_path / "outside" / "x.png", 97)
    (data / "train" / "1" / "link.png").symlink_to(outside)
    (data / "train" / "3").symlink_to(data / "train" / "2", target_is_directory=True)
    images = ImageSet.scan(data)
    found = {image.path: image.digest for image in images.images}
    assert "train/1/link.png" in found
    assert images.classes == ("1", "10", "100", "2", "3")
    (data / "train" / "4").symlink_to(outside.parent, target_is_directory=True)
    linked = ImageSet.scan(data)
    assert linked.classes == ("1", "10", "100", "2", "3", "4")
    assert {image.path for image in linked.images} - found.keys() == {"train/4/x.png"}
    assert stale_files(linked.index("set")) == []


def test_a_dangling_link_is_named(data: Path) -> None:
    """A link to nothing is listed as a file that cannot be read."""
    (data / "train" / "1" / "gone.png").symlink_to(data / "nowhere.png")
    with pytest.raises(ImageSetError, match=r"gone\.png"):
        ImageSet.scan(data)


def test_an_unchanged_folder_is_not_stale(data: Path) -> None:
    """Nor is one whose files were only touched, or that is out of reach."""
    index = scanned(data)
    assert stale_files(index) == []
    for path in data.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert stale_files(index) == []
    data.rename(data.with_name("away"))
    assert stale_files(index) == []


def test_a_changed_folder_is_told_file_by_file(data: Path) -> None:
    """Relabelled, new, gone and rewritten files are each named with what happened."""
    index = scanned(data)
    (data / "train" / "1" / "image_0.jpg").rename(data / "train" / "2" / "moved.jpg")
    draw_image(data / "valid" / "1" / "new.png", 98)
    draw_image(data / "test" / "2" / "image_0.png", 99, "2")
    told = stale_files(index)
    assert "train/1/image_0.jpg is gone" in told
    assert "train/2/moved.jpg is new" in told
    assert "valid/1/new.png is new" in told
    assert "test/2/image_0.png has other contents" in told
    assert len(told) == 4


def test_a_relabelled_csv_is_stale(tmp_path: Path) -> None:
    """The same file under another label or split is told."""
    for n in range(2):
        draw_image(tmp_path / f"{n}.png", n)
    file = tmp_path / "split.csv"
    file.write_text("path,label,split\n0.png,a,train\n1.png,b,train\n")
    index = scanned(file)
    file.write_text("path,label,split\n0.png,b,train\n1.png,b,valid\n")
    assert stale_files(index) == ["0.png is now train 'b', was train 'a'", "1.png is now valid 'b', was train 'b'"]


def test_a_file_whose_link_broke_is_stale(data: Path) -> None:
    """Where links dangle since the index was made, the file is told, not a traceback."""
    index = scanned(data)
    path = data / "train" / "1" / "image_0.jpg"
    path.unlink()
    path.symlink_to(data / "nowhere.jpg")
    assert any("train/1/image_0.jpg" in line for line in stale_files(index))


def test_a_skipped_file_that_stays_as_it_was_is_not_new(data: Path) -> None:
    """What --skip-bad left out does not make the folder stale."""
    images = ImageSet.scan(data)
    index = images.index("set", [SkippedImage(images.images[0].path, images.images[0].digest, "damaged")])
    assert len(index.images) == 23
    assert stale_files(index) == []


def test_the_split_seed_is_kept_for_later(tmp_path: Path) -> None:
    """The index holds what makes the same split again."""
    draw_dataset(tmp_path / "data", (8, 8))
    index = ImageSet.scan(tmp_path / "data", 5).index("set")
    assert index.split_seed == 5
    assert replace(index, split_seed=6).digest == index.digest


def test_a_skipped_file_that_was_mended_is_stale(data: Path) -> None:
    """A file left out as damaged counts as changed once its contents are other ones, and not before."""
    images = ImageSet.scan(data)
    bad = images.images[0]
    index = images.index("set", [SkippedImage(bad.path, bad.digest, "damaged")])
    assert stale_files(index) == []
    (data / bad.path).write_bytes(b"mended")
    assert stale_files(index) == [f"{bad.path} is new since it was skipped"]


def test_splits_without_train_are_refused(data: Path) -> None:
    """Folders valid and test alone are splits that lack train, not two classes."""
    shutil.rmtree(data / "train")
    with pytest.raises(ImageSetError, match="train"):
        ImageSet.scan(data)
