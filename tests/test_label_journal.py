"""The journal of labels given by hand: nothing is lost or counted twice, and everything that trains sees it."""

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CLASSES, Extract, draw_image, train_config
from hypothesis import given
from hypothesis import strategies as st

from cache.check import repair, verify
from cache.errors import CacheError, DamagedCache, MissingRows
from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.info import info
from cache.labels import EXCLUDING, LabelJournal, VerdictKind, journal_path
from cache.prune import forget, prune
from cache.store import FeatureCache
from pipeline.commands.labels import labels
from pipeline.commands.reduce import reduce_cache
from pipeline.commands.train import train_head
from pipeline.config.heads import ReduceConfig

IMAGES = tuple(
    ImageRecord(f"{number}.jpg", f"{number:064x}", label, split, 1, 0)
    for number, (label, split) in enumerate(
        [("a", "train"), ("b", "train"), ("a", "valid"), ("", UNLABELLED), ("", UNLABELLED)]
    )
)
INDEX = SetIndex("set", "/data", "/data", 0, ("a", "b"), IMAGES)
Decision = tuple[list[int], VerdictKind, str]
DECISIONS = st.tuples(
    st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=3, unique=True),
    st.sampled_from(["class", "unsure", "bad", "none"]),
    st.sampled_from(["a", "b", "c"]),
)


def now(journal: LabelJournal, image: ImageRecord) -> ImageRecord:
    """The image as it is labelled."""
    verdict = journal.holding(image.digest, {image.label})
    if verdict is None:
        return image
    return replace(image, label=verdict.new, split=verdict.split if image.split == UNLABELLED else image.split)


@given(st.lists(st.one_of(DECISIONS, st.none()), max_size=12))
def test_the_journal_read_again_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Decision | None]
) -> None:
    """Whatever is decided and taken back (None); and what is taken back is as it was before."""
    journal = LabelJournal(tmp_path_factory.mktemp("journal") / "labels" / "set.jsonl")
    before = [journal.applied(INDEX)]
    for step in steps:
        if step is None:
            assert bool(journal.undo({image.digest for image in IMAGES})) == (len(before) > 1)
            before = before[:-1] or before
        else:
            places, verdict, label = step
            chosen = [now(journal, IMAGES[place]) for place in places]
            lines = len(journal.lines)
            if journal.record(chosen, verdict, label, "fix", 0) > lines:
                before.append(journal.applied(INDEX))
        assert journal.applied(INDEX) == before[-1]
        again = LabelJournal.load(journal.path.parent.parent, "set")
        assert (again.lines, again.chains) == (journal.lines, journal.chains)
    for image in before[-1].images:
        assert (image.label == "") == (image.split == UNLABELLED)
    kept = {image.digest for image in before[-1].images}
    assert kept == {image.digest for image in IMAGES} - {
        digest for digest, one in journal.verdicts.items() if one.verdict in EXCLUDING
    }


def test_the_same_decision_again_is_the_same_one(tmp_path: Path) -> None:
    """A client that got no answer asks again."""
    journal = LabelJournal(tmp_path / "labels" / "set.jsonl")
    assert journal.record([IMAGES[0]], "class", "b", "fix", 3) == 1
    assert journal.record([now(journal, IMAGES[0])], "class", "b", "fix", 3) == 1
    assert len(journal.path.read_bytes().splitlines()) == 1


def test_a_line_cut_short_is_not_read_and_the_next_one_is(tmp_path: Path) -> None:
    """A kill leaves part of a line; what was answered before is there."""
    journal = LabelJournal(journal_path(tmp_path, "set"))
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    complete = journal.path.read_bytes()
    journal.record([IMAGES[1]], "bad", "", "fix", 0)
    whole = journal.path.read_bytes()
    for length in range(len(complete), len(whole)):
        journal.path.write_bytes(whole[:length])
        assert len(LabelJournal.load(tmp_path, "set").lines) == 1
    again = LabelJournal.load(tmp_path, "set")
    again.make_writable()
    again.record([IMAGES[2]], "none", "", "fix", 0)
    assert len(LabelJournal.load(tmp_path, "set").lines) == 2


