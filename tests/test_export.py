"""Leaving: one model file that predicts from image files what was trained from the cache."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import (
    CLASSES,
    REPOSITORY,
    draw_dataset,
    draw_image,
    key_of,
    logged,
    read_only,
    require_weights,
    train_config,
)
from safetensors import safe_open
from safetensors.torch import save_file

from cache.index import ImageRecord
from cache.store import FeatureCache
from cli import main
from pipeline.backbones.backbone import normalise
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.predict import find_images, predict
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, PredictConfig
from pipeline.errors import BundleError, ConfigError, DecodeError, ParityError, PipelineError, RunError, TargetExists
from pipeline.inputs.display_names import read_names
from pipeline.model.card import ModelCard
from pipeline.model.file import load_model
from pipeline.model.parity import chosen_images
from pipeline.run import Run
from pipeline.statistics.calibration import Fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, features/ and run/: AlexNet at 64 pixels on four colours."""
    require_weights("alexnet")
    root = tmp_path_factory.mktemp("trained")
    data = draw_dataset(root / "data", (90, 80))
    settings = {"backbone": "alexnet", "image_size": 64, "precision": "float32", "device": "cpu"}
    extract(ExtractConfig(data, root / "features", passes=1, **settings))  # type: ignore[arg-type]
    train_head(train_config(root / "features", root / "run", hidden=16, epochs=15, basis="pyramid+white"))
    return root


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    """The exported model of `trained`."""
    path = trained / "model.safetensors"
    names = trained / "names.json"
    names.write_text(json.dumps({"1": "red", "10": "green", "100": "blue", "rose": "not a class here"}))
    result = export(ExportConfig(trained / "run", path, names=names))
    assert result.bytes == path.stat().st_size
    assert result.parity["images"] == 8
    assert result.parity["max_abs_diff"] <= 1e-4
    assert result.parity["top1_agreement"] == 1
    return path


