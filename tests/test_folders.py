"""Data sets as people have them: other folder names, links, kinds that are not read, tables from spreadsheets."""

import hashlib
import os
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest
from conftest import REPOSITORY, Extract, draw_image, heard

from cache.errors import CacheError
from cache.store import FeatureCache
from pipeline.commands.predict import find_images
from pipeline.errors import ImageSetError
from pipeline.inputs.images import ImageSet, changed_files, root_now, stale_files
from pipeline.inputs.splitting import count_leaks

Scan = tuple[ImageSet, list[str]]


def classes(folder: Path, names: tuple[str, ...] = ("rose", "tulip"), count: int = 2) -> None:
    """Class folders with images, all of them different."""
    for name in names:
        for number in range(count):
            draw_image(folder / name / f"{number}.png", crc32(bytes(folder / name) + bytes([number])), size=(8, 8))


def files(folder: Path, *names: str) -> None:
    """Files of no image kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def scan(data: Path) -> Scan:
    """The set, and the lines said of it; the listing agrees with itself when compared again."""
    said: list[str] = []
    with heard(said.append):
        images = ImageSet.scan(data)
    assert stale_files(images.index("set")) == []
    return images, said


def splits(images: ImageSet) -> dict[str, int]:
    """Images by split."""
    return dict(Counter(image.split for image in images.images))


def refused(data: Path) -> str:
    """The sentence that refuses `data`."""
    with pytest.raises(ImageSetError) as error:
        ImageSet.scan(data)
    return str(error.value)


def test_files_that_are_not_read_are_counted_by_extension(tmp_path: Path) -> None:
    """With the class folders that have nothing else; hidden files are not counted."""
    classes(tmp_path / "train")
    files(tmp_path / "train" / "lily", "1.JXL", "2.jxl")
    files(tmp_path / "train" / "rose", "a.psd", "README", ".DS_Store")
    (tmp_path / "train" / "iris").mkdir()
    images, said = scan(tmp_path)
    assert images.unread == {".jxl": 2, ".psd": 1, "no extension": 1}
    assert images.classes == ("rose", "tulip")
    line = next(line for line in said if ".jxl 2" in line)
    assert line.startswith("4 files")
    line = next(line for line in said if "class folder" in line)
    assert "train/lily (2 of other kinds)" in line
    assert "train/iris (empty)" in line


def test_where_nothing_is_read_the_error_says_what_there_is(tmp_path: Path) -> None:
    """A folder of one kind that is not read."""
    files(tmp_path / "a", "1.jxl", "2.jxl")
    assert ".jxl 2" in refused(tmp_path)


def test_images_beside_class_folders_are_counted_by_folder(tmp_path: Path) -> None:
    """In the data set's own folder and in a split's."""
    classes(tmp_path / "train")
    draw_image(tmp_path / "a.png", 1)
    draw_image(tmp_path / "train" / "b.png", 2)
    draw_image(tmp_path / "train" / "c.png", 3)
    images, said = scan(tmp_path)
    assert images.outside == {".": 1, "train": 2}
    assert any("3 images" in line and "train 2" in line for line in said)


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "Val", "Test"),
        ("train", "dev", "testing"),
        ("seg_train/seg_train", "seg_dev/seg_dev", "seg_test/seg_test"),
        ("training_set", "validation_set", "test_set"),
    ],
)
def test_splits_are_known_under_the_usual_names(tmp_path: Path, train: str, valid: str, test: str) -> None:
    """Whatever their case, and in a folder of the same name; what is not called as here is said."""
    classes(tmp_path / train, count=3)
    classes(tmp_path / valid, count=2)
    classes(tmp_path / test, count=1)
    images, said = scan(tmp_path)
    assert splits(images) == {"train": 6, "valid": 4, "test": 2}
    assert images.classes == ("rose", "tulip")
    assert f"{valid.split('/')[0]} is read as valid" in said[0]


def test_a_folder_in_a_folder_of_its_name_is_one(tmp_path: Path) -> None:
    """As archives are unpacked; of another name it is a class, and one class is said."""
    classes(tmp_path / "flowers" / "flowers")
    assert scan(tmp_path / "flowers")[0].classes == ("rose", "tulip")
    classes(tmp_path / "other" / "flowers")
    images, said = scan(tmp_path / "other")
    assert images.classes == ("flowers",)
    assert any("one class only, 'flowers'" in line for line in said)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in refused(tmp_path / "loop")


def test_what_archives_and_tools_leave_beside_splits_hinders_nothing(tmp_path: Path) -> None:
    """Folders without images are named, and the others still known as splits."""
    classes(tmp_path / "train_set")
    classes(tmp_path / "test_set")
    files(tmp_path / "__MACOSX" / "train_set", "._0.png")
    files(tmp_path / "labels" / "train", "0.txt")
    images, said = scan(tmp_path)
    assert splits(images) == {"train": 4, "test": 4}
    assert any("__MACOSX, labels" in line for line in said)


@pytest.mark.parametrize("test", ["test", "seg_pred/seg_pred"])
def test_images_to_score_without_class_folders_are_said(tmp_path: Path, test: str) -> None:
    """As competitions have them: they are not read, counted, and predict is named."""
    classes(tmp_path / ("train" if test == "test" else "seg_train"))
    classes(tmp_path / ("valid" if test == "test" else "seg_val"))
    for number in range(5):
        draw_image(tmp_path / test / f"{number}.png", number)
    images, said = scan(tmp_path)
    assert splits(images) == {"train": 4, "valid": 4}
    assert images.outside == {test: 5}
    assert any(f"{test} 5" in line and "headgraft predict" in line for line in said)


@pytest.mark.parametrize(
    ("folders", "facts"),
    [
        (("train", "val", "valid"), ("val, valid", "merge or rename")),
        (("train", "Train"), ("Train, train", "merge or rename")),
        (("train", "extra"), ("extra", "rename")),
        (("train", "test", "unseen"), ("unseen", "rename")),
        (("part_a", "part_b"), ("part_a, part_b", "rose, tulip", "rename")),
        (("test", "part_b"), ("part_b, test", "no train")),
        (("valid", "test"), ("test, valid", "no train")),
    ],
)
def test_folders_that_may_be_splits_are_asked_about(
    tmp_path: Path, folders: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    """Rather than read as classes, or left out."""
    for folder in folders:
        classes(tmp_path / folder)
    sentence = refused(tmp_path)
    assert all(fact in sentence for fact in facts), sentence
    assert "\n" not in sentence


def test_splits_within_classes_are_refused(tmp_path: Path) -> None:
    """And a class called train, whose folder holds the images themselves."""
    classes(tmp_path / "a" / "rose", ("train", "test"))
    classes(tmp_path / "a" / "tulip", ("train", "test"))
    assert "test, train" in refused(tmp_path / "a")
    classes(tmp_path / "b", ("train", "car"))
    assert "no class folders" in refused(tmp_path / "b")


def test_classes_with_folders_of_their_own_are_classes(tmp_path: Path) -> None:
    """Folders in a class are no splits where only some classes have them, or each has others."""
    classes(tmp_path / "rose", ("red", "white"))
    classes(tmp_path / "tulip", ("2019", "2020"))
    classes(tmp_path, ("lily", "train_station"))
    assert scan(tmp_path)[0].classes == ("lily", "rose", "train_station", "tulip")


def test_folders_beside_splits_that_hold_no_images_are_named(tmp_path: Path) -> None:
    """Such as annotations: they hinder nothing."""
    classes(tmp_path / "train")
    files(tmp_path / "annotations", "a.xml")
    assert any("annotations" in line for line in scan(tmp_path)[1])


def test_linked_splits_and_classes_are_read(tmp_path: Path) -> None:
    """People link large disks; a copy in place of the link is the same set."""
    classes(tmp_path / "disk" / "train")
    classes(tmp_path / "other", ("lily",))
    data = tmp_path / "data"
    data.mkdir()
    (data / "train").symlink_to(tmp_path / "disk" / "train")
    (tmp_path / "disk" / "train" / "lily").symlink_to(tmp_path / "other" / "lily")
    images, _ = scan(data)
    assert [image.path for image in images.images] == [
        f"train/{name}/{n}.png" for name in ("lily", "rose", "tulip") for n in (0, 1)
    ]


@pytest.mark.parametrize("up", ["set/train", "set", "."])
def test_a_link_to_a_folder_above_is_a_loop(tmp_path: Path, up: str) -> None:
    """Above the class, the set, or the set's own folder; at once, without listing it all."""
    classes(tmp_path / "set" / "train")
    (tmp_path / "set" / "train" / "rose" / "up").symlink_to(tmp_path / up)
    sentence = refused(tmp_path / "set")
    assert "train/rose/up" in sentence
    assert "loop" in sentence


