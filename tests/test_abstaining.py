"""Models that do not answer what they are not sure of, or have never seen: from export to predict and evaluate."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import COLOURS, build_tiny, heard, tiny_tensors, train_config
from PIL import Image
from safetensors.torch import save_file

from cache.store import FeatureCache
from cli import main
from pipeline.backbones.catalog import BACKBONES
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.trunk import layer_with_cells
from pipeline.backbones.weights import NamedWeights
from pipeline.commands.cv import cv
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import ExportResult, export
from pipeline.commands.extract import extract
from pipeline.commands.predict import as_csv, predict
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.folds import CvConfig
from pipeline.config.heads import SweepConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, PredictConfig
from pipeline.errors import BundleError, ConfigError, PipelineError
from pipeline.model.file import load_model, write_bundle
from pipeline.model.parity_worker import answer
from pipeline.run import Run
from pipeline.run_folder import JOURNAL_FILE
from pipeline.statistics.calibration import calibrate
from pipeline.unknown.detector import pooled

COUNTS = {"train": 80, "valid": 10, "test": 40}


def draw(path: Path, colour: tuple[int, int, int], generator: np.random.Generator) -> None:
    """A picture of about that colour: classes overlap a little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(colour) + generator.normal(0, 58, 3) + generator.integers(-20, 21, (40, 40, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data/, features/, run/ and unknown/: stripes, which no class has."""
    root, generator = tmp_path_factory.mktemp("abstaining"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", BackboneSpec(build_tiny, NamedWeights("tiny", "NONE", None)))
        patch.setattr("pipeline.model.parity._ask_fresh_process", lambda asked: json.loads(json.dumps(answer(asked))))
        save_file(tiny_tensors(), root / "tiny.safetensors")
        for split, count in COUNTS.items():
            for label, colour in COLOURS.items():
                for number in range(count):
                    draw(root / "data" / split / label / f"{number}.png", colour, generator)
        for number in range(30):
            pixels = np.where(np.arange(40)[:, None, None] // 2 % 2, 255, 0) + np.zeros((40, 40, 3))
            pixels[0, 0] = number
            (root / "unknown").mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / "unknown" / f"{number}.png")
        options: Any = {"backbone": "tiny", "weights": str(root / "tiny.safetensors"), "image_size": 32}
        extract(ExtractConfig(root / "data", root / "features", precision="float32", device="cpu", **options))
        train_head(train_config(root / "features", root / "run", epochs=20))
        yield root


@pytest.fixture(scope="module")
def exported(made: Path) -> ExportResult:
    """What export says of made/model.safetensors."""
    return export(ExportConfig(made / "run", made / "model.safetensors", max_error=0.1, sets=0.9, false_alarms=0.02))


def test_export_says_what_it_promises(exported: ExportResult) -> None:
    """By training images that the heads of other folds predict, 80 of each class; and what the detector is worth."""
    rejection, unknown = exported.rejection, exported.unknown
    assert (rejection["max_error"], rejection["confidence"], rejection["images"]) == (0.1, 0.95, 320)
    assert 0 < rejection["threshold"] < 1
    assert rejection["wrong"] / rejection["answered"] < 0.1
    assert rejection["answered"] > 200
    assert unknown["images"] == 320
    assert unknown["false_alarms"] == 0.02
    assert unknown["auroc_left_out"] > 0.6
    assert exported.sets["coverage"] == 0.9
    assert 1 <= exported.sets["mean_size"] < 2
    assert "at most 10% wrong with 95% confidence" in exported.in_words()


def test_unknown_images_are_not_answered_and_known_ones_are(made: Path, exported: ExportResult) -> None:
    """With the reason; p-values of known test images are as even as promised."""
    known = predict(PredictConfig(made / "model.safetensors", (str(made / "data" / "test"),)))
    p_values = np.array([one["unknown_p"] for one in known.predictions])
    assert np.mean(p_values < 0.02) <= 0.06
    assert np.mean(p_values < 0.5) == pytest.approx(0.5, abs=0.12)
    assert np.mean([one["answered"] for one in known.predictions]) > 0.6
    assert known.drift is not None
    assert known.drift.interval[0] < 0.1
    others = predict(PredictConfig(made / "model.safetensors", (str(made / "unknown"),)))
    assert not any(one["answered"] for one in others.predictions)
    assert {one["reason"] for one in others.predictions} == {"probably none of the 4 classes"}
    assert "probably none of the 4 classes" in others.in_words()
    assert others.drift is not None
    assert others.drift.unlike > 0.9


def test_a_prediction_is_the_same_in_every_way_out(made: Path, exported: ExportResult) -> None:
    """JSON, CSV, the library; sets hold the top class, and all that are as probable as their thresholds."""
    found = predict(PredictConfig(made / "model.safetensors", (str(made / "data" / "test"),)))
    table = list(csv.DictReader(io.StringIO(as_csv(found.predictions))))
    bundle = load_model(made / "model.safetensors")
    assert bundle.card.sets is not None
    least = dict(zip(bundle.classes, bundle.card.sets.least, strict=True))
    for number, one in enumerate(found.predictions):
        line = table[4 * number]
        assert line["answered"] == str(one["answered"]).lower()
        assert float(line["unknown_p"]) == pytest.approx(one["unknown_p"], rel=1e-4)
        assert line["set"].split(";") == one["set"]
        expected = {top["label"] for top in one["top"] if top["probability"] >= least[top["label"]]}
        assert set(one["set"]) == expected | {one["top"][0]["label"]}
        here = bundle.predict(one["path"])[0]
        assert (here.answered, list(here.set or ())) == (one["answered"], one["set"])


def test_evaluation_counts_what_is_answered(made: Path, exported: ExportResult) -> None:
    """Of a model with its threshold; of a run, which has none, the curve alone."""
    model = evaluate(EvaluateConfig(made / "model.safetensors", made / "data"))
    assert model.answered is not None
    assert model.answered.error is not None
    assert model.answered.coverage < 1
    assert model.answered.error <= 1 - model.top1
    assert model.answered.promised == 0.1
    assert "answered:" in model.in_words()
    run = evaluate(EvaluateConfig(made / "run"))
    assert run.answered is None
    assert run.risk_coverage[-1] == pytest.approx([1.0, 1 - run.top1])
    assert run.sets is None
    assert model.sets is not None
    assert model.sets.coverage > 0.85
    assert 0 < run.aurc < 1 - run.top1


def test_evidence_is_drawn_for_each_image(made: Path, exported: ExportResult, tmp_path: Path) -> None:
    """One picture each, in a new folder; numbers add up to the difference of the logits."""
    given = PredictConfig(made / "model.safetensors", (str(made / "data" / "test" / "1"),), explain=tmp_path / "why")
    found = predict(given)
    assert len(list((tmp_path / "why").iterdir())) == 40
    for one in found.predictions:
        evidence = one["evidence"]
        assert np.sum(evidence["cells"]) + evidence["constant"] == pytest.approx(evidence["total"], abs=1e-6)
        top = one["top"]
        assert [evidence["class"], evidence["against"]] == [top[0]["label"], top[1]["label"]]
        ratio = np.log(top[0]["probability"]) - np.log(top[1]["probability"])
        assert evidence["total"] == pytest.approx(ratio, abs=1e-3)
        with Image.open(evidence["picture"]) as picture:
            assert picture.size == (448, 448 + 4 * 20 + 8)  # a line says whether the model answers
    with pytest.raises(ConfigError, match="a folder with files"):
        predict(given)


def test_drift_is_drawn(made: Path, exported: ExportResult, tmp_path: Path) -> None:
    """As a file; a warning says so where images are unlike the training ones."""
    lines: list[str] = []
    with heard(lines.append):
        images = (str(made / "unknown"),)
        predict(PredictConfig(made / "model.safetensors", images, drift=tmp_path / "drift.svg"))
    assert (tmp_path / "drift.svg").read_text().startswith("<svg")
    assert any("unlike the training images" in line for line in lines)


def test_the_promise_is_not_for_averaged_probabilities(made: Path, exported: ExportResult) -> None:
    """`--tta flip` says so, and gives the p-values of the pictures as they are."""
    lines: list[str] = []
    images = (str(made / "data" / "test" / "1"),)
    with heard(lines.append):
        mirrored = predict(PredictConfig(made / "model.safetensors", images, tta="flip"))
    assert any("without --tta flip" in line for line in lines)
    plain = predict(PredictConfig(made / "model.safetensors", images))
    assert [one["unknown_p"] for one in mirrored.predictions] == [one["unknown_p"] for one in plain.predictions]


def test_what_cannot_be_promised_is_not(made: Path, tmp_path: Path) -> None:
    """The model is written without a threshold, and says how many images would do."""
    found = export(ExportConfig(made / "run", tmp_path / "m.safetensors", max_error=0.001, unknown=False))
    assert found.rejection["images_needed"] == 2995
    assert found.unknown == {}
    assert "no threshold: 2,995 answered images" in found.in_words()
    card = load_model(tmp_path / "m.safetensors").card
    assert (card.rejection, card.unknown) == (None, None)
    one = predict(PredictConfig(tmp_path / "m.safetensors", (str(made / "unknown" / "1.png"),))).predictions[0]
    assert (one["answered"], one["unknown_p"]) == (True, None)
    assert "set" not in one
    with pytest.raises(ConfigError, match="--drift"):
        predict(PredictConfig(tmp_path / "m.safetensors", (str(made / "unknown"),), drift=tmp_path / "drift.svg"))


def test_images_that_chose_a_head_promise_nothing(made: Path, tmp_path: Path) -> None:
    """Of a choice over folds; nested cross-validation of the same search leaves predictions that do."""
    settings: Any = {"heads": 2, "epochs": 5, "seeds": 1}
    sweep(SweepConfig(made / "features", tmp_path / "run", folds=3, **settings))
    found = export(ExportConfig(tmp_path / "run", tmp_path / "m.safetensors", max_error=0.1, sets=0.9))
    assert "cv --heads 2" in found.rejection["reason"]
    assert "no threshold and no sets: the images of this run chose" in found.in_words()
    assert found.unknown["images"] == 360
    (tmp_path / "space.toml").write_text('class_weights = ["none", "balanced"]')
    others: list[tuple[dict[str, Any], str]] = [
        ({}, "are of one head"),
        ({"heads": 2, "choose_by": "mean-per-class"}, "--choose-by (mean-per-class) than this run's (top1)"),
        ({"heads": 2, "space": tmp_path / "space.toml"}, "another --space"),
    ]
    for number, (options, reason) in enumerate(others):
        cv(CvConfig(made / "features", folds=3, epochs=5, **options))
        found = export(ExportConfig(tmp_path / "run", tmp_path / f"{number}.safetensors", max_error=0.1))
        assert reason in found.rejection["reason"]
    cv(CvConfig(made / "features", folds=3, heads=2, epochs=5))
    found = export(ExportConfig(tmp_path / "run", tmp_path / "n.safetensors", max_error=0.1))
    assert found.rejection["images"] == 360
    (tmp_path / "run" / JOURNAL_FILE).unlink()
    found = export(ExportConfig(tmp_path / "run", tmp_path / "o.safetensors", max_error=0.1))
    assert f"has no {JOURNAL_FILE}" in found.rejection["reason"]


def test_a_temperature_of_few_images_makes_no_known_image_unlike(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the validation images say: p-values of known images are as even, and as many are answered."""
    answered = []
    for temperature in (1.0, 3.0):
        monkeypatch.setattr(
            "pipeline.model.calibrating.calibrate",
            lambda *_, fixed=temperature: replace(calibrate(*_), temperature=fixed),
        )
        model = tmp_path / f"{temperature}.safetensors"
        found = export(ExportConfig(made / "run", model, max_error=0.2))
        known = predict(PredictConfig(model, (str(made / "data" / "test"),)))
        assert found.calibration.temperature == temperature
        assert known.drift is not None
        assert known.drift.unlike < 0.25
        share = sum(one["answered"] for one in known.predictions) / len(known.predictions)
        assert share == pytest.approx(found.rejection["answered"] / found.rejection["images"], abs=0.12)
        answered.append(share)
    assert answered[0] == pytest.approx(answered[1], abs=0.03)


def test_one_image_of_each_group_counts(made: Path, tmp_path: Path) -> None:
    """For the threshold, sets and p-values: pairs of frames are half as much evidence, and the card says how much."""
    lines = ["path,label,split,group"]
    for label in COLOURS:
        for split in ("train", "valid"):
            paths = sorted((made / "data" / split / label).iterdir())
            lines += [f"{path},{label},{split},{split}-{label}-{n // 2}" for n, path in enumerate(paths)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    options: Any = {"backbone": "tiny", "weights": str(made / "tiny.safetensors"), "image_size": 32}
    extract(ExtractConfig(tmp_path / "pairs.csv", tmp_path / "pairs", precision="float32", device="cpu", **options))
    train_head(train_config(tmp_path / "pairs", tmp_path / "run", epochs=10))
    found = export(ExportConfig(tmp_path / "run", tmp_path / "m.safetensors", max_error=0.3, sets=0.8))
    assert (found.unknown["images"], found.rejection["images"]) == (160, 160)
    assert 0 < found.sets["images"] < 160
    detector = load_model(tmp_path / "m.safetensors").detector
    assert detector is not None
    assert len(detector.known) == 160


def test_a_basis_that_parts_of_the_images_cannot_have_costs_the_detector_alone(made: Path, tmp_path: Path) -> None:
    """As more principal directions than such a part has rows: the model is written, and a promise is refused."""
    lines = ["path,label,split"]
    for label in COLOURS:
        for split, count in (("train", 3), ("valid", 2)):
            lines += [f"{made / 'data' / split / label / f'{number}.png'},{label},{split}" for number in range(count)]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    options: Any = {"backbone": "tiny", "weights": str(made / "tiny.safetensors"), "image_size": 32}
    extract(ExtractConfig(tmp_path / "few.csv", tmp_path / "few", precision="float32", device="cpu", **options))
    train_head(train_config(tmp_path / "few", tmp_path / "run", basis="full+pca:11"))
    found = export(ExportConfig(tmp_path / "run", tmp_path / "m.safetensors"))
    assert "pca" in found.unknown["reason"]
    assert load_model(tmp_path / "m.safetensors").detector is None
    with pytest.raises(PipelineError, match="pca"):
        export(ExportConfig(tmp_path / "run", tmp_path / "n.safetensors", max_error=0.5))


def test_merged_heads_are_merged_in_each_fold(made: Path, tmp_path: Path) -> None:
    """The run says of how many heads it is, and each fold has as many, plus three that lack a class."""
    settings: Any = {"heads": 1, "epochs": 5, "seeds": 2, "merge": True}
    sweep(SweepConfig(made / "features", tmp_path / "run", **settings))
    assert Run.load(tmp_path / "run").record.merged == 2
    lines: list[str] = []
    with heard(lines.append):
        export(ExportConfig(tmp_path / "run", tmp_path / "m.safetensors"))
    assert any("training 13 heads" in line for line in lines)


def test_detector_of_the_file_is_that_of_the_cache(made: Path, exported: ExportResult) -> None:
    """p-values of image files are those of the rows in the cache, to the rounding of these."""
    bundle, cache = load_model(made / "model.safetensors"), FeatureCache.open(made / "features")
    assert bundle.detector is not None
    images = cache.index().split("test")
    rows = torch.from_numpy(cache.read([(image.key, "pass:0") for image in images]).astype(np.float32))
    expected = bundle.detector.p_values(pooled(bundle.layout, rows), bundle.head(rows))
    found = bundle.on("cpu").outputs([made / "data" / image.path for image in images]).p_values
    assert found is not None
    assert (found - expected).abs().max() <= 0.02


def test_damaged_detectors_are_refused(made: Path, exported: ExportResult, tmp_path: Path) -> None:
    """A detector of other rows, or none where the card names one."""
    bundle = load_model(made / "model.safetensors")
    assert bundle.detector is not None
    card = {**asdict(bundle.card), "digest": ""}
    path = tmp_path / "m.safetensors"
    write_bundle(path, bundle.backbone_tensors, bundle.head, card)
    with pytest.raises(BundleError, match="detector"):
        load_model(path)
    wide = replace(bundle.detector, distance=replace(bundle.detector.distance, mean=torch.zeros(9)))
    write_bundle(path, bundle.backbone_tensors, bundle.head, card, wide)
    with pytest.raises(BundleError, match="shapes"):
        load_model(path)


def test_options_that_say_nothing_are_refused(made: Path) -> None:
    """A confidence without an error, a rate of false alarms without a detector."""
    for options, message in (
        ({"confidence": 0.9}, "--max-error"),
        ({"unknown": False, "false_alarms": 0.1}, "detector"),
    ):
        with pytest.raises(ConfigError, match=message):
            ExportConfig(made / "run", made / "x.safetensors", **options)  # type: ignore[arg-type]
    found = CliRunner().invoke(main, ["export", str(made / "run"), "x.safetensors", "--max-error", "1.5"])
    assert found.exit_code == 2


def test_backbones_without_cells_name_the_layer_that_has_some() -> None:
    """Of those whose classifier sees a vector; no other layer of VGG16 has them."""
    assert layer_with_cells("mobilenet_v2", 224) == "map"
    assert layer_with_cells("vit_b_16", 224) == "tokens"
    assert layer_with_cells("vgg16", 224) is None