@pytest.mark.parametrize("fault", ["no JSON", '{"number": 1}', "twice"])
def test_a_damaged_line_is_named_and_nothing_is_dropped(tmp_path: Path, fault: str) -> None:
    """Labels are work of a person: a journal that cannot be read is an error, not an empty one."""
    journal = LabelJournal(journal_path(tmp_path, "set"))
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    line = journal.path.read_text().strip() if fault == "twice" else fault
    with journal.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DamagedCache, match="line 2"):
        LabelJournal.load(tmp_path, "set")


def test_a_full_disk_keeps_nothing_of_a_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is as it was, in memory too, and the decision can be made again."""
    journal = LabelJournal(tmp_path / "labels" / "set.jsonl")
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    before = journal.path.read_bytes()
    with monkeypatch.context() as full:

        def refuse(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr("cache.files.os.fsync", refuse)
        with pytest.raises(CacheError, match="No space left"):
            journal.record([IMAGES[1], IMAGES[2]], "bad", "", "fix", 0)
    assert journal.path.read_bytes() == before and len(journal.lines) == 1
    assert journal.record([IMAGES[1], IMAGES[2]], "bad", "", "fix", 0) == 3


def test_a_third_label_given_in_the_data_holds(tmp_path: Path) -> None:
    """Labels that were followed in the data, or not yet, stay as they are."""
    journal = LabelJournal(tmp_path / "labels" / "set.jsonl")
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    for label, expected in (("a", "b"), ("b", "b"), ("c", "c")):
        moved = replace(INDEX, classes=("a", "b", "c"), images=(replace(IMAGES[0], label=label), *IMAGES[1:]))
        assert journal.applied(moved).images[0].label == expected
        assert journal.outdated(moved) == (label == "c")


@pytest.fixture
def labelled(tmp_path: Path, data: Path, run_extract: Extract) -> Path:
    """A folder with data/, of which two images are unlabelled, and features/ with four verdicts."""
    for number in range(2):
        draw_image(data / "unlabelled" / f"new_{number}.png", 500 + number, "2")
    run_extract(passes=1)
    index = FeatureCache.open(tmp_path / "features").index()
    journal = LabelJournal.load(tmp_path / "features", index.name)
    train, valid, new = index.split("train"), index.split("valid"), index.split(UNLABELLED)
    journal.record([train[0]], "class", "2", "fix", 0)
    journal.record([valid[0]], "bad", "", "fix", 0)
    journal.record([new[0]], "class", "2", "label", 0)
    journal.record([new[1]], "class", "violet", "random", 0, {new[1].digest})
    return tmp_path


def test_everything_that_trains_sees_the_labels(labelled: Path, run_extract: Extract) -> None:
    """Training, extracting again, which now makes passes of new training images, reducing and pruning."""
    cache = FeatureCache.open(labelled / "features")
    extracted, index = cache.extracted(), cache.index()
    assert index.classes == (*sorted(CLASSES), "violet") and extracted.classes == tuple(sorted(CLASSES))
    assert index.counts() == {"train": 14, "valid": 7, "test": 4}
    assert info(cache).sets[0]["labels"] == {"class": 3, "bad": 1}
    assert prune(labelled / "features").rows == 0
    result = run_extract(passes=1)
    assert result.computed == 2
    run = train_head(train_config(labelled / "features", labelled / "run", epochs=1))
    assert len(run.epochs) == 1
    config = ReduceConfig(labelled / "features", labelled / "small", "pca:8", seeds=0)
    reduce_cache(config)
    assert FeatureCache.open(labelled / "small").index() == FeatureCache.open(labelled / "features").index()


def test_the_table_extracts_to_the_same_labels(labelled: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Whatever else reads path,label,split: here extract itself, which computes nothing."""
    before = FeatureCache.open(labelled / "features").index()
    result = labels(labelled / "features", None, tmp_path / "table.csv")
    assert (result.changed, result.labels["class"], result.labels["bad"], result.outdated) == (3, 3, 1, 0)
    with (tmp_path / "table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(before.images)
    run_extract(passes=1)
    assert run_extract(data=tmp_path / "table.csv", set="table", passes=1).computed == 0
    after = FeatureCache.open(labelled / "features").index("table")
    assert after.classes == before.classes
    assert {(i.digest, i.label, i.split) for i in after.images} == {(i.digest, i.label, i.split) for i in before.images}


def test_lines_are_as_they_are_documented(labelled: Path) -> None:
    """Fields of a line, in cache/FORMAT.md too."""
    line = json.loads(journal_path(labelled / "features", "data").read_text().splitlines()[0])
    fields = {"number", "batch", "rest", "digest", "old", "new", "verdict", "split", "time", "queue", "rank"}
    assert line.keys() == fields
    text = (Path(__file__).parent.parent / "cache" / "FORMAT.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in fields)


def test_verify_names_a_damaged_journal_and_repair_keeps_it(labelled: Path) -> None:
    """It is the one file of a cache that nothing can make again."""
    path = journal_path(labelled / "features", "data")
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"number":2', b'"number":3'))
    (bad,) = verify(labelled / "features").bad
    assert bad["shard"] == "labels/data.jsonl" and "line 2" in bad["reason"]
    repair(labelled / "features")
    assert path.exists()
    path.write_bytes(before)
    forget(labelled / "features", "data")
    assert path.read_bytes() == before and verify(labelled / "features").bad == []


def test_a_label_given_after_the_data_changed_holds(tmp_path: Path) -> None:
    """The earlier verdict is past; the later one starts from the label that the data gave, and is one of its own."""
    journal = LabelJournal(tmp_path / "labels" / "set.jsonl")
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    moved = replace(INDEX, classes=("a", "b", "c"), images=(replace(IMAGES[0], label="c"), *IMAGES[1:]))
    journal.record([moved.images[0]], "class", "b", "fix", 0)
    assert (journal.applied(moved).images[0].label, journal.outdated(moved), len(journal.lines)) == ("b", 0, 2)
    journal.record([journal.applied(moved).images[0]], "bad", "", "fix", 0)
    assert IMAGES[0].digest not in {image.digest for image in journal.applied(moved).images}
    assert journal.label_in_data(IMAGES[0].digest) == "c"


def test_part_of_a_request_is_not_read(tmp_path: Path) -> None:
    """A decision on several images is there as a whole, or not at all."""
    journal = LabelJournal(journal_path(tmp_path, "set"))
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    before = journal.path.read_bytes()
    journal.record(IMAGES[1:4], "none", "", "explore", 0)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for kept in range(1, 4):
        journal.path.write_bytes(b"".join(lines[:kept]))
        again = LabelJournal.load(tmp_path, "set")
        assert len(again.lines) == 1
        again.make_writable()
        assert journal.path.read_bytes() == before


def test_a_journal_that_another_program_changed_is_not_written(tmp_path: Path) -> None:
    """Two numberings in one file would make it unreadable."""
    journal = LabelJournal(journal_path(tmp_path, "set"))
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    LabelJournal.load(tmp_path, "set").record([IMAGES[1]], "bad", "", "fix", 0)
    with pytest.raises(CacheError, match="start headgraft label again"):
        journal.record([IMAGES[2]], "bad", "", "fix", 0)
    assert len(LabelJournal.load(tmp_path, "set").lines) == 2


@pytest.mark.parametrize("change", [{"new": ""}, {"verdict": "bad"}, {"new": "a\0b"}, {"time": "noon"}, {"number": 2}])
def test_what_nothing_writes_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """A line that was changed by hand."""
    journal = LabelJournal(journal_path(tmp_path, "set"))
    journal.record([IMAGES[0]], "class", "b", "fix", 0)
    line = json.loads(journal.path.read_text())
    journal.path.write_text(json.dumps({**line, **change}) + "\n")
    with pytest.raises(DamagedCache, match="line 1"):
        LabelJournal.load(tmp_path, "set")


def test_classes_are_those_that_lost_no_image_by_a_verdict(tmp_path: Path) -> None:
    """One whose files could not be decoded stays, so that a verdict on another image makes no run stale."""
    journal = LabelJournal(tmp_path / "labels" / "set.jsonl")
    index = replace(INDEX, classes=("a", "b", "z"))
    journal.record([IMAGES[0]], "unsure", "", "fix", 0)
    assert journal.applied(index).digest == index.digest
    journal.record([IMAGES[1]], "bad", "", "fix", 0)
    assert journal.applied(index).classes == ("a", "z")


def test_new_training_images_need_their_passes(labelled: Path, run_extract: Extract) -> None:
    """Training says which command makes them."""
    with pytest.raises(MissingRows, match="--passes 1"):
        train_head(train_config(labelled / "features", labelled / "run", epochs=1))
    train_head(train_config(labelled / "features", labelled / "run", epochs=1, passes=0))
