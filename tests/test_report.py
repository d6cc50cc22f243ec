"""The report of a run: its figures, what it shows of the data, and the page itself."""

import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chromium import asked, browser, errors
from click.testing import CliRunner
from conftest import CLASSES, Extract, draw_dataset, draw_image, train_config
from hypothesis import given
from hypothesis import strategies as st

from cache.history import read_history, record_extraction
from cache.index import ImageRecord, SetIndex
from cache.labels import LabelJournal
from cache.layout import HISTORY_FILE
from cache.store import FeatureCache
from cli import main
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.report import ReportResult, report
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, ReportConfig
from pipeline.console import counted
from pipeline.duplicates import near_duplicates as near
from pipeline.duplicates.near_duplicates import NearDuplicates, Pair
from pipeline.duplicates.threshold import Threshold
from pipeline.errors import ConfigError, ImageSetError, RunError, TargetExists
from pipeline.evidence.attribution import evidence_of
from pipeline.evidence.reference import mean_row
from pipeline.heads.fit import Epoch
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.labelling.label_issues import LabelIssue, LabelIssues
from pipeline.reporting import figures, thumbnails
from pipeline.reporting.confusion import confusion
from pipeline.reporting.costs import Payback
from pipeline.reporting.evidence import find_evidence, squares
from pipeline.reporting.findings import find
from pipeline.reporting.next_steps import next_steps
from pipeline.reporting.page import render
from pipeline.reporting.predictions import Predictions, predict
from pipeline.reporting.sections import choose_shown
from pipeline.reporting.sureness import OperatingPoint
from pipeline.reporting.thumbnails import Thumbnails
from pipeline.row_layout import RowLayout
from pipeline.run import Run
from pipeline.run_folder import REPORT_FILE
from pipeline.search.baselines import Baselines
from pipeline.search.results import SweepResult
from pipeline.statistics.groups import join
from pipeline.statistics.intervals import Interval
from pipeline.statistics.selective import Answered, Unsupported

STRANGE = "<script>alert(1)</script>'\"&amp;"


def record(number: int) -> ImageRecord:
    """An image that is nowhere."""
    return ImageRecord(f"{number}.jpg", f"{number:064x}", "a", "valid", 1, 0)


def predictions(truth: Sequence[int], predicted: Sequence[int], classes: int, sure: float = 0.9) -> Predictions:
    """What a head would have said, `sure` of each."""
    probabilities = np.full((len(truth), classes), (1 - sure) / (classes - 1))
    probabilities[np.arange(len(truth)), predicted] = sure
    return Predictions(tuple(map(record, range(len(truth)))), np.log(probabilities), np.array(truth))


def accuracies_of(found: Predictions) -> dict[str, Interval]:
    """Without near-duplicates."""
    return found.accuracies(join(found.images, []))