def test_a_folder_met_twice_through_links_is_read_twice(tmp_path: Path) -> None:
    """Under another label or split; in one class its images are listed once."""
    classes(tmp_path / "train")
    (tmp_path / "valid").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "rose" / "a").mkdir()
    draw_image(tmp_path / "train" / "rose" / "a" / "x.png", 1)
    (tmp_path / "train" / "rose" / "b").symlink_to(tmp_path / "train" / "rose" / "a")
    images, _ = scan(tmp_path)
    assert splits(images) == {"train": 5, "valid": 5}
    assert count_leaks(images.index("set"))["across_splits"] == 5


def test_links_across_one_another_end(tmp_path: Path) -> None:
    """Two links a folder, 30 deep: 2 ** 30 ways to one image, which counts once."""
    classes(tmp_path / "set" / "train")
    draw_image(tmp_path / "30" / "x.png", 1)
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    (tmp_path / "set" / "train" / "rose" / "more").symlink_to(tmp_path / "0")
    assert len(scan(tmp_path / "set")[0].images) == 5
    assert len(find_images((str(tmp_path / "set"),))[0]) == 5


@pytest.mark.parametrize("link", ["train", "train/lily", "train/rose/more"])
def test_a_link_to_nothing_is_named(tmp_path: Path, link: str) -> None:
    """A disk that is not mounted is not an absent class."""
    classes(tmp_path / "valid")
    if link != "train":
        classes(tmp_path / "train")
    (tmp_path / link).symlink_to(tmp_path / "unmounted")
    sentence = refused(tmp_path)
    assert str(tmp_path / link) in sentence
    assert "target is not there" in sentence


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("train", "valid", "way"),
    [
        ("rose", "Rose", "case"),
        ("rose", "rose ", "blanks"),
        (NFC, NFD, "Unicode form (NFD against NFC)"),
        ("a b", "A  b", "blanks and"),
    ],
)
def test_classes_that_look_alike_are_told_apart(tmp_path: Path, train: str, valid: str, way: str) -> None:
    """Between splits in the refusal, within one in a line."""
    classes(tmp_path / "train", (train,))
    classes(tmp_path / "valid", (valid,))
    sentence = refused(tmp_path)
    assert repr(valid) in sentence
    assert f"differs from {train!r} in {way}" in sentence
    classes(tmp_path / "train", (valid,))
    _, said = scan(tmp_path)
    assert any("differ only in" in line for line in said)


