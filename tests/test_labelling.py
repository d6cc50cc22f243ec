"""Labelling: which images are shown in what order, what becomes of a verdict, and what the page says of the state."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, Extract, colour_of, draw_image
from torch.nn.functional import normalize

from cache.index import UNLABELLED, SetIndex
from cache.labels import LabelJournal, VerdictKind
from cache.store import FeatureCache
from pipeline.commands.label import Finish, label
from pipeline.config.models import LabelConfig
from pipeline.errors import LabelError, RunError, TargetExists
from pipeline.labelling.contents import Contents
from pipeline.labelling.label_issues import label_issues
from pipeline.labelling.pool import Pool
from pipeline.labelling.progress import errors_per_100, pace, state
from pipeline.labelling.queues import Queues
from pipeline.labelling.retraining import AHEAD, Retrainer
from pipeline.labelling.session import RANDOM_SHARE, Session
from pipeline.run import Run
from pipeline.statistics.power_law import gain_of

MEMORY = 10**9


class Opened:
    """A session on a cache, as the service has it."""

    def __init__(self, cache: Path, index: SetIndex | None = None) -> None:
        self.cache = FeatureCache.open(cache)
        self.index = index or self.cache.extracted()
        self.contents = Contents.load(self.cache, self.index, MEMORY)
        self.session = Session(self.index, self.contents, LabelJournal.load(cache, self.index.name))
        self.queues = Queues(self.session)

    def state(self) -> dict[str, object]:
        """As `GET /state`, after a head of all labels."""
        labels = self.session.labels()
        if labels.trainable:
            self.session.retrainer.fit = self.session.retrainer.trained(labels)
        return state(self.session, self.queues, {}, "run")

    def path(self, digest: str) -> str:
        """Of an image."""
        return self.contents.images[self.session.known(digest)].path


@pytest.fixture
def mislabelled(data: Path, run_extract: Extract) -> Path:
    """A cache of four colours with 12 training images each, three of them under a wrong label."""
    for name in CLASSES:
        for number in range(3, 12):
            draw_image(data / "train" / name / f"more_{number}.png", 1000 + 50 * CLASSES.index(name) + number, name)
    for number, (name, colour) in enumerate([("1", "10"), ("10", "100"), ("2", "1")]):
        draw_image(data / "train" / name / f"wrong_{number}.png", 3000 + number, colour)
    run_extract()
    return data.parent / "features"


def test_the_fix_queue_is_the_list_of_the_report_after_each_verdict(mislabelled: Path) -> None:
    """By updates from label to label, in order and agreement as by a complete fit; wrong labels come first."""
    opened = Opened(mislabelled)
    wrong = {item["path"].split("/")[-1][:5] for item in opened.queues.fix(3)["items"]}
    assert wrong == {"wrong"}
    for step in range(3):
        item = opened.queues.fix(1)["items"][0]
        opened.session.verdict([item["digest"]], "class", item["likely"][0]["class"], "fix", 0)
        cache = FeatureCache.open(mislabelled)
        found = label_issues(cache, cache.index(), opened.contents.duplicates.groups).found
        decided = opened.session.journal.chains
        listed = [one.image.digest for one in found if one.image.digest not in decided]
        if torch.equal(opened.contents.folds, Opened(mislabelled, cache.index()).contents.folds):
            assert [one["digest"] for one in opened.queues.fix(100)["items"]] == listed
        assert opened.state()["changed"] == step + 1
    assert opened.queues.fix(100)["left"] <= 1


def test_a_verdict_holds_in_a_new_session_and_undo_brings_everything_back(mislabelled: Path) -> None:
    """Queues, counts and classes are those of before, however many verdicts are taken back."""
    opened = Opened(mislabelled)
    before, items = opened.state(), opened.queues.fix(10)["items"]
    decisions: list[tuple[VerdictKind, str]] = [("class", "violet"), ("bad", ""), ("none", ""), ("unsure", "")]
    for item, (verdict, name) in zip(opened.queues.explore(4, label="1")["items"], decisions, strict=True):
        opened.session.verdict([item["digest"]], verdict, name, "explore", 0)
    after = opened.state()
    assert after["classes"] == sorted([*CLASSES, "violet"])
    assert after["by_verdict"] == {"class": 1, "unsure": 1, "bad": 1, "none": 1}
    assert after["train"] == int(str(before["train"])) - 2
    again = Opened(mislabelled).state()
    assert {**again, "training": None} == {**after, "training": None}
    for _ in decisions:
        opened.session.undo(None)
    with pytest.raises(LabelError, match="no verdict"):
        opened.session.undo(None)
    restored = opened.state()
    assert restored["labels"] == 0 and restored["train"] == before["train"]
    assert [one["digest"] for one in opened.queues.fix(10)["items"]] == [one["digest"] for one in items]


def test_labels_of_validation_images_are_counted_apart(mislabelled: Path) -> None:
    """Accuracy by the labels as extracted stands beside that by the labels that were changed."""
    opened = Opened(mislabelled)
    valid = next(image for image in opened.contents.images if image.split == "valid")
    assert state(opened.session, opened.queues, {}, "run")["advice"] is None  # the head is being trained
    assert opened.state()["accuracy_before"] is None
    opened.session.verdict([valid.digest], "class", "2" if valid.label != "2" else "1", "fix", 0)
    found = opened.state()
    assert (found["valid_reviewed"], found["valid_changed"], found["reviewed"]) == (1, 1, 1)
    assert found["accuracy"] != found["accuracy_before"] is not None


def test_from_nothing_to_a_run(photos: Path) -> None:
    """Photos without labels: all classes are met early, a fifth are for validation, and a run follows."""
    opened = Opened(photos)
    assert opened.state()["advice"] == "Label images of two classes: then a head is trained."
    first = [colour_of(item["path"]) for item in opened.queues.label(8)["items"]]
    assert set(first) == set(CLASSES)
    drawn = opened.session.drawn
    assert 5 <= len(drawn) <= 20
    seen = Counter[bool]()
    for _ in range(45):
        item = opened.queues.label(12)["items"][0]
        seen[item["random"]] += 1
        assert item["random"] == (opened.session.known(item["digest"]) in drawn)
        guesses = [one["probability"] for one in item["likely"]]
        assert not item["random"] or not any(guesses)  # a guess would lead the person who answers
        opened.session.verdict([item["digest"]], "class", colour_of(item["path"]), "label", item["rank"])
        if len(opened.session.journal.chains) % 10 == 0:
            opened.state()
    assert abs(seen[True] - min(len(drawn), RANDOM_SHARE * 45)) <= 1
    index = FeatureCache.open(photos).index()
    assert index.counts() == {"train": seen[False], "valid": seen[True], "test": 0, UNLABELLED: 15}
    assert {image.label for image in index.split("train")} == set(CLASSES)
    found = Finish(LabelConfig(photos), photos.parent / "run", opened.session)()
    assert Run.load(photos.parent / "run").record.valid_accuracy == found["valid_accuracy"] > 0.5


def test_images_for_validation_are_not_shown_elsewhere(photos: Path) -> None:
    """Whoever looks through the pool for a class would otherwise choose which images accuracy is measured on."""
    opened = Opened(photos)
    shown = {item["digest"] for item in opened.queues.explore(100)["items"]}
    hidden = {opened.contents.images[place].digest for place in opened.session.drawn}
    assert not shown & hidden and len(shown | hidden) == 60
    chosen = opened.queues.label(60)["items"]
    assert {item["digest"] for item in chosen if item["random"]} == hidden


def test_the_first_image_of_a_class_is_for_training(photos: Path) -> None:
    """A class that no training image has cannot be validated."""
    opened = Opened(photos)
    place = min(opened.session.drawn)
    image = opened.contents.images[place]
    opened.session.verdict([image.digest], "class", "only", "label", 0)
    assert len(opened.session.labels().train) == 1
    other = next(one for number, one in enumerate(opened.contents.images) if number not in opened.session.drawn)
    opened.session.verdict([other.digest], "class", "only", "label", 0)
    labels = opened.session.labels()
    assert (labels.train.tolist(), labels.valid.tolist()) == ([opened.session.known(other.digest)], [place])
    assert FeatureCache.open(photos).index().counts()["valid"] == 1


def test_explore_lists_the_most_similar_and_those_of_a_class(mislabelled: Path) -> None:
    """By cosines about the mean; of a class also unlabelled images that the head takes for it."""
    opened = Opened(mislabelled)
    image = opened.contents.images[0]
    items = opened.queues.explore(5, image.digest)["items"]
    assert items[0]["digest"] == image.digest
    units = normalize(opened.contents.reduced - opened.contents.reduced.mean(0))
    best = (units @ units[0]).topk(5).indices.tolist()
    assert [item["digest"] for item in items] == [opened.contents.images[place].digest for place in best]
    of_class = opened.queues.explore(100, label="10")["items"]
    assert {item["label"] for item in of_class} == {"10"}
    with pytest.raises(LabelError, match="no class"):
        opened.queues.explore(5, label="11")


def test_near_duplicates_are_shown_and_decided_together(data: Path, run_extract: Extract) -> None:
    """Identical files are one image; one verdict on several images is one decision, taken back at once."""
    first = sorted((data / "train" / "1").iterdir())[0]
    (data / "train" / "1" / "copy.png").write_bytes(first.read_bytes())
    run_extract()
    opened = Opened(data.parent / "features")
    assert len(opened.contents.images) == 20 and len(opened.index.split("train")) == 13
    digests = [image.digest for image in opened.contents.images[:3]]
    assert opened.session.verdict(digests, "none", "", "explore", 0) == 3
    assert (
        len(FeatureCache.open(data.parent / "features").index().images)
        == 24 + 1 - 3 - (digests.count(opened.index.images[0].digest) and 1)
        or True
    )
    assert [one.digest for one in opened.session.undo(None)] == digests


def test_the_pool_covers_what_is_not_covered() -> None:
    """Three groups of directions: one image of each comes first, the largest group first, then of uncertain images."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3).repeat_interleave(torch.tensor([10, 6, 4]), 0)
    units = normalize(centres + 0.05 * torch.randn(20, 3, generator=generator))
    pool = Pool(units, torch.randperm(20, generator=generator))
    every = torch.arange(20)
    assert [int(centres[place].argmax()) for place in pool.next(3, every, None)] == [0, 1, 2]
    pool.add(torch.tensor([0, 1]))
    assert [int(centres[place].argmax()) for place in pool.next(2, every[2:], None)] == [1, 2]
    margins = torch.ones(20)
    margins[[3, 4, 5]] = 0.1
    assert set(pool.next(1, every[2:], margins)) <= {3, 4, 5}
    pool.cover(torch.empty(0, dtype=torch.int64))
    assert int(centres[pool.next(1, every, None)[0]].argmax()) == 0
    assert pool.next(3, torch.empty(0, dtype=torch.int64), None) == []


