"""Images without a label: listed and extracted, never trained on, never scored."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner
from conftest import CLASSES, Extract, draw_image, heard, train_config

from cache.errors import CacheError, DamagedCache, HeadgraftError, MissingRows
from cache.index import SetIndex
from cache.info import info
from cache.manifest import json_digest, sealed
from cache.pack import pack
from cache.prune import prune
from cache.store import FeatureCache
from cli import main
from pipeline.commands.evaluate import evaluate
from pipeline.commands.reduce import reduce_cache
from pipeline.commands.report import report
from pipeline.commands.train import train_head
from pipeline.config.heads import ReduceConfig
from pipeline.config.models import EvaluateConfig, ReportConfig
from pipeline.duplicates.near_duplicates import near_duplicates
from pipeline.errors import ConfigError, ImageSetError, RunError
from pipeline.inputs.images import ImageSet, changed_files, stale_files
from pipeline.inputs.splitting import count_leaks


def pool(folder: Path, count: int = 3, seed: int = 7000) -> Path:
    """A folder of images, one of them in a folder of its own."""
    for number in range(count):
        place = folder / "deep" / "er" if number == 0 else folder
        draw_image(place / f"{number}.png", seed + number, CLASSES[number % 4])
    return folder


def index_of(cache: Path, name: str | None = None) -> SetIndex:
    """As it lies in the cache."""
    return FeatureCache.open(cache).index(name)


def unlabelled(index: SetIndex) -> list[str]:
    """Their paths, sorted."""
    assert all(image.label == "" for image in index.split("unlabelled"))
    return sorted(image.path for image in index.split("unlabelled"))


def scan(data: Path) -> tuple[SetIndex, list[str]]:
    """The index, which agrees with its folder, and what was logged."""
    said: list[str] = []
    with heard(said.append):
        index = ImageSet.scan(data).index("set")
    assert stale_files(index) == []
    return index, said


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_a_folder_beside_the_splits_is_unlabelled(data: Path, name: str) -> None:
    """At any depth; its folders are not classes, and the digest of the set is the same."""
    before, _ = scan(data)
    pool(data / name)
    index, said = scan(data)
    assert unlabelled(index) == [f"{name}/1.png", f"{name}/2.png", f"{name}/deep/er/0.png"]
    assert (index.classes, index.digest, index.labelled.images) == (CLASSES, before.digest, before.images)
    assert index.counts() == {"train": 12, "valid": 8, "test": 4, "unlabelled": 3}
    assert "unlabelled" not in before.counts()
    assert len(said) == 1
    assert "unlabelled 3" in said[0]


def test_a_folder_beside_class_folders_is_unlabelled(data: Path) -> None:
    """The others are split as without it, also in a folder of the same name."""
    plain = (data / "train").rename(data.parent / "plain")
    before, _ = scan(plain)
    pool(plain / "unlabelled")
    index, _ = scan(plain)
    assert (index.classes, index.labelled.images) == (CLASSES, before.images)
    assert len(unlabelled(index)) == 3
    (plain.parent / "outer").mkdir()
    inner = plain.rename(plain.parent / "outer" / "outer")
    index, _ = scan(inner.parent)
    assert (index.classes, len(unlabelled(index))) == (CLASSES, 3)


def test_a_folder_in_a_split_is_neither_a_class_nor_unlabelled(data: Path) -> None:
    """The sentence names both ways out."""
    pool(data / "train" / "unlabelled")
    with pytest.raises(ImageSetError, match=r"train/unlabelled.*another name"):
        ImageSet.scan(data)


def test_a_folder_of_unlabelled_images_alone_is_a_data_set(tmp_path: Path) -> None:
    """Without classes, and without warnings on validation images."""
    pool(tmp_path / "data" / "unlabelled")
    index, said = scan(tmp_path / "data")
    assert (index.classes, len(unlabelled(index))) == ((), 3)
    assert len(said) == 1


def test_images_without_class_folders_name_the_option(tmp_path: Path) -> None:
    """They are not guessed to be unlabelled."""
    draw_image(tmp_path / "photos" / "a.png", 1)
    with pytest.raises(ImageSetError, match=r"no class folders.*headgraft extract .*photos --unlabelled"):
        ImageSet.scan(tmp_path / "photos")


@pytest.mark.parametrize(
    ("table", "counts"),
    [
        ("path,label,split\n0.png,a,train\n1.png,,\n2.png, ,unlabelled\n3.png,,Unlabeled\n", (1, 3)),
        ("path,label\n0.png,a\n1.png,\n2.png\n3.png,a\n", (2, 2)),
        ("path,label,split\n0.png,,\n1.png,,unlabelled\n", (0, 2)),
    ],
)
def test_rows_of_a_table_without_a_label_are_unlabelled(tmp_path: Path, table: str, counts: tuple[int, int]) -> None:
    """With an empty split, `unlabelled`, or no such column; all rows may be."""
    for number in range(4):
        draw_image(tmp_path / f"{number}.png", number)
    (tmp_path / "set.csv").write_text(table)
    index, said = scan(tmp_path / "set.csv")
    assert (len(index.labelled.images), len(unlabelled(index))) == counts
    assert sum(f"unlabelled {counts[1]}" in line for line in said) == 1


@pytest.mark.parametrize("row", ["0.png,,train", "0.png,,test", "0.png,a,unlabelled", "0.png,a,"])
def test_rows_that_contradict_themselves_are_refused(tmp_path: Path, row: str) -> None:
    """A split needs a label, and `unlabelled` has none; the sentence says what is expected."""
    draw_image(tmp_path / "0.png", 1)
    (tmp_path / "set.csv").write_text(f"path,label,split\n{row}\n")
    with pytest.raises(ImageSetError, match=r"line 2 .*path alone for an unlabelled image"):
        ImageSet.scan(tmp_path / "set.csv")


def test_a_content_with_a_label_is_not_unlabelled_too(data: Path) -> None:
    """One line counts the copies left out; a label given later takes the image out of the pool."""
    pool(data / "unlabelled")
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "unlabelled" / "copy.jpg")
    index, said = scan(data)
    assert len(unlabelled(index)) == 3
    assert sum(line.startswith("1 unlabelled image left out") for line in said) == 1
    assert count_leaks(index) == {"across_splits": 0, "two_labels": 0}
    (data / "unlabelled" / "1.png").rename(data / "train" / "1" / "found.png")
    assert sorted(stale_files(index)) == ["train/1/found.png is new", "unlabelled/1.png is gone"]


def test_training_does_not_look_at_unlabelled_files(data: Path) -> None:
    """New ones or missing ones are no reason to extract again first."""
    pool(data / "unlabelled")
    index, _ = scan(data)
    draw_image(data / "unlabelled" / "new.png", 8000)
    (data / "unlabelled" / "1.png").unlink()
    assert sorted(stale_files(index)) == ["unlabelled/1.png is gone", "unlabelled/new.png is new"]
    assert stale_files(index.labelled, labelled=True) == []
    draw_image(data / "train" / "1" / "new.png", 8001)
    assert stale_files(index.labelled, labelled=True) == ["train/1/new.png is new"]


def test_an_index_without_unlabelled_images_is_as_before(run_extract: Extract, tmp_path: Path) -> None:
    """Byte for byte: format 1, no new field."""
    run_extract()
    stored = json.loads((tmp_path / "features" / "sets" / "data.json").read_bytes())
    fields = ["name", "data", "root", "split_seed", "classes", "images", "skipped", "passes"]
    assert list(stored) == ["format", *fields, "sha256"]
    assert (tmp_path / "features" / "sets" / "data.json").read_bytes() == sealed({f: stored[f] for f in fields})
    assert stored["format"] == 1


def test_an_index_with_unlabelled_images_comes_back(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """In format 2; only the clean view of an unlabelled image is needed, and prune keeps it."""
    pool(data / "unlabelled")
    result = run_extract(passes=1)
    assert (result.images, result.rows) == (27, 27 + 12)
    file = tmp_path / "features" / "sets" / "data.json"
    assert json.loads(file.read_bytes())["format"] == 2
    cache = FeatureCache.open(tmp_path / "features")
    index = cache.index()
    assert (len(unlabelled(index)), index.passes, cache.lost(index)) == (3, 1, 0)
    assert prune(tmp_path / "features").rows == 0
    (words,) = info(cache).sets
    assert words["splits"]["unlabelled"] == 3
    assert "3 unlabelled" in info(cache).in_words()


@pytest.mark.parametrize(
    ("field", "value", "version"),
    [
        ("label", "1", 2),
        ("label", "", 1),
        ("split", "train", 2),
        ("path", "/elsewhere/0.png", 2),
        ("path", "/pool/../elsewhere/0.png", 2),
        ("path", "../0.png", 2),
        ("unlabelled", ["pool"], 2),
        ("unlabelled", ["/pool/../data"], 2),
        ("unlabelled", ["/pool"], 1),
        ("classes", ["", *CLASSES], 1),
    ],
)
def test_a_forged_index_is_refused(field: str, value: object, version: int, data: Path, tmp_path: Path) -> None:
    """A label where none is, none where one is, format 1 with unlabelled images, paths that lead elsewhere."""
    pool(data / "unlabelled")
    index = replace(ImageSet.scan(data).index("data"), unlabelled=("/pool",))
    index.save(tmp_path)
    file = tmp_path / "data.json"
    assert SetIndex.load(file) == index
    stored = json.loads(file.read_bytes())
    del stored["sha256"], stored["format"]
    if field in stored["images"]:
        stored["images"][field][-1] = value
    else:
        stored[field] = value
    file.write_text(json.dumps({"format": version, **stored, "sha256": json_digest(stored)}))
    with pytest.raises(DamagedCache):
        SetIndex.load(file)


def test_a_label_cannot_be_empty_in_a_split(data: Path, tmp_path: Path) -> None:
    """Not even where "" is among the classes."""
    index = ImageSet.scan(data).index("data")
    first = replace(index.images[0], label="")
    replace(index, images=(first, *index.images[1:]), classes=("", *index.classes)).save(tmp_path)
    with pytest.raises(DamagedCache, match="label ''"):
        SetIndex.load(tmp_path / "data.json")


def test_the_option_adds_a_folder_to_a_set(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Its labelled images stay; extracting either again keeps the rest, and an image gone is dropped."""
    run_extract()
    before = index_of(tmp_path / "features")
    photos = pool(tmp_path / "photos")
    assert run_extract(data=photos, unlabelled=True, set="data").computed == 3
    index = index_of(tmp_path / "features")
    assert (index.labelled, index.unlabelled) == (before, (str(photos),))
    assert unlabelled(index) == [f"{photos}/1.png", f"{photos}/2.png", f"{photos}/deep/er/0.png"]
    file = tmp_path / "features" / "sets" / "data.json"
    stored = file.read_bytes()
    for again in ({}, {"data": photos, "unlabelled": True, "set": "data"}):
        assert run_extract(**again).computed == 0
        assert file.read_bytes() == stored
    (photos / "1.png").unlink()
    draw_image(photos / "new.png", 8000)
    assert len(stale_files(index)) == 2
    said: list[str] = []
    assert run_extract(say=said.append).computed == 1
    assert any("1 of 27 images are no longer there, 1 new" in line for line in said)
    assert stale_files(index_of(tmp_path / "features")) == []