@pytest.mark.real
def test_the_model_file_holds_named_tensors_and_one_card(model: Path) -> None:
    """The backbone, the head, the detector and the mean image; classes in order and display names in the card."""
    with safe_open(model, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert {name for name in names if not name.startswith("backbone.features.")} == {
        "head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias", "evidence.mean", "unknown.mean",
        "unknown.projection", "unknown.variance", "unknown.class_means", "unknown.scale", "unknown.known",
    }  # fmt: skip
    assert metadata.keys() == {"headgraft"}
    card = json.loads(metadata["headgraft"])
    assert card["classes"] == list(CLASSES)
    assert card["names"] == {"1": "red", "10": "green", "100": "blue"}
    assert {"preprocessing", "backbone", "basis", "manifest", "training", "scores", "versions"} <= card.keys()


@pytest.mark.real
def test_classes_come_out_as_they_were_labelled(model: Path, trained: Path) -> None:
    """Each colour of the test split is given its own folder's name, '10' and '100' too."""
    result = predict(PredictConfig(model, (str(trained / "data" / "test"),), top_k=2))
    assert result.failed == []
    assert len(result.predictions) == 4
    for prediction in result.predictions:
        label = Path(prediction["path"]).parent.name
        top = prediction["top"]
        assert top[0]["class"] == label
        assert top[0]["name"] == {"1": "red", "10": "green", "100": "blue"}.get(label, label)
        assert top[0]["probability"] > top[1]["probability"]


@pytest.mark.real
def test_the_model_scores_as_its_run_does(model: Path, trained: Path) -> None:
    """From image files as from the cache."""
    for split in ("test", "valid"):
        from_run = evaluate(EvaluateConfig(trained / "run", split=split))
        from_model = evaluate(EvaluateConfig(model, trained / "data", split=split))
        assert from_model.top1 == from_run.top1 == 1
        assert from_model.mean_per_class == from_run.mean_per_class
    with pytest.raises(ConfigError, match="DATA"):
        evaluate(EvaluateConfig(model))


@pytest.mark.real
def test_the_library_predicts_what_the_module_computes(model: Path, trained: Path) -> None:
    """load_model().predict and as_module() agree on the same file."""

    path = next((trained / "data" / "test" / "10").iterdir())
    bundle = load_model(model)
    (prediction,) = bundle.predict([path], top_k=99)
    first, *rest = prediction.top
    assert (prediction.path, first.label, first.name) == (path, "10", "green")
    assert len(rest) == 3
    view = bundle.preprocessing.view_of(path)
    with torch.inference_mode():
        log_probs = bundle.as_module()(
            normalise(torch.from_numpy(view.copy()).permute(2, 0, 1)[None], bundle.preprocessing)
        )
    assert bundle.classes[int(log_probs.argmax())] == "10"
    assert float(log_probs.exp().max()) == pytest.approx(first.probability, abs=1e-3)


@pytest.mark.real
@pytest.mark.parametrize("wrong", ["classes", "fold", "resize", "mean"])
def test_a_model_that_differs_from_the_run_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Permuted classes, a fold that is off, other preprocessing: each is stopped and named, and no file is left."""
    from pipeline.commands import export as stage

    card, folded = stage._card, Run.folded_head

    def wrong_card(*given: Any) -> ModelCard:
        made = card(*given)
        if wrong == "resize":
            made.preprocessing["resize"] += 8
        if wrong == "mean":
            made.preprocessing["mean"] = [0.5, 0.5, 0.5]
        return replace(made, classes=made.classes[1:] + made.classes[:1]) if wrong == "classes" else made

    def wrong_fold(run: Run) -> torch.nn.Sequential:
        head = folded(run)
        if wrong == "fold":
            head.get_parameter("3.bias")[0] += 0.01
        return head

    monkeypatch.setattr(stage, "_card", wrong_card)
    monkeypatch.setattr(Run, "folded_head", wrong_fold)
    with pytest.raises(ParityError) as refused:
        export(ExportConfig(trained / "run", tmp_path / "model.safetensors"))
    assert list(tmp_path.iterdir()) == []
    if wrong in ("classes", "fold"):
        assert re.search(r"on valid/\d+/image_\d\.(jpg|png) by ", str(refused.value))


@pytest.mark.real
def test_a_model_that_depends_on_the_batch_is_not_written(trained: Path, tmp_path: Path) -> None:
    """The gate runs some images in batches of other sizes; the file would have to predict the same."""
    from pipeline.model import parity

    valid = parity.chosen_images(Run.load(trained / "run").open_cache(None).index().split("valid"))
    expected = torch.log_softmax(torch.eye(8, 4), 1)
    with pytest.raises(ParityError, match=r"\b3\b.*valid/"):
        found, what = expected + 0.002 * torch.eye(8, 4), "the model differs from itself in batches of 3"
        parity.largest_difference(found, expected, [image.path for image in valid], what, 1e-3)
    assert parity.largest_difference(expected, expected, valid, "", 1e-3) == 0


def test_rows_of_another_machine_are_compared_with_the_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference rows are computed on this machine; a stored row that belongs to another image is refused."""
    monkeypatch.setattr(FeatureCache, "provenance", lambda *_: [{"device": "cuda", "views": "device"}])
    export(ExportConfig(trained / "run", tmp_path / "model.safetensors"))
    read = FeatureCache.read
    monkeypatch.setattr(FeatureCache, "read", lambda cache, keys: np.roll(read(cache, keys), 1, axis=0))
    with pytest.raises(ParityError, match="is not what its image gives: cosine"):
        export(ExportConfig(trained / "run", tmp_path / "other.safetensors"))
    assert not (tmp_path / "other.safetensors").exists()


def predicts_the_same(script: str, file: Path, model: Path, paths: list[Path], folder: Path, tolerance: float) -> None:
    """A script that knows the description of `file` alone, in a process of its own, agrees with `model`."""
    copied = shutil.copy(REPOSITORY / "tests" / script, folder)
    command = [sys.executable, "-I", str(copied), str(file), *map(str, paths)]
    answer = json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)
    bundle = load_model(model)
    log_probs = bundle.on("cpu", "float32").log_probs(paths)
    assert answer["classes"] == list(bundle.classes)
    assert torch.allclose(torch.tensor(answer["log_probs"]), log_probs, atol=tolerance, rtol=5e-6)


@pytest.mark.real
def test_another_program_predicts_the_same(model: Path, trained: Path, tmp_path: Path) -> None:
    """From the model file, within 1e-4, class by class."""
    paths = sorted((trained / "data").rglob("*.*"))
    predicts_the_same("independent.py", model, model, paths, tmp_path, 1e-4)