def test_an_interval_is_that_of_a_fraction() -> None:
    """90 of 100: between what the binomial distribution has it in 95 % of samples; copies of an image count once."""
    found = accuracies_of(predictions([0] * 100, [0] * 90 + [1] * 10, 8))
    assert found["top1"].value == pytest.approx(0.9)
    assert found["top1"].low == pytest.approx(0.84, abs=0.02)
    assert found["top1"].high == pytest.approx(0.955, abs=0.02)
    two = accuracies_of(predictions([0, 1], [0, 1], 2))
    assert two["top1"] == two["mean_per_class"]
    one = predictions([0] * 100, [0] * 100, 8)
    copies = replace(one, images=(record(1),) * 100)
    assert accuracies_of(copies)["top1"].low < 0.5 < 0.96 < accuracies_of(one)["top1"].low
    assert "top5" not in accuracies_of(predictions([0, 1], [0, 1], 5))  # which would be 100 %


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40))
def test_accuracies_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Over the classes that have images, others being predicted or not."""
    from sklearn.metrics import recall_score

    truth, predicted = zip(*pairs, strict=True)
    found = accuracies_of(predictions(truth, predicted, 7))
    expected = recall_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert found["mean_per_class"].value == pytest.approx(expected)
    assert found["top1"].value == pytest.approx(np.mean(np.array(truth) == predicted))
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.values())


def test_confused_classes_stand_side_by_side() -> None:
    """Whatever their places: 0 and 3 share images, so do 1 and 4."""
    truth, predicted = [0, 0, 3, 3, 1, 1, 4, 4, 2, 2], [0, 3, 3, 0, 1, 4, 4, 1, 2, 2]
    found = confusion(predictions(truth, predicted, 5))
    at = {label: place for place, label in enumerate(found.order)}
    assert sorted(at) == list(range(5))
    assert abs(at[0] - at[3]) == abs(at[1] - at[4]) == 1
    assert [(pair.cell.truth, pair.cell.predicted, pair.count) for pair in found.pairs()] == [(0, 3, 2), (1, 4, 2)]
    assert sum(cell.count for cell in found.cells.values()) == len(truth)


def test_a_matrix_has_the_classes_with_most_mistakes() -> None:
    """Of 200 classes 150, those that are confused among them."""
    truth = [*range(200), 7, 150]
    found = confusion(predictions(truth, [*range(200), 150, 7], 200))
    assert len(set(found.order)) == 150
    assert {7, 150} <= set(found.order)


def test_a_payback_counts_views() -> None:
    """300 views in the cache against 100 in each epoch: 3 epochs, so the first head; or 10 heads of one epoch."""
    assert (Payback(300, 20, 100).heads, Payback(300, 20, 100).epochs_of_first) == (1, 3)
    assert (Payback(1000, 1, 100).heads, Payback(1001, 1, 100).heads) == (10, 11)


def test_what_filling_a_cache_took_is_kept(run_extract: Extract, tmp_path: Path) -> None:
    """A line for each time that rows were computed; a line cut short is counted, and spoils no other."""
    run_extract()
    run_extract()  # computes nothing
    run_extract(passes=1)
    entries, unread = read_history(tmp_path / "features")
    assert [(entry.computed, entry.passes) for entry in entries] == [(24, 0), (12, 1)]
    assert unread == 0
    assert set(entries[0].phases) == {"decode", "compute", "write"}
    with open(tmp_path / "features" / HISTORY_FILE, "ab") as file:
        file.write(b'{"set":"da')
    record_extraction(tmp_path / "features", entries[0])
    assert read_history(tmp_path / "features") == ([*entries, entries[0]], 1)


def test_pictures_are_of_the_images_that_were_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file under the name, or none, is counted and not shown; no more are made than there is room for."""
    from pipeline.inputs.images import ImageSet

    data = draw_dataset(tmp_path / "data")
    images = ImageSet.scan(data).images
    draw_image(data / images[0].path, 900)
    (data / images[1].path).unlink()
    found = Thumbnails(data)
    found.add([*images, *images])
    assert found.missing == 2
    assert set(found.uris) == {image.digest for image in images[2:]}
    assert all(uri.startswith("data:image/webp;base64,") for uri in found.uris.values())
    small = Thumbnails(data, room=3 * max(map(len, found.uris.values())))
    small.add(images)
    assert 2 <= len(small.uris) <= 3 + len(found.uris) // 3
    assert sum(map(len, small.uris.values())) <= 3 * max(map(len, found.uris.values()))
    assert thumbnails.ROOM < 5e6 * 0.8  # the page stays under 5 MB


@pytest.fixture
def trained(run_extract: Extract, tmp_path: Path) -> Path:
    """A small run on four colours."""
    run_extract(passes=1)
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    return tmp_path / "run"


def test_advice_follows_from_what_was_found(trained: Path) -> None:
    """What is wrong comes first; what was done is not advised again."""
    run = Run.load(trained)
    cache = run.open_cache(None)
    found = find(run, cache, cache.index(), {})
    pair = Pair("a", "b", 0.99, False, ("1", "1"), ("train", "valid"))
    near = replace(found.duplicates, pairs=[pair])
    wrong = replace(found, leaks={"across_splits": 2, "two_labels": 0}, duplicates=near)
    texts = [step.text + step.command for step in next_steps(wrong)]
    assert texts[0].startswith("Remove files")
    assert texts[1].startswith("Check the near-duplicates")
    assert any("headgraft sweep" in text for text in texts)
    assert any(text.endswith("--image-size 32 --passes 2") for text in texts)
    run.record.config = replace(run.record.config, passes=8)
    done = replace(found, duplicates=replace(near, pairs=[]), label_issues=LabelIssues([], 20, {}), test=found.valid)
    best = replace(found.known, majority=0, discriminant=None, logistic=None)
    swept = replace(done, sweep=object(), known=best)  # type: ignore[arg-type]  # not looked into
    assert [step.command.split()[1] for step in next_steps(swept)] == ["cv", "export"]
    judged = replace(swept, cross_validated=object())  # type: ignore[arg-type]
    assert [step.command.split()[1] for step in next_steps(judged)] == ["export"]
    points = [OperatingPoint(0.01, Unsupported("too few", 300)), OperatingPoint(0.02, Answered(0.7, 6, 0))]
    missed = {**judged.scores, "top1": Interval(0.75, 0.5, 0.9)}
    unsure = replace(judged, scores=missed, sureness=replace(judged.sureness, points=points), known=best)
    assert [step.command[-16:] for step in next_steps(unsure)][-2] == "--max-error 0.02"