def test_a_class_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """An image or a folder of images in a class may have any name."""
    classes(tmp_path / "train", ("rose",))
    draw_image(tmp_path / "train" / "rose" / os.fsdecode(b"\xe9") / os.fsdecode(b"\xff.png"), 1)
    assert len(scan(tmp_path)[0].images) == 3
    classes(tmp_path / "train", (os.fsdecode(b"caf\xe9"),))
    assert "caf\\udce9 is a class whose name is not UTF-8" in refused(tmp_path)


def listed_under(data: Path, **environment: str) -> str:
    """What a process of another locale finds, or why it refuses."""
    code = (
        "import sys; from pipeline.inputs.images import ImageSet; from pipeline.errors import ImageSetError\n"
        "try: print(ascii(ImageSet.scan(sys.argv[1]).index('s').digest))\n"
        "except ImageSetError as error: print(ascii(str(error)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, data], cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True
    )
    return done.stdout.decode() + done.stderr.decode()


def test_names_are_the_same_under_any_locale_or_refused(tmp_path: Path) -> None:
    """Under a locale that is not UTF-8 names outside ASCII would be others for good."""
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    classes(tmp_path / "a" / "train")
    assert listed_under(tmp_path / "a", **other) == listed_under(tmp_path / "a", PYTHONUTF8="1")
    for name in (NFC, "rose/é.png"):
        target = tmp_path / "b" / "train" / name
        draw_image(target if target.suffix else target / "0.png", 1)
        assert "set PYTHONUTF8=1" in listed_under(tmp_path / "b", **other)
        assert "PYTHONUTF8" not in listed_under(tmp_path / "b", PYTHONUTF8="1")
        shutil.rmtree(tmp_path / "b")