@pytest.mark.real
def test_logistic_regression_is_exported(trained: Path, tmp_path: Path) -> None:
    """A head without a hidden layer passes the gate, also as ONNX, and another program predicts the same."""
    settings = {"hidden": 0, "epochs": 15, "basis": "pyramid+white", "class_weights": "balanced"}
    train_head(train_config(trained / "features", tmp_path / "run", **settings))
    with_onnx = importlib.util.find_spec("onnxscript") and importlib.util.find_spec("onnxruntime")
    file, graph = tmp_path / "m.safetensors", tmp_path / "m.onnx" if with_onnx else None
    assert export(ExportConfig(tmp_path / "run", file, onnx=graph)).parity["top1_agreement"] == 1
    with safe_open(file, "pt") as opened:
        assert {name for name in opened.keys() if name.startswith("head.")} == {"head.0.weight", "head.0.bias"}  # noqa: SIM118
    assert "then Linear(9216, 4), LogSoftmax" in CliRunner().invoke(main, ["model", "info", str(file)]).stdout
    predicts_the_same("independent.py", file, file, sorted((trained / "data" / "test").rglob("*.*")), tmp_path, 1e-4)


@pytest.mark.real
def test_onnx_predicts_what_the_model_does(trained: Path, tmp_path: Path) -> None:
    """One file, any batch, classes and preprocessing in its metadata; a difference leaves neither file."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file, graph = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    result = export(ExportConfig(trained / "run", file, onnx=graph, sets=0.5))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "m.onnx", tmp_path / "m.safetensors"]
    assert result.onnx["max_abs_diff"] <= 1e-3
    session = runtime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    stated = session.get_modelmeta().custom_metadata_map
    assert json.loads(stated["classes"]) == list(CLASSES)
    assert json.loads(stated["preprocessing"])["input_size"] == 64
    card = json.loads(stated["headgraft"])
    assert (len(card["sets"]["least"]), card["unknown"]["images"], card["rejection"]) == (4, 12, None)
    description = session.get_modelmeta().description
    for part in (
        "images: float32 (N, 3, 64, 64)",
        "RGB",
        "73 pixels",
        "crop of 64",
        "divided by 255",
        "0.485",
        "0.229",
    ):
        assert part in description
    wide = draw_image(tmp_path / "wide.png", 5, size=(151, 83))
    tall = draw_image(tmp_path / "tall.jpg", 6, size=(70, 131))
    paths = [wide, tall, *sorted((trained / "data" / "test").rglob("*.*"))]
    predicts_the_same("independent_onnx.py", graph, file, paths, tmp_path, 1e-3)
    module = load_model(file).as_module()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
        (found,) = session.run(["log_probs"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(found), module(images), atol=1e-3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.model.onnx.TOLERANCE", -1.0)
        with pytest.raises(ParityError, match=r"ONNX.*image_\d"):
            export(ExportConfig(trained / "run", tmp_path / "n.safetensors", onnx=tmp_path / "n.onnx"))
        patch.setattr("pipeline.model.onnx.find_spec", lambda _: None)
        with pytest.raises(PipelineError, match=r"'\.\[onnx\]'"):
            export(ExportConfig(trained / "run", tmp_path / "n.safetensors", onnx=tmp_path / "n.onnx"))
    assert not list(tmp_path.glob("n.*"))


@pytest.mark.real
def test_a_model_without_its_backbone_opens_where_the_weights_are(
    model: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And predicts the same; elsewhere it says what it looked for."""
    alone = tmp_path / "head.safetensors"
    export(ExportConfig(trained / "run", alone, without_backbone=True))
    assert alone.stat().st_size < model.stat().st_size / 5
    image = next((trained / "data" / "valid").rglob("*.png"))
    found, expected = (load_model(file).predict(image)[0].top for file in (alone, model))
    assert [score.probability for score in found] == pytest.approx([score.probability for score in expected], abs=1e-6)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("HEADGRAFT_OFFLINE", "1")
    with pytest.raises(BundleError, match=r"holds the head alone, without alexnet .* no weights IMAGENET1K_V1"):
        load_model(alone)