def test_a_long_list_of_possible_label_errors_is_a_sign_of_weak_features(trained: Path) -> None:
    """More than a fifth of the labels are seldom wrong: the page says what such a list rather shows."""
    run = Run.load(trained)
    cache = run.open_cache(None)
    found = find(run, cache, cache.index(), {})
    image = cache.index().split("train")[0]
    said = []
    for count in (4, 5):
        issues = LabelIssues([LabelIssue(image, 0, 1, 0.1)] * count, 20, {})
        wrong = replace(found, label_issues=issues, refusal="")
        pictures = thumbnails.Thumbnails(Path(), Preprocessing.of(cache.manifest.base).policy)
        said.append(b"compare backbones" in render(wrong, choose_shown(wrong), pictures))
    assert said == [False, True]


def test_the_headline_is_the_accuracy_that_chose_nothing(trained: Path) -> None:
    """That of test images where they were evaluated; of a sweep, the one corrected for the choice or over all seeds."""
    run = Run.load(trained)
    cache = run.open_cache(None)
    found = find(run, cache, cache.index(), {})
    assert found.headline == ("validation accuracy", found.scores["top1"].value, found.scores["top1"])
    best = SimpleNamespace(won="search", corrected=0.7, seeds=5, mean=0.8)
    swept = replace(found, sweep=SimpleNamespace(result=SimpleNamespace(choose_by="top1", best=best)))  # type: ignore[arg-type]
    assert swept.headline == ("validation accuracy, corrected for the choice", 0.7, None)
    best.won = "default"
    assert swept.headline == ("validation accuracy, mean over 5 seeds", 0.8, None)
    test = Interval(0.6, 0.5, 0.7)
    assert replace(swept, test=found.valid, test_scores={"top1": test}).headline == ("test accuracy", 0.6, test)


@pytest.mark.parametrize(
    ("accuracies", "images", "least", "low", "high"),
    [([1.0, 1.0], 1000, 10, 90, 100), ([0.9, 0.95], 16, 62, 30, 100), ([0.02, 0.01], 10_000, 10, 0, 10)],
    ids=["all right", "16 images", "near 0"],
)
def test_axes_of_accuracies_are_honest(accuracies: list[float], images: int, least: int, low: int, high: int) -> None:
    """From 0 to 100 % at most; never so narrow that one image fills more than a tenth."""
    chart = figures.learning_curves([Epoch(n, 0.1, one, 0.1, 1.0) for n, one in enumerate(accuracies)], images)[1]
    ticks = [float(text) for text in re.findall(r">([\d.]+)\u00a0%</text>", chart)]
    assert low <= min(ticks) < max(ticks) <= high
    assert max(ticks) - min(ticks) >= 0.7 * least  # ticks lie within the axis