def test_an_index_of_names_that_this_locale_reads_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, report and export say so, rather than miss the images."""
    classes(tmp_path / "é" / "train")
    index = scan(tmp_path / "é")[0].index("set")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert "PYTHONUTF8" in stale_files(index)[0]
    with pytest.raises(ImageSetError, match="PYTHONUTF8"):
        root_now(index, None)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The place of a CSV beside images im/0.png to im/3.png."""
    for number in range(4):
        draw_image(tmp_path / "im" / f"{number}.png", number)
    return tmp_path / "set.csv"


PLAIN = "path,label,split\nim/0.png,a,train\nim/1.png,é,train\nim/2.png,a,valid\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode("utf-16"),
        PLAIN.replace("/", "\\").encode("utf-8-sig"),
        PLAIN.replace(",", ", ").encode(),
        PLAIN.replace("path,label,split", "Path,Label,Split").replace("valid", "Validation").encode(),
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(table: Path, content: bytes) -> None:
    """Semicolons, tabs, UTF-16, backslashes, blanks around cells, capitals."""
    if b", " in content:
        content = content.replace(b", ", b",", 2)
    table.write_bytes(content)
    found = [(image.path, image.label, image.split) for image in scan(table)[0].images]
    assert found == [("im/0.png", "a", "train"), ("im/1.png", "é", "train"), ("im/2.png", "a", "valid")]


def test_blanks_around_labels_are_said(table: Path) -> None:
    """With the count and the first line."""
    table.write_text("path,label,split\nim/0.png,a,train\nim/1.png, a,train\nim/2.png,a ,train\n")
    images, said = scan(table)
    assert images.classes == ("a",)
    assert any("2 labels" in line and "line 3" in line for line in said)


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        ("im/0.png,a,train\nim/../im/0.png,a,train", ("twice", "line 2")),
        ("im/0.png,a,train\nno/../im/0.png,a,train", ("twice", "line 2")),
        ("im/0.png,a,train\n\nC:\\im\\9.png,a,train", ("not there", "line 4", "C:\\im\\9.png")),
        ("im/0.png,red, dark,train", ("line 2", "4 cells", "3 columns")),
        ("im/0.png,red,train,dark", ("line 2", "4 cells", "3 columns")),
        ('im/0.png,"a\nb",train\nim/1.png, ,train', ("line 4", "no usable label")),
    ],
)
def test_rows_that_cannot_be_used_are_refused_with_their_line(table: Path, rows: str, facts: tuple[str, ...]) -> None:
    """A file under two spellings is refused at once: no index could ever be read with it."""
    table.write_text(f"path,label,split\n{rows}\n")
    assert all(fact in refused(table) for fact in facts), refused(table)


def test_a_label_that_is_not_utf8_is_refused_with_its_line(table: Path) -> None:
    """As an older spreadsheet saves it; the name of a file may be any bytes."""
    table.write_bytes(PLAIN.encode("cp1252"))
    assert "line 3" in refused(table)
    assert "UTF-8" in refused(table)
    (table.parent / "im" / "0.png").rename(table.parent / "im" / os.fsdecode(b"\xff.png"))
    table.write_bytes(b"path,label,split\nim/\xff.png,a,train\n")
    assert scan(table)[0].images[0].path == "im/\udcff.png"


def test_an_image_given_as_data_is_called_one(table: Path) -> None:
    """And other files that are no table are called that."""
    assert "is an image" in refused(table.parent / "im" / "0.png")
    table.write_bytes(b"PK\x03\x04" + bytes(range(256)))
    assert "path,label,split" in refused(table)


def test_what_validation_cannot_tell_is_said(tmp_path: Path) -> None:
    """No validation images, of one class alone, or of some classes only."""
    classes(tmp_path / "train", ("a", "b", "c"))
    assert any("no validation images" in line for line in scan(tmp_path)[1])
    classes(tmp_path / "valid", ("a",))
    assert any("'a' (2 images)" in line for line in scan(tmp_path)[1])
    classes(tmp_path / "valid", ("b",))
    assert any("1 of 3 classes" in line and "'c'" in line for line in scan(tmp_path)[1])
    classes(tmp_path / "valid", ("c",))
    assert scan(tmp_path)[1] == ["images read: train 6, valid 6, test 0"]