@pytest.mark.real
def test_a_model_without_the_backbone_of_a_file_opens_beside_that_file(
    model: Path, trained: Path, tmp_path: Path
) -> None:
    """The gate reads the file where it was; whoever gets the model puts it beside, and is told so."""
    weights, data = tmp_path / "there" / "mine.safetensors", trained / "data"
    weights.parent.mkdir()
    save_file(load_model(model).backbone_tensors, weights)
    settings = {"backbone": "alexnet", "image_size": 64, "precision": "float32", "device": "cpu"}
    extract(ExtractConfig(data, tmp_path / "features", weights=str(weights), **settings))  # type: ignore[arg-type]
    train_head(train_config(tmp_path / "features", tmp_path / "run", hidden=16, epochs=3, basis="pool"))
    alone = tmp_path / "head.safetensors"
    export(ExportConfig(tmp_path / "run", alone, without_backbone=True))
    with pytest.raises(BundleError, match=rf"put its weights file at {tmp_path}/mine\.safetensors or "):
        load_model(alone)
    weights.rename(tmp_path / "mine.safetensors")
    assert load_model(alone).predict(next((data / "valid").rglob("*.png")))


@pytest.mark.real
def test_a_retrained_head_passes_the_gate_at_the_temperature_of_the_one_before(trained: Path, tmp_path: Path) -> None:
    """The card says so, and its scores are of the head before."""
    results = []
    for name, refit in (("before", False), ("after", True)):
        asked = train_config(trained / "features", tmp_path / name, hidden=16, epochs=1, lr=1e-3, refit=refit)
        train_head(asked)
        results.append(export(ExportConfig(tmp_path / name, tmp_path / f"{name}.safetensors")))
    before, after = results
    assert after.calibration.temperature == pytest.approx(before.calibration.temperature, rel=1e-4)
    assert after.parity["max_abs_diff"] <= 1e-4
    cards = [load_model(tmp_path / f"{name}.safetensors").card for name in ("before", "after")]
    assert [card.refit for card in cards] == [False, True]
    assert cards[0].scores.valid_accuracy == cards[1].scores.valid_accuracy


def test_no_path_of_this_machine_is_in_a_model(model: Path, trained: Path) -> None:
    """Neither of the images nor of cache and run."""
    assert str(trained).encode() not in model.read_bytes()


@pytest.mark.real
def test_a_temperature_is_folded_into_the_last_layer(trained: Path, tmp_path: Path) -> None:
    """The same classes, other confidence: log-probabilities are those of the run over the temperature."""
    from pipeline.model import calibrating as stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "calibrate", lambda *_: Fit(0.1, 0.01, 2.5, 0.05, 0.02))
        hot = export(ExportConfig(trained / "run", tmp_path / "hot.safetensors"))
    cold = export(ExportConfig(trained / "run", tmp_path / "cold.safetensors", calibrate=False))
    assert (hot.calibration.temperature, cold.calibration.temperature) == (2.5, 1.0)
    assert (hot.calibration.ece, hot.calibration.floor) == ({"valid": (0.1, 0.05)}, {"valid": (0.01, 0.02)})
    assert hot.parity["max_abs_diff"] <= 1e-4
    paths = sorted((trained / "data" / "test").rglob("*.*"))
    one, other = (load_model(tmp_path / f"{name}.safetensors") for name in ("hot", "cold"))
    found, expected = (bundle.on("cpu", "float32").log_probs(paths) for bundle in (one, other))
    assert torch.allclose(found, torch.log_softmax(expected / 2.5, 1), atol=1e-4)
    assert one.card.calibration.temperature == 2.5


@pytest.mark.real
def test_export_scores_test_images_only_when_it_is_asked_to(trained: Path, tmp_path: Path) -> None:
    """And records that; a set without them is refused."""
    before = Run.load(trained / "run").record.scored
    export(ExportConfig(trained / "run", tmp_path / "plain.safetensors"))
    assert Run.load(trained / "run").record.scored == before
    asked = export(ExportConfig(trained / "run", tmp_path / "test.safetensors", test=True))
    (one,) = Run.load(trained / "run").record.scored[len(before) :]
    assert (one["split"], one["images"]) == ("test", 4)
    assert asked.calibration.ece["test"][0] == pytest.approx(one["ece"])
    assert asked.calibration.floor["test"][0] == pytest.approx(one["ece_floor"])
    scored = load_model(tmp_path / "test.safetensors").card.scores.evaluations
    assert len(scored) == len(before) + 1
    for option in ({"test": True}, {"tta": "flip"}):
        with pytest.raises(ConfigError, match="--no-calibrate"):
            ExportConfig(trained / "run", tmp_path / "m", calibrate=False, **option)