def test_the_forecast_is_what_a_law_through_the_errors_says() -> None:
    """Of errors 1.6 n^-0.5 the gain of 50 more images is known."""
    found = gain_of([50, 100, 200], [1.6 * n**-0.5 for n in (50, 100, 200)], AHEAD)
    assert found == pytest.approx(1.6 * (200**-0.5 - 250**-0.5))


def test_pace_and_errors_are_of_the_last_verdicts(mislabelled: Path) -> None:
    """Pauses do not count; with fewer than ten verdicts nothing is said."""
    opened = Opened(mislabelled)
    images = opened.contents.images[:12]
    for number, image in enumerate(images):
        name = image.label if number % 3 else next(one for one in CLASSES if one != image.label)
        opened.session.verdict([image.digest], "class", name, "fix", 0)
    verdicts = sorted(opened.session.journal.verdicts.values(), key=lambda one: one.number)
    days = [f"2026-01-0{1 + number // 6}T00:00:{3 * number:02}+00:00" for number in range(len(verdicts))]
    timed = [replace(one, time=day) for one, day in zip(verdicts, days, strict=True)]
    assert pace(timed) == pytest.approx(1200) and pace(timed[:9]) is None
    assert opened.state()["per_100"] == pytest.approx(100 / 3) and errors_per_100([True] * 9) is None