def test_an_accuracy_has_one_interval(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `evaluate` as in `report`: near-duplicates of a split count as one image in both."""
    alone = evaluate(EvaluateConfig(trained, split="valid")).intervals
    images = Run.load(trained).open_cache(None).index().split("valid")
    links = [(0.99, a.digest, b.digest) for a, b in pairwise(images[:4])]

    def joined(cache: FeatureCache, index: SetIndex) -> NearDuplicates:
        return NearDuplicates([], Threshold(), join(index.images, links))

    monkeypatch.setattr(near, "near_duplicates", joined)
    intervals = evaluate(EvaluateConfig(trained, split="valid")).intervals
    assert intervals["top1"] != alone["top1"]
    assert {name: (one["low"], one["high"]) for name, one in report(ReportConfig(trained)).valid.items()} == intervals


class Page(HTMLParser):
    """What a page holds: its ids, links, tags, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.outside: list[str] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        self.tags[tag] += 1
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if tag == "a" else []
        self.outside += [f"{name}={value}" for name, value in attrs if name in ("src", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        """Collect."""
        self.text += data


def looked_over(path: Path) -> Page:
    """A page whose links all lead somewhere in it, that asks for nothing, and is no larger than mail takes."""
    page, text = Page(path), path.read_text("utf-8")
    assert len(page.ids) == len(set(page.ids)), [name for name, count in Counter(page.ids).items() if count > 1]
    assert page.links
    assert {link for link in page.links if link[:1] != "#" or link[1:] not in page.ids} == set()
    assert page.outside == []
    assert not re.search(r"url\((?!#|data:)", text)
    assert "var(--ink)" in text
    assert path.stat().st_size < 5e6
    return page


def test_the_page_answers_what_a_user_asks(trained: Path) -> None:
    """Seven sections but the sweep's; no test figure before test was looked at, then one, and how often."""
    result = report(ReportConfig(trained))
    page = looked_over(trained / REPORT_FILE)
    for heading in ("Accuracy", "Errors", "Data quality", "Calibration", "Cost", "Next steps"):
        assert heading in page.text
    assert "Retrained with" not in page.text
    assert "answered images without an error are needed for 1 % at 95 %, there are 8 images" in page.text
    assert "Most unlike the training images" in page.text
    assert "headgraft evaluate" in page.text
    assert "test images were evaluated" not in page.text
    assert "95 % interval over images" in page.text
    assert result.test == {}
    assert result.pictures > 0
    assert result.missing_pictures == 0
    assert result.baselines["majority"] == pytest.approx(0.25)
    assert 0 < result.calibration["ece"] < 1  # type: ignore[operator]
    assert f"by\n{result.calibration['floor']:.3f} by chance alone" in page.text
    evaluate(EvaluateConfig(trained))
    again = report(ReportConfig(trained))
    assert again.test["top1"]["value"] == pytest.approx(evaluate(EvaluateConfig(trained)).top1)
    assert "were evaluated once" in looked_over(trained / REPORT_FILE).text


def test_evidence_lies_over_the_errors(trained: Path) -> None:
    """For the predicted class rather than the true one; refitted heads, which saw the images, have none."""
    run = Run.load(trained)
    cache = run.open_cache(None)
    index = cache.index()
    valid = predict(run, cache, index, "valid")
    wrong = valid.truth.copy()
    wrong[::2] = (wrong[::2] + 1) % len(index.classes)  # whatever the head says, some images are errors then
    found = find_evidence(run, cache, index, replace(valid, truth=wrong))
    assert found is not None
    assert found.cells.shape == (8, 2, 2)
    assert found.border == pytest.approx(1)
    head, layout = run.folded_head(), RowLayout(8, (2, 2))
    rows = torch.from_numpy(cache.read([(image.key, "pass:0") for image in valid.images]).astype(np.float32))
    mean = mean_row(cache, index.split("train"))
    assert mean is not None
    order = torch.from_numpy(valid.log_probs).topk(2).indices
    hits = valid.log_probs.argmax(1) == wrong
    pairs = torch.stack([order[:, 0], torch.where(torch.from_numpy(hits), order[:, 1], torch.from_numpy(wrong))], 1)
    expected = torch.stack([one.cells for one in evidence_of(head, rows, mean, layout, pairs)])
    assert torch.allclose(found.cells, expected)
    assert find_evidence(replace(run, record=replace(run.record, refit=True)), cache, index, valid) is None
    assert squares(torch.tensor([[2.0, -1.0], [0.01, 0.0]])) == [(0, 0, 1.0), (1, 0, -0.5)]


def test_the_advice_can_be_followed(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """The command for more passes is one that the cache does not refuse."""
    run_extract()
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    report(ReportConfig(tmp_path / "run"))
    page = Page(tmp_path / "run" / REPORT_FILE)
    (command,) = re.findall(r"headgraft (extract .*--passes \d+)", page.text)
    done = CliRunner().invoke(main, [*shlex.split(command), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "12 computed" in done.stdout


def test_a_report_is_of_the_run_beside_it(trained: Path, tmp_path: Path) -> None:
    """Training anew takes it away; elsewhere a file is replaced only when asked."""
    report(ReportConfig(trained))
    train_head(train_config(tmp_path / "features", trained, overwrite=True))
    assert not (trained / REPORT_FILE).exists()
    report(ReportConfig(trained, tmp_path / "deep" / "page.html"))
    with pytest.raises(TargetExists):
        report(ReportConfig(trained, tmp_path / "deep" / "page.html"))
    report(ReportConfig(trained, tmp_path / "deep" / "page.html", overwrite=True))


def test_labels_given_by_hand_are_told_with_the_accuracy_before(run_extract: Extract, tmp_path: Path) -> None:
    """Of validation images that a person changed, both accuracies: by the labels in the data, and by those of now."""
    run_extract()
    index = FeatureCache.open(tmp_path / "features").index()
    journal = LabelJournal.load(tmp_path / "features", index.name)
    for number, image in enumerate(index.split("valid")[:3]):
        label = next(name for name in CLASSES if name != image.label)
        journal.record([image], "class", label, "fix", number)
    journal.record([index.split("train")[0]], "bad", "", "fix", 0)
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    found = report(ReportConfig(tmp_path / "run"))
    assert found.hand_labels["verdicts"] == {"class": 3, "unsure": 0, "bad": 1, "none": 0}
    assert (found.hand_labels["changed"], found.hand_labels["valid_changed"]) == (4, 3)
    assert abs(found.hand_labels["before"]["value"] - found.valid["top1"]["value"]) <= 3 / 8
    page = looked_over(tmp_path / "run" / REPORT_FILE)
    assert "Labels given by hand: 4 images" in page.text and "headgraft label --cache" in page.text
    assert "3 validation images" in page.text


def test_images_out_of_reach_are_left_without_a_picture(trained: Path, data: Path, tmp_path: Path) -> None:
    """And found again with --data."""
    shutil.move(data, tmp_path / "moved")
    found = report(ReportConfig(trained))
    assert found.missing_pictures > 0
    assert f"{found.missing_pictures} missing" in found.in_words()
    assert "without a picture" in looked_over(trained / REPORT_FILE).text
    found = report(ReportConfig(trained, data=tmp_path / "moved"))
    assert found.missing_pictures == 0
    assert "missing" not in found.in_words()
    assert counted(len(found.label_issues), "possible label error") in found.in_words()
    assert f"{counted(found.duplicates['pairs'], 'pair')} of near-duplicates (" in found.in_words()
    assert f"({found.duplicates['across']} in two splits or classes)" in found.in_words()


def test_a_folder_of_images_that_does_not_exist_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    """Before any work, by whoever takes --data; a CSV beside the images stands for its folder."""
    nowhere = data / "nowhere"
    with pytest.raises(ImageSetError, match="nowhere does not exist"):
        report(ReportConfig(trained, data=nowhere))
    with pytest.raises(ImageSetError, match="nowhere does not exist"):
        export(ExportConfig(trained, tmp_path / "model.safetensors", data=nowhere))
    assert [file.name for file in (*trained.glob("*.html"), *tmp_path.glob("*.safetensors"))] == ["tiny.safetensors"]
    (data / "list.csv").write_text("path,label,split")
    assert report(ReportConfig(trained, data=data / "list.csv")).missing_pictures == 0


def the_columns_that_matter_are_seen(report_file: Path) -> None:
    """Validation accuracy and recall without scrolling, at the width of a desk and of a phone; nothing cut in print."""
    for width in (1280, 400):
        with browser(width, 900) as page:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            page.get(report_file.as_uri())
            assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            for place, column in (("sweep", 2), ("fails", 2)):
                cell = f"#{place} .table td:nth-child({column})"
                right = f"document.querySelector({cell!r}).getBoundingClientRect().right"
                box = f"document.querySelector('#{place} .table').getBoundingClientRect().right"
                assert page.execute_script(f"return {right} <= Math.min({box}, innerWidth)"), (width, place)
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
            assert not page.find_element("css selector", "nav").is_displayed()
            styles = "return [...document.querySelectorAll('.table')].map((one) => getComputedStyle(one)"
            assert set(page.execute_script(f"{styles}.maxHeight)")) == {"none"}
            assert set(page.execute_script(f"{styles}.overflow)")) == {"visible"}


@pytest.mark.parametrize("merge", [False, True], ids=["the best", "merged"])
def test_a_sweep_is_shown_head_by_head(run_extract: Extract, tmp_path: Path, merge: bool) -> None:
    """In charts and a table that can be sorted; a merged head has no curve by epoch."""
    run_extract()
    space = tmp_path / "space.toml"
    space.write_text('basis = ["pool", "pyramid"]\nhidden = [4, 8]\nlr = { low = 1e-3, high = 1e-1, log = true }\n')
    sweep(SweepConfig(tmp_path / "features", tmp_path / "run", heads=9, epochs=4, space=space, seeds=2, merge=merge))
    report(ReportConfig(tmp_path / "run"))
    page = looked_over(tmp_path / "run" / REPORT_FILE)
    assert "9 heads in" in page.text
    assert page.text.count("pyramid") > 1
    assert ("has no curve of its own" in page.text) == merge
    assert "kept. Retrained with 2 other seeds" in " ".join(page.text.split())
    assert "The same for all: " in page.text
    if not merge:
        the_columns_that_matter_are_seen(tmp_path / "run" / REPORT_FILE)
    (tmp_path / "run" / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match=r"sweep\.json"):
        report(ReportConfig(tmp_path / "run"))


def relabelled(data: Path, names: dict[str, str]) -> None:
    """Rename class folders in every split."""
    for split in data.iterdir():
        for label, name in names.items():
            (split / label).rename(split / name)


def test_names_stay_text(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Folders and display names that are markup, quotes, or no letters at all."""
    strange = STRANGE.replace("/", "")
    relabelled(data, {"1": strange, "2": "a\x1b[2Jb"})
    run_extract()
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    (tmp_path / "names.json").write_text(json.dumps({"10": STRANGE, "100": "</style></svg>{{ 7 * 7 }}"}))
    report(ReportConfig(tmp_path / "run", names=tmp_path / "names.json"))
    page = looked_over(tmp_path / "run" / REPORT_FILE)
    assert page.tags["script"] == page.tags["style"] == 1
    for name in (strange, STRANGE, "</style></svg>{{ 7 * 7 }}", "a\\x1b[2Jb"):
        assert name in page.text


def test_two_classes_and_one_without_validation_images(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """Are reported like any other, with what there is."""
    for split in data.iterdir():
        for label in ("10", "100"):
            shutil.rmtree(split / label)
    run_extract(set="two")
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    result = report(ReportConfig(tmp_path / "run"))
    assert set(result.valid) == {"top1", "mean_per_class"}
    looked_over(tmp_path / "run" / REPORT_FILE)
    shutil.rmtree(data / "valid" / "2")
    run_extract(set="two")
    train_head(train_config(tmp_path / "features", tmp_path / "run", overwrite=True))
    result = report(ReportConfig(tmp_path / "run"))
    text = looked_over(tmp_path / "run" / REPORT_FILE).text
    assert "No validation images: 2." in text
    assert result.unchecked_classes["2"] == 3
    assert "Cannot be checked" in text
    assert "2 (3)" in text
    assert all(issue["label"] not in result.unchecked_classes for issue in result.label_issues)


def test_skipped_files_and_duplicates_are_listed(data: Path, run_extract: Extract, tmp_path: Path) -> None:
    """With the reason; the same picture in two splits is said first in what next."""
    (data / "train" / "1" / "bad.jpg").write_text("text")
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "valid" / "1" / "copy.jpg")
    run_extract(skip_bad=True)
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    result = report(ReportConfig(tmp_path / "run"))
    page = looked_over(tmp_path / "run" / REPORT_FILE)
    assert "train/1/bad.jpg" in page.text
    assert "identical: train and valid" in page.text
    assert result.duplicates["across"] >= 1
    assert result.duplicates["expected_false"] == pytest.approx(1.0)
    assert result.duplicates["detection_rate"] is None
    assert "false pairs of different classes expected: 1 (" in page.text
    assert "detection rate unknown" in page.text
    assert "Remove files that are in two splits" in page.text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(epochs="x"),
        lambda record: record.update(epochs=[{}]),
        lambda record: record.update(scored=[{}]),
        lambda record: record.update(seconds=None),
        lambda record: record["config"].update(passes="x"),
        lambda record: record["config"].update(epochs=0),
        lambda record: record["config"].update(basis="$a_$"),
        lambda record: record.update(config={}),
    ],
)
def test_an_edited_run_is_refused(trained: Path, change: Any) -> None:
    """In one sentence, and no page is made."""
    file = trained / "run.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(RunError, match="is damaged"):
        report(ReportConfig(trained))
    assert not (trained / REPORT_FILE).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.update(heads=[]),
        lambda result: result.update(heads=[1]),
        lambda result: result.update(best={}),
        lambda result: result.update(seconds="long"),
        lambda result: result["best"].update(std=None),
        lambda result: result["best"].update(std=float("nan")),
        lambda result: result["best"].update(won="luck"),
        lambda result: result["best"]["difference"].update(low="x"),
        lambda result: result["best"]["difference"].update(corrected="x"),
        lambda result: result.update(choose_by="loss"),
        lambda result: result["heads"][0].update(valid_loss="x"),
        lambda result: result["heads"][0]["config"].update(basis="<script>$a_$"),
        lambda result: result["heads"][0]["config"].update(lr=0),
    ],
)
def test_edited_results_of_a_sweep_are_refused(tmp_path: Path, change: Any) -> None:
    """What a sweep writes is read as it is, as by an earlier version too."""
    settings = asdict(HeadSettings())
    head = {"config": settings, "epochs": 1, "finished": True, "valid_accuracy": 0.5, "valid_loss": None}
    default = {"config": dict(settings), "mean": 0.5, "std": 0.0, "seeds": 1, "valid_accuracy": 0.5}
    best = {**default, "corrected": None, "won": "search", "merged": {"hidden": 4, "valid_accuracy": 0.5}}
    best["difference"] = {"value": 0.1, "low": -0.1, "high": 0.3, "corrected": None}
    result = {"run": "run", "set": "data", "passes": 0, "dense": 0, "choose_by": "top1", "leaks": {}, "heads": [head]}
    result |= {"best": best, "searched": {**default, "corrected": 0.4}, "default": default}
    result |= {"baselines": asdict(Baselines("pool", 0.25, None, None, None, None, 1.0)), "seconds": 1.0}
    result |= {"classes_without_validation": 0, "basis_seconds": 0.5, "retrain_seconds": 1}
    (tmp_path / "sweep.json").write_text(json.dumps(result))
    assert SweepResult.load(tmp_path).best.difference.corrected is None
    change(result)
    (tmp_path / "sweep.json").write_text(json.dumps(result))
    with pytest.raises((ValueError, ConfigError)):
        SweepResult.load(tmp_path)


def test_the_command_prints_one_object(trained: Path) -> None:
    """And in words where the page is."""
    shown = CliRunner().invoke(main, ["report", str(trained)])
    assert shown.exit_code == 0, shown.output
    assert str(trained / REPORT_FILE) in shown.stdout
    found = json.loads(CliRunner().invoke(main, ["report", str(trained), "--json"]).stdout)
    assert found.keys() == set(ReportResult.__dataclass_fields__)
    refused = CliRunner().invoke(main, ["report", str(trained.parent)])
    assert refused.exit_code == 1
    assert "holds no run.json" in refused.output


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False), (500, True)])
def test_the_page_in_a_browser(trained: Path, width: int, dark: bool) -> None:
    """No console error, no request, no scrolling sideways; a cell shows its images, a table sorts."""
    report(ReportConfig(trained))
    with browser(width, 900, dark) as page:
        page.get((trained / REPORT_FILE).as_uri())
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        hrefs = page.execute_script("return [...document.querySelectorAll('a')].map((a) => a.getAttribute('href'))")
        for link in {href.removeprefix("#") for href in hrefs}:
            page.get(f"{(trained / REPORT_FILE).as_uri()}#{link}")
            assert page.find_element("id", link).is_displayed(), link
        heads = page.find_elements("css selector", "#classes ~ .table th button")
        page.execute_script("arguments[0].click()", heads[0])
        names = page.find_elements("css selector", "#classes ~ .table tbody td:first-child")
        assert [name.get_attribute("textContent") for name in names] == sorted(CLASSES, key=int, reverse=True)
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", paper)[0]) < 128) == dark
        assert errors(page) == []
        assert {url for url in asked(page) if not url.startswith(("file:", "data:"))} == set()