@pytest.mark.real
def test_a_mirrored_look_has_a_temperature_of_its_own(trained: Path, tmp_path: Path) -> None:
    """Fitted on validation images seen both ways, used by predict and evaluate; a model without one is said."""
    from pipeline.model import calibrating as stage

    asked: list[torch.Tensor] = []

    def fit(log_probs: torch.Tensor, *_: Any) -> Fit:
        asked.append(log_probs)
        return Fit(0.1, 0.01, 1.0 if len(asked) == 1 else 0.5, 0.05, 0.02)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "calibrate", fit)
        export(ExportConfig(trained / "run", tmp_path / "flip.safetensors", tta="flip"))
        asked.clear()
        export(ExportConfig(trained / "run", tmp_path / "plain.safetensors"))
    own, none = (load_model(tmp_path / f"{name}.safetensors") for name in ("flip", "plain"))
    assert [one.card.calibration.flip_temperature for one in (own, none)] == [0.5, None]
    assert own.card.calibration.ece.keys() == {"valid", "valid_flip"}
    paths = sorted((trained / "data" / "valid").rglob("*.*"))
    predictors = [one.on("cpu", "float32") for one in (own, none)]
    both, averaged = (one.log_probs(paths, mirrored=True) for one in predictors)
    assert torch.allclose(both, torch.log_softmax(averaged / 0.5, 1), atol=1e-5)
    assert torch.equal(*(one.log_probs(paths) for one in predictors))
    for name, said in (("flip", 0), ("plain", 1)):
        lines: list[str] = []
        logged(lines, predict, PredictConfig(tmp_path / f"{name}.safetensors", (str(paths[0]),), tta="flip"))
        logged(lines, evaluate, EvaluateConfig(tmp_path / f"{name}.safetensors", trained / "data", tta="flip"))
        assert sum("no temperature for --tta flip" in line for line in lines) == 2 * said


@pytest.mark.real
def test_a_mirrored_look_is_the_mean_of_both(model: Path, trained: Path) -> None:
    """--tta flip averages probabilities, so that a picture and its mirror image are the same to it."""
    predictor = load_model(model).on("cpu", "float32")
    paths = sorted((trained / "data" / "test").rglob("*.*"))
    plain, both = (predictor.log_probs(paths, mirrored=flip) for flip in (False, True))
    assert torch.allclose(both.exp().sum(1), torch.ones(len(paths)), atol=1e-5)
    assert not torch.equal(plain, both)
    assert predict(PredictConfig(model, (str(paths[0]),), tta="flip")).predictions[0]["top"][0][
        "probability"
    ] == pytest.approx(float(both[0].exp().max()), abs=1e-5)


@pytest.mark.real
def test_model_info_is_a_card(model: Path, tmp_path: Path) -> None:
    """In words, as JSON, or as a Markdown file that is not overwritten unasked."""
    shown = CliRunner().invoke(main, ["model", "info", str(model)])
    assert shown.exit_code == 0, shown.output
    for part in ("# model.safetensors", "4 classes", "Linear(9216, 16)", "pyramid+white", "## How good it is", "red"):
        assert part in shown.stdout
    found = json.loads(CliRunner().invoke(main, ["model", "info", str(model), "--json"]).stdout)
    assert found["classes"] == list(CLASSES)
    card = tmp_path / "card.md"
    for code in (0, 1):
        assert CliRunner().invoke(main, ["model", "info", str(model), "--card", str(card)]).exit_code == code
    assert card.read_text().rstrip("\n") == shown.stdout.rstrip("\n")