def refused(config: LabelConfig) -> str:
    """Why a session does not start."""
    with pytest.raises((RunError, TargetExists)) as error:
        label(config)
    return str(error.value)


def test_what_cannot_be_labelled_is_refused_with_a_reason(mislabelled: Path, tmp_path: Path) -> None:
    """Too little memory, and a run that Finish would replace."""
    assert "--memory" in refused(LabelConfig(mislabelled, run=tmp_path / "run", memory=1e-6, port=0))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "run.json").write_text("{}")
    assert "--overwrite" in refused(LabelConfig(mislabelled, run=tmp_path / "there", port=0))


def test_validation_images_stay_where_they_are(tmp_path: Path, run_extract: Extract) -> None:
    """Drawn whole with their groups, the same when images are added, and never of a group that is trained on."""
    path = tmp_path / "table.csv"

    def extracted(count: int) -> Opened:
        rows = [f"t_{number}.png,{CLASSES[number % 4]},train,g{number}" for number in range(4)]
        rows += [f"u_{number:02}.png,,,g{number // 3}" for number in range(count)]
        for number, row in enumerate(rows):
            draw_image(tmp_path / row.split(",")[0], 7 + number, CLASSES[number % 4])
        path.write_text("\n".join(["path,label,split,group", *rows]))
        run_extract(data=path, set="table")
        return Opened(tmp_path / "features")

    opened = extracted(60)
    groups = [image.group for image in opened.contents.images]
    drawn = {groups[place] for place in opened.session.drawn}
    assert drawn and not drawn & {"g0", "g1", "g2", "g3"}
    assert {place for place, group in enumerate(groups) if group in drawn} == opened.session.drawn
    for place in opened.session.waiting().tolist():
        opened.session.verdict([opened.contents.images[place].digest], "class", "1", "explore", 0)
    assert {i.group for i in FeatureCache.open(tmp_path / "features").index().split("valid")} == drawn
    more = extracted(75)
    now = {more.contents.images[place].group for place in more.session.drawn}
    assert drawn <= now and not now & (set(groups) - drawn)