def test_a_folder_out_of_reach_keeps_its_images(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """With a warning; after the folder was moved and added again, they are there once."""
    run_extract()
    photos = pool(tmp_path / "photos")
    run_extract(data=photos, unlabelled=True, set="data")
    index = index_of(tmp_path / "features")
    moved = photos.rename(tmp_path / "moved")
    assert stale_files(index) == []
    said: list[str] = []
    run_extract(say=said.append)
    assert any("photos cannot be reached: 3 unlabelled images" in line for line in said)
    assert index_of(tmp_path / "features") == index
    run_extract(data=moved, unlabelled=True, set="data")
    index = index_of(tmp_path / "features")
    assert (index.unlabelled, len(unlabelled(index))) == ((str(moved),), 3)


def test_the_option_makes_a_set_without_labels(run_extract: Extract, tmp_path: Path) -> None:
    """Named as its folder; more folders join it by --set, labels by a table of the same folder."""
    photos, more = pool(tmp_path / "photos"), pool(tmp_path / "more", seed=7500)
    for _ in range(2):
        run_extract(data=photos, unlabelled=True)
        index = index_of(tmp_path / "features")
        assert (index.data, index.root, index.unlabelled) == (str(photos), str(photos), (str(photos),))
        assert (index.classes, unlabelled(index)) == ((), ["1.png", "2.png", "deep/er/0.png"])
        assert stale_files(index) == changed_files(index) == []
    run_extract(data=more, unlabelled=True, set="photos")
    index = index_of(tmp_path / "features")
    assert (len(unlabelled(index)), stale_files(index)) == (6, [])
    (photos / "labels.csv").write_text("path,label,split\n1.png,a,train\ndeep/er/0.png,b,train\n")
    assert run_extract(data=photos / "labels.csv", set="photos").computed == 0
    index = index_of(tmp_path / "features")
    assert (index.classes, index.counts()["train"], len(unlabelled(index))) == (("a", "b"), 2, 4)
    assert stale_files(index) == []


def test_a_moved_folder_without_labels_is_the_same_set(run_extract: Extract, tmp_path: Path) -> None:
    """Nothing is left of its former place."""
    run_extract(data=pool(tmp_path / "photos"), unlabelled=True)
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    run_extract(data=moved, unlabelled=True, set="photos")
    index = index_of(tmp_path / "features")
    assert (index.data, index.unlabelled, len(unlabelled(index))) == (str(moved), (str(moved),), 3)


def test_a_folder_below_the_data_has_relative_paths(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Also one that is listed anyway: each file once."""
    pool(data / "unlabelled")
    run_extract()
    run_extract(data=data / "unlabelled", unlabelled=True, set="data")
    index = index_of(tmp_path / "features")
    assert unlabelled(index) == ["unlabelled/1.png", "unlabelled/2.png", "unlabelled/deep/er/0.png"]
    assert stale_files(index) == []
    run_extract(data=data.parent / "data" / "train", unlabelled=True, set="data")
    assert index_of(tmp_path / "features").labelled.counts() == {"train": 12, "valid": 8, "test": 4}
    assert len(unlabelled(index_of(tmp_path / "features"))) == 3


@pytest.mark.parametrize(
    ("options", "kind", "fact"),
    [
        ({"data": "table.csv"}, ConfigError, "folder of images"),
        ({"data": "data"}, ConfigError, "leave out --unlabelled"),
        ({"data": "photos", "group_by": "(.)"}, ConfigError, "--group-by"),
        ({"data": "empty", "set": "data"}, ImageSetError, "holds no images"),
        ({"data": "other/data"}, CacheError, "--set data"),
        ({"data": "text", "set": "data"}, HeadgraftError, "--skip-bad"),
    ],
)
def test_what_cannot_be_added_is_refused(
    options: dict[str, str], kind: type[HeadgraftError], fact: str, run_extract: Extract, tmp_path: Path
) -> None:
    """In one sentence, and the set stays as it was."""
    run_extract()
    index = index_of(tmp_path / "features")
    (tmp_path / "table.csv").write_text("path,label\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_bytes(b"text")
    pool(tmp_path / "other" / "data")
    pool(tmp_path / "photos")
    with pytest.raises(kind, match=fact):
        run_extract(**{**options, "data": tmp_path / options["data"]}, unlabelled=True)
    assert index_of(tmp_path / "features") == index


def test_a_set_whose_index_is_damaged_takes_no_folder(run_extract: Extract, tmp_path: Path) -> None:
    """Its labels would be lost."""
    run_extract()
    (tmp_path / "features" / "sets" / "data.json").write_bytes(b"{}")
    with pytest.raises(DamagedCache):
        run_extract(data=pool(tmp_path / "photos"), unlabelled=True, set="data")


def test_the_option_goes_with_the_others(run_extract: Extract, tmp_path: Path) -> None:
    """A dry run, parts, bad files, and a cache that makes passes."""
    run_extract(passes=1)
    photos = pool(tmp_path / "photos")
    (photos / "bad.png").write_bytes(b"text")
    asked = {"data": photos, "unlabelled": True, "set": "data"}
    assert (run_extract(**asked, dry_run=True).rows) == 28
    run_extract(**asked, hash_only=True)
    for part in ("1/2", "2/2"):
        run_extract(**asked, shard_of=part, skip_bad=True)
    with pytest.raises(MissingRows, match="1 row"):
        run_extract(**asked, finish=True)
    result = run_extract(**asked, skip_bad=True)
    assert [bad["path"] for bad in result.skipped] == [str(photos / "bad.png")]
    index = index_of(tmp_path / "features")
    assert (index.passes, len(unlabelled(index)), stale_files(index)) == (1, 3, [])


def test_training_on_the_rest_is_the_same(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """The same set digest, basis and weights; a packed and a reduced cache have what they should."""
    run_extract(cache=tmp_path / "plain")
    pool(data / "unlabelled", 8)
    run_extract()
    runs = tmp_path / "run", tmp_path / "plain_run"
    results = [
        train_head(train_config(tmp_path / name, run)) for name, run in zip(("features", "plain"), runs, strict=True)
    ]
    assert results[0].valid_loss == results[1].valid_loss
    assert results[0].leaks == results[1].leaks
    assert (runs[0] / "head.safetensors").read_bytes() == (runs[1] / "head.safetensors").read_bytes()
    pack(tmp_path / "features", tmp_path / "packed.h5")
    with h5py.File(tmp_path / "packed.h5") as packed:
        assert Counter(packed["splits"][:]) == {b"train": 12, b"valid": 8, b"test": 4}
    reduce_cache(ReduceConfig(tmp_path / "features", tmp_path / "small", basis="pool+pca:4", seeds=0))
    small = FeatureCache.open(tmp_path / "small")
    assert (len(small), small.lost(small.index())) == (32, 0)
    assert small.index() == index_of(tmp_path / "features")


def test_evaluation_and_report_leave_them_out(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """As if they were not there: the same scores and the same findings, near-duplicates included."""
    found = []
    for name in ("plain", "features"):
        if name == "features":
            pool(data / "unlabelled", 8)
            shutil.copy(data / "unlabelled" / "1.png", data / "unlabelled" / "copy.png")
        run_extract(cache=tmp_path / name)
        train_head(train_config(tmp_path / name, run := tmp_path / f"run_{name}"))
        scores, page = evaluate(EvaluateConfig(run, split="valid")), report(ReportConfig(run))
        found.append((scores, page.duplicates, page.label_issues, page.valid))
    assert "unlabelled" in index_of(tmp_path / "features").counts()
    assert found[0] == found[1]
    assert b"unlabelled" not in (tmp_path / "run_features" / "report.html").read_bytes()


def test_near_duplicates_name_unlabelled_images(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Beside those with labels, whose threshold stays; no label differs from none."""
    for number in range(20):
        draw_image(data / "train" / CLASSES[number % 4] / f"more_{number}.png", 6000 + number, CLASSES[number % 4])
    run_extract()
    before = near_duplicates(cache := FeatureCache.open(tmp_path / "features"), cache.index())
    assert before.threshold.cosine is not None
    pool(data / "unlabelled")
    shutil.copy(data / "unlabelled" / "1.png", data / "unlabelled" / "copy.png")
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "train" / "2" / "copy.jpg")
    run_extract()
    found = near_duplicates(cache := FeatureCache.open(tmp_path / "features"), cache.index(), before.threshold.cosine)
    assert found.pairs[0].labels_differ
    same = next(pair for pair in found.pairs if pair.identical and pair.a.startswith("unlabelled"))
    assert (same.labels, same.splits) == (("", ""), ("unlabelled", "unlabelled"))
    assert "LABELS" not in str(same)
    assert "unlabelled and unlabelled" in str(same)


def test_a_set_without_labels_cannot_be_trained_on(run_extract: Extract, tmp_path: Path) -> None:
    """Nor packed; its identical files are found all the same."""
    photos = pool(tmp_path / "photos")
    shutil.copy(photos / "1.png", photos / "copy.png")
    run_extract(data=photos, unlabelled=True)
    with pytest.raises(RunError, match=r"no labels.*headgraft label --cache"):
        train_head(train_config(tmp_path / "features", tmp_path / "run"))
    with pytest.raises(CacheError, match="no images with labels"):
        pack(tmp_path / "features", tmp_path / "packed.h5")
    cache = FeatureCache.open(tmp_path / "features")
    assert [pair.identical for pair in near_duplicates(cache, cache.index()).pairs] == [True]
    assert len(near_duplicates(cache, cache.index(), -1.0).pairs) == 6
    for command in (["sweep"], ["cv", "--folds", "2"]):
        target = ["--run", str(tmp_path / "run")] if command == ["sweep"] else []
        done = CliRunner().invoke(main, [*command, "--cache", str(tmp_path / "features"), *target])
        assert done.exit_code == 1
        assert "headgraft label" in done.output


def test_an_index_says_all_of_another_with_the_same_unlabelled_images(data: Path) -> None:
    """What push and pull compare: not the set digest alone."""
    plain, _ = scan(data)
    pool(data / "unlabelled")
    index, _ = scan(data)
    assert index.digest == plain.digest
    assert not index.says_all_of(plain)
    assert not plain.says_all_of(index)
    assert index.says_all_of(replace(index, root="/mnt", data="/mnt"))