@pytest.mark.real
def test_predictions_as_a_table(model: Path, trained: Path, tmp_path: Path) -> None:
    """--csv has a line for each class; what failed is said apart; a list may come on standard input."""
    (tmp_path / "bad.jpg").write_bytes(b"text")
    paths = [*map(str, sorted((trained / "data" / "test").rglob("*.*"))), str(tmp_path / "bad.jpg")]
    arguments = ["predict", str(model), "-", "--csv", "--top-k", "2"]
    done = CliRunner().invoke(main, arguments, input="\n".join(paths) + "\n\n")
    assert done.exit_code == 1
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["path"] for row in rows[::2]] == paths[:-1]
    assert [row["rank"] for row in rows] == ["1", "2"] * 4
    assert all(float(a["probability"]) >= float(b["probability"]) for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert "bad.jpg" in done.stderr
    refused = CliRunner().invoke(main, [*arguments, "--json"], input="")
    assert refused.exit_code == 2


@pytest.mark.real
def test_an_existing_model_is_refused_unless_overwritten(model: Path, trained: Path) -> None:
    """And left as it was."""
    before = model.read_bytes()
    with pytest.raises(TargetExists):
        export(ExportConfig(trained / "run", model))
    assert model.read_bytes() == before


@pytest.mark.real
def test_images_that_the_gate_needs_must_be_there_and_unchanged(trained: Path, tmp_path: Path) -> None:
    """A folder without them, or with another image, is refused and names --data or the file."""
    looks = Run.load(trained / "run").record.scored
    with pytest.raises(RunError, match="--data"):
        export(ExportConfig(trained / "run", tmp_path / "m.safetensors", data=tmp_path))
    assert Run.load(trained / "run").record.scored == looks  # nothing was shown of the test images
    shutil.copytree(trained / "data", tmp_path / "data")
    draw_image(tmp_path / "data" / "valid" / "1" / "image_0.jpg", 900)
    with pytest.raises(RunError, match=r"image_0\.jpg"):
        export(ExportConfig(trained / "run", tmp_path / "m.safetensors", data=tmp_path / "data"))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.real
def test_predict_prints_one_object_and_lists_what_failed(model: Path, trained: Path, tmp_path: Path) -> None:
    """A damaged file is in `failed` with its reason, the others are predicted, and the exit status is 1."""
    (tmp_path / "bad.jpg").write_bytes(b"text")
    good = next((trained / "data" / "test" / "2").iterdir())
    result = CliRunner().invoke(main, ["predict", str(model), str(good), str(tmp_path / "bad.jpg"), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found.keys() == {"precision", "predictions", "failed", "seconds", "images_per_second", "unread", "drift"}
    assert found["predictions"][0]["top"][0].keys() == {"label", "class", "name", "probability"}
    assert found["failed"] == [{"path": str(tmp_path / "bad.jpg"), "reason": found["failed"][0]["reason"]}]
    with pytest.raises(DecodeError, match=r"bad\.jpg"):
        load_model(model).predict([tmp_path / "bad.jpg"])


@pytest.mark.real
def test_too_few_images_for_a_rate_of_false_alarms_are_said(trained: Path, tmp_path: Path) -> None:
    """Of 12 images no p-value is below 1 %; with the rate that the warning names, one can be."""
    lines: list[str] = []
    logged(lines, export, ExportConfig(trained / "run", tmp_path / "m.safetensors"))
    (line,) = [line for line in lines if "--false-alarms" in line]
    rate = float(re.findall(r"--false-alarms (\S+)", line)[0])
    assert 1 / 13 < rate < 0.09
    lines.clear()
    logged(lines, export, ExportConfig(trained / "run", tmp_path / "n.safetensors", false_alarms=rate))
    assert not any("--false-alarms" in line for line in lines)


@pytest.mark.real
def test_export_prints_one_object(trained: Path, tmp_path: Path) -> None:
    """With the stated fields."""
    result = CliRunner().invoke(main, ["export", str(trained / "run"), str(tmp_path / "m.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.keys() == {
        "model", "bytes", "parity", "calibration", "onnx", "class_prior", "rejection", "unknown", "sets"
    }  # fmt: skip
    assert {"images", "precision", "max_abs_diff", "top1_agreement"} <= found["parity"].keys()
    assert found["parity"]["batch_sizes"] == [8, 1, 3]
    assert found["parity"]["float32_top1_agreement"] == 1
    assert found["calibration"].keys() == {"temperature", "ece", "floor", "flip_temperature"}


@pytest.mark.real
def test_a_model_of_a_read_only_run_is_exported(trained: Path, tmp_path: Path) -> None:
    """The model is there and the status 0; one line says that the run does not record the test evaluation."""
    before = (trained / "run" / "run.json").read_bytes()
    with read_only(trained / "run"):
        command = ["export", str(trained / "run"), str(tmp_path / "m.safetensors"), "--test", "--json"]
        result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == (tmp_path / "m.safetensors").stat().st_size
    assert f"{trained / 'run'} does not record this evaluation: Read-only file system\n" in result.stderr
    assert (trained / "run" / "run.json").read_bytes() == before


def test_data_of_other_classes_is_not_scored(model: Path, tmp_path: Path) -> None:
    """A model is scored on classes it knows."""
    for split in ("train", "test"):
        draw_image(tmp_path / "roses" / split / "rose" / "a.png", 1)
    with pytest.raises(PipelineError, match="'rose'"):
        evaluate(EvaluateConfig(model, tmp_path / "roses"))


@pytest.mark.real
def test_new_images_need_no_training_images_beside_them(model: Path, trained: Path, tmp_path: Path) -> None:
    """A folder with test/ alone is scored."""
    shutil.copytree(trained / "data" / "test", tmp_path / "new" / "test")
    assert evaluate(EvaluateConfig(model, tmp_path / "new")) == evaluate(EvaluateConfig(model, trained / "data"))


@pytest.mark.real
def test_a_model_and_its_onnx_file_are_two_files(trained: Path, tmp_path: Path) -> None:
    """Said before anything is computed."""
    with pytest.raises(ConfigError, match="--onnx"):
        export(ExportConfig(trained / "run", tmp_path / "m", onnx=tmp_path / "m"))


def test_an_empty_list_on_standard_input_is_said() -> None:
    """Rather than to predict nothing."""
    found = CliRunner().invoke(main, ["predict", str(REPOSITORY / "tests/data/model-1.safetensors"), "-"], input="")
    assert found.exit_code == 1


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """A text, a safetensors file without our card, a card of another format, a folder, nothing."""
    (tmp_path / "text.safetensors").write_text("text")
    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"headgraft": '{"format": 99}'})
    save_file({"x": torch.zeros(1)}, tmp_path / "list.safetensors", {"headgraft": "[]"})
    (tmp_path / "folder").mkdir()
    for name in ("text.safetensors", "bare.safetensors", "other.safetensors", "list.safetensors", "folder", "none"):
        with pytest.raises(BundleError):
            load_model(tmp_path / name)


def test_parity_takes_every_class_and_at_most_200_or_one_each() -> None:
    """Seeded: the same choice each time; all images where there are few."""

    def records(classes: int, each: int) -> tuple[ImageRecord, ...]:
        return tuple(
            ImageRecord(f"valid/{c}/{n}.jpg", key_of(c * 1000 + n)[0].hex(), str(c), "valid", 1, 1)
            for c in range(classes)
            for n in range(each)
        )

    many = chosen_images(records(102, 8))
    assert len(many) == len({image.path for image in many}) == 200
    assert len({image.label for image in many}) == 102
    assert chosen_images(records(102, 8)) == many
    assert len(chosen_images(records(250, 2))) == 250
    assert len(chosen_images(records(3, 2))) == 6


def test_images_are_files_folders_and_globs(tmp_path: Path) -> None:
    """Each in its order; what matches nothing is listed apart."""
    for name in ("a.png", "b.png", "sub/c.jpg"):
        draw_image(tmp_path / name, 1)
    (tmp_path / "notes.txt").write_text("x")
    nothing = str(tmp_path / "*.gif")
    found, failed, unread = find_images((str(tmp_path / "b.png"), nothing, str(tmp_path), str(tmp_path / "*.png")))
    assert [p.name for p in found] == ["b.png", "a.png", "b.png", "c.jpg", "a.png", "b.png"]
    assert failed == [{"path": nothing, "reason": "does not exist, and matches no file"}]
    assert unread == {".txt": 1}


def test_hidden_images_in_a_folder_are_not_predicted(tmp_path: Path) -> None:
    """As they are ignored when a data set is scanned."""
    for name in ("a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        draw_image(tmp_path / "images" / name, 1)
    assert [path.name for path in find_images((str(tmp_path / "images"),))[0]] == ["a.png"]


@pytest.mark.parametrize("content", ["", "[]", '{"1": 2}', "{", "[" * 100_000])
def test_names_that_are_no_object_of_texts_are_refused(tmp_path: Path, content: str) -> None:
    """And a file that is not there."""
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(PipelineError, match=r"names\.json"):
        read_names(tmp_path / "names.json", ("1",))
    with pytest.raises(PipelineError, match=r"none\.json"):
        read_names(tmp_path / "none.json", ("1",))