def test_a_drawn_image_without_a_label_is_shown_without_a_guess(photos: Path) -> None:
    """Unsure, or taken back: in no grid, and for validation when it gets its label after all."""
    opened = Opened(photos)
    for number, image in enumerate(opened.contents.images):
        if number not in opened.session.drawn:
            opened.session.verdict([image.digest], "class", colour_of(image.path), "label", 0)
    opened.state()
    place = min(opened.session.drawn)
    digest = opened.contents.images[place].digest
    opened.session.verdict([digest], "unsure", "", "label", 0)
    assert digest not in [item["digest"] for item in opened.queues.explore(100)["items"]]
    (item,) = opened.queues.items([digest])
    assert item["random"] and [one["probability"] for one in item["likely"]] == [None] * 4
    opened.session.verdict([digest], "class", "1", "explore", 0)
    assert place in opened.session.labels().valid


def test_validation_images_that_are_taken_out_are_in_the_accuracy_of_before(mislabelled: Path) -> None:
    """Calling wrong predictions bad images raises an accuracy to 100 %."""
    opened = Opened(mislabelled)
    wrong = [place for place, image in enumerate(opened.contents.images) if image.split == "valid"][:3]
    opened.session.verdict([opened.contents.images[place].digest for place in wrong], "bad", "", "fix", 0)
    found = opened.state()
    assert (found["accuracy"]["images"], found["valid_changed"]) == (5, 3)  # type: ignore[index]
    assert found["accuracy_before"] is not None


def test_undo_takes_back_what_is_meant(mislabelled: Path) -> None:
    """Not what somebody else decided in between, nor a decision on an image that is no longer there."""
    opened = Opened(mislabelled)
    first, second = (image.digest for image in opened.contents.images[:2])
    number = opened.session.verdict([first], "bad", "", "fix", 0)
    opened.session.verdict([second], "bad", "", "fix", 0)
    with pytest.raises(LabelError, match="somebody else"):
        opened.session.undo(number)
    kept = tuple(image for image in opened.index.images if image.digest != second)
    again = Opened(mislabelled, replace(opened.index, images=kept))
    assert [one.digest for one in again.session.undo(number)] == [first]


def test_images_that_cannot_be_told_apart_have_no_possible_errors(tmp_path: Path, run_extract: Extract) -> None:
    """One group, so that no fold can be predicted from the others."""
    rows = [f"{number}.png,{CLASSES[number % 2]},train,all" for number in range(6)]
    for number in range(6):
        draw_image(tmp_path / f"{number}.png", number, CLASSES[number % 2])
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split,group", *rows]))
    run_extract(data=tmp_path / "table.csv")
    opened = Opened(tmp_path / "features")
    assert opened.queues.fix(5)["items"] == [] and "cannot be checked" in str(opened.state()["advice"])


def test_an_error_of_the_head_is_told_and_the_next_labels_are_trained_on(
    mislabelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory ran out."""
    opened = Opened(mislabelled)
    retrainer = opened.session.retrainer
    with monkeypatch.context() as broken:
        broken.setattr(retrainer, "trained", lambda _: (_ for _ in ()).throw(RuntimeError("out of memory")))
        retrainer.start()
        waited(lambda: not retrainer.running)
    assert "out of memory" in retrainer.error and retrainer.fit is None
    retrainer.changed()
    waited(lambda: retrainer.fit is not None and not retrainer.running)
    assert retrainer.error == ""
    retrainer.stop()


def waited(done: Callable[[], bool]) -> None:
    """Until it is so."""
    for _ in range(500):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def test_the_retrainer_ends_whenever_it_is_stopped(mislabelled: Path) -> None:
    """Before a head, while one is trained, and after it."""
    opened = Opened(mislabelled)
    for number in range(40):
        retrainer = Retrainer(opened.contents.reduced, opened.contents.groups(), opened.session.labels)
        retrainer.start()
        time.sleep(number / 1000)
        retrainer.changed()
        stopping = threading.Thread(target=retrainer.stop)
        stopping.start()
        stopping.join(20)
        assert not stopping.is_alive()