def test_extract_says_what_it_does_not_read_before_it_computes(data: Path, run_extract: Extract) -> None:
    """And in its result."""
    files(data / "train" / "1", "a.jxl")
    draw_image(data / "b.png", 1)
    said: list[str] = []
    result = run_extract(say=said.append)
    assert (result.unread, result.outside) == ({".jxl": 1}, {".": 1})
    assert ".jxl 1" in said[0]


def test_a_set_whose_images_went_is_said_or_refused(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """How many are gone and new; where none is left, only --set replaces it."""
    run_extract()
    said: list[str] = []
    for path in (data / "train").rglob("*"):
        if path.is_file():
            path.unlink()
    classes(data / "train", ("1", "10", "100", "2"), count=1)
    run_extract(say=said.append)
    assert "set data: 12 of 24 images are no longer there, 4 new" in said
    for path in data.rglob("*.*"):
        path.rename(path.with_name(f"renamed_{path.name}"))
    said.clear()
    run_extract(say=said.append)
    assert not any("no longer" in line for line in said)
    for path in data.rglob("*.*"):
        path.write_bytes(draw_image(tmp_path / "new.png", crc32(bytes(path))).read_bytes())
    with pytest.raises(CacheError, match=r"'data'.*\b16\b"):
        run_extract()
    assert {image.path.split("/")[-1][:7] for image in FeatureCache.open(tmp_path / "features").index().images} == {
        "renamed"
    }
    run_extract(set="data", say=said.append)
    assert "set data: 16 of 16 images are no longer there, 16 new" in said


def test_a_linked_folder_that_went_away_is_a_change_with_its_reason(tmp_path: Path) -> None:
    """As of a disk that is not mounted: the link, and the images behind it."""
    classes(tmp_path / "disk", ("rose",))
    classes(tmp_path / "data" / "train", ("tulip",))
    (tmp_path / "data" / "train" / "rose").symlink_to(tmp_path / "disk" / "rose")
    index = scan(tmp_path / "data")[0].index("set")
    (tmp_path / "disk").rename(tmp_path / "away")
    changes = changed_files(index)
    assert "train/rose is a link whose target is not there" in changes
    assert "train/rose/0.png is gone" in changes


def test_a_folder_that_can_no_longer_be_listed_is_a_change(data: Path) -> None:
    """In words, so that the other sets of a cache are still compared."""
    index = ImageSet.scan(data).index("set")
    classes(data / "extra")
    assert "extra" in changed_files(index)[0]


def test_predict_counts_what_it_does_not_read_and_follows_links(tmp_path: Path) -> None:
    """A link to nothing is listed apart."""
    draw_image(tmp_path / "disk" / "a.png", 1)
    files(tmp_path / "photos", "b.jxl", "c.txt", ".hidden")
    (tmp_path / "photos" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "gone").symlink_to(tmp_path / "nowhere")
    found, failed, unread = find_images((str(tmp_path / "photos"),))
    assert found == [tmp_path / "photos" / "disk" / "a.png"]
    assert [bad["path"] for bad in failed] == [str(tmp_path / "photos" / "gone")]
    assert unread == {".jxl": 1, ".txt": 1}


def test_a_model_is_scored_on_the_listing_that_extract_has(tmp_path: Path) -> None:
    """Known classes need no train folder, whatever the split is called."""
    classes(tmp_path / "Testing")
    images = ImageSet.scan(tmp_path, known=("rose", "tulip"))
    assert splits(images) == {"test": 4}


def test_a_csv_below_a_link_names_what_the_system_takes_its_paths_for(tmp_path: Path) -> None:
    """`lists/../images` is beside the folder that the link leads to, not beside the link."""
    right = draw_image(tmp_path / "disk" / "set" / "images" / "a.png", 1)
    draw_image(tmp_path / "images" / "a.png", 2)
    (right.parent.parent / "lists").mkdir()
    (right.parent.parent / "lists" / "set.csv").write_text("path,label,split\n../images/a.png,rose,train\n")
    (tmp_path / "lists").symlink_to(right.parent.parent / "lists")
    images = ImageSet.scan(tmp_path / "lists" / "set.csv")
    assert images.images[0].digest == hashlib.sha256(right.read_bytes()).hexdigest()
    assert (images.root / images.images[0].path).samefile(right)
