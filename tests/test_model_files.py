"""Files of tensors that someone crafted: refused in one sentence, nothing run, nothing written."""

import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import REPOSITORY, Extract, Times, draw_image, register_tiny, some_base, tiny_tensors, train_config
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cache.errors import HeadgraftError
from cache.manifest import Manifest
from cli import main
from pipeline.backbones.weights import load_weights_file
from pipeline.commands.train import train_head
from pipeline.errors import BundleError, DecodeError, RunError, WeightsError
from pipeline.heads.head import Head
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_model, write_bundle
from pipeline.model.markdown import model_card
from pipeline.run import Run
from pipeline.run_folder import HEAD_FILE


def tensor(start: int, end: int, shape: list[int] | None = None, kind: str = "F32") -> dict[str, object]:
    """One entry of a safetensors header."""
    return {"dtype": kind, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def crafted(header: dict[str, object] | bytes, data: int = 16, length: int | None = None) -> bytes:
    """A safetensors file of this header and `data` zeros; its length field may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


HEADERS = {
    "longer than the file": crafted({"a": tensor(0, 16)}, length=1 << 20),
    "of 2^63 bytes": crafted({"a": tensor(0, 16)}, length=1 << 63),
    "of 2^64 - 1 bytes": crafted({"a": tensor(0, 16)}, length=(1 << 64) - 1),
    "overlapping tensors": crafted({"a": tensor(0, 12), "b": tensor(4, 16)}),
    "the same bytes twice": crafted({"a": tensor(0, 16), "b": tensor(0, 16)}),
    "a gap": crafted({"a": tensor(0, 4), "b": tensor(8, 16)}),
    "bytes after the tensors": crafted({"a": tensor(0, 8)}),
    "a tensor outside the file": crafted({"a": tensor(0, 1 << 40)}),
    "a shape for more bytes": crafted({"a": tensor(0, 16, [1 << 40, 1 << 40])}),
    "a shape that overflows": crafted({"a": tensor(0, 0, [1 << 63, 2])}, data=0),
    "offsets backwards": crafted({"a": tensor(16, 0, [0])}),
    "negative numbers": crafted({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [-16, 0]}}),
    "an unknown type": crafted({"a": tensor(0, 16, kind="PICKLE")}),
    "no JSON": crafted(b"\x80\x04cos\nsystem\n"),
    "JSON nested without end": crafted(b'{"a":' + b"[" * 100_000),
    "metadata that is no text": crafted({"a": tensor(0, 16), "__metadata__": {"headgraft": {"format": 1}}}),
    "nothing": b"",
    "seven bytes": b"\0" * 7,
}


@pytest.fixture
def run(run_extract: Extract, tmp_path: Path) -> Path:
    """A small trained run."""
    run_extract()
    train_head(train_config(tmp_path / "features", tmp_path / "run", epochs=1, hidden=4))
    return tmp_path / "run"


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_crafted_header_is_refused(content: bytes, run: Path, tmp_path: Path) -> None:
    """As weights, as a model, and as the head of a run."""
    file = tmp_path / "crafted.safetensors"
    file.write_bytes(content)
    (run / HEAD_FILE).write_bytes(content)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(WeightsError, match="crafted"):
        load_weights_file(file)
    with pytest.raises(BundleError, match="crafted"):
        load_model(file)
    with pytest.raises(RunError, match="run"):
        Run.load(run)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_cut_model_is_damaged_and_another_file_is_no_model(tmp_path: Path) -> None:
    """Wherever it was cut; in neither case in the words of a library. One of an unknown backbone is refused as well."""
    whole = (REPOSITORY / "tests" / "data" / "model-1.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    for content, found in [
        *((whole[:size], "damaged") for size in (100, 600, len(whole) - 1)),
        (b"# Text" * 99, "not a"),
    ]:
        file.write_bytes(content)
        with pytest.raises(BundleError, match=f"is {found}") as refused:
            load_model(file)
        assert not re.search("header|deserial", str(refused.value))
    card = good_card()
    card["backbone"] = card["manifest"]["base"]["backbone"] = "resnet18"
    with pytest.raises(BundleError, match="resnet18"):
        load_model(written(file, card))


SCORED = {"split": "test", "images": 4, "top1": 1.0, "top5": None, "mean_per_class": 1.0, "when": "2026-01-01"}


def good_card() -> dict[str, Any]:
    """The card of a model of the tiny backbone with two classes."""
    base = json.loads(json.dumps(asdict(Manifest(some_base()))))
    stated = {name: base["base"][name] for name in ("input_size", "resize", "interpolation", "mean", "std", "decoding")}
    return {
        "format": 1,
        "backbone": "tiny",
        "classes": ["a", "b"],
        "names": {},
        "manifest": base,
        "preprocessing": stated,
        "set_digest": "0" * 64,
        "skipped": [],
        "split_seed": 0,
    }


def written(path: Path, card: dict[str, Any], **others: Tensor) -> Path:
    """A model file of the tiny backbone and this card."""
    register_tiny()
    write_bundle(path, {**tiny_tensors(), **others}, Head.new(32, 4, 2), card)
    return path


def test_the_good_card_is_good(tmp_path: Path) -> None:
    """So that the refusals below have their reason in what was changed."""
    assert load_model(written(tmp_path / "good.safetensors", good_card())).classes == ("a", "b")


def test_a_card_in_words_has_intervals_and_no_top_5_of_two_classes(tmp_path: Path) -> None:
    """Those of earlier versions have a top-5 of 100 %, and no intervals."""
    now = {**SCORED, "top1": 0.75, "intervals": {"top1": [0.25, 0.98]}}
    card = {**good_card(), "scores": {"scored": [now, {**SCORED, "top5": 1.0}]}}
    found = model_card(load_model(written(tmp_path / "model.safetensors", card)))
    assert "75.00% (95 % interval 25.00% to 98.00%)" in found
    assert found.count("top-1") == 2
    assert "top-5" not in found


def test_files_of_every_version_are_read(tmp_path: Path) -> None:
    """Each predicts what it did when it was written, and keeps what it says that this version does not know."""
    register_tiny()
    bundle = load_model(REPOSITORY / "tests" / "data" / "model-1.safetensors")
    (prediction,) = bundle.predict([draw_image(tmp_path / "one.png", 7)])
    assert [(guess.label, guess.name) for guess in prediction.top] == [("a", "rose"), ("b", "b")]
    assert prediction.top[0].probability == pytest.approx(0.77835274, abs=1e-5)
    assert bundle.stored["from_a_later_version"] == {"kept": True}


def test_what_a_later_version_adds_within_a_record_is_passed_over(tmp_path: Path) -> None:
    """Nor is anything refused that predicting does not need: the model is good."""
    card = {
        **good_card(),
        "scores": {"scored": [{**SCORED, "later": 1}]},
        "calibration": {"later": {}},
        "training": {"later": [1, 2]},
        "class_prior": "later",
    }
    found = load_model(written(tmp_path / "model.safetensors", card))
    assert found.stored["calibration"] == {"later": {}}
    assert "class prior: not known" in model_card(found)


def test_an_image_is_a_path_bytes_an_open_image_or_a_view(tmp_path: Path) -> None:
    """Each gives what the others give; the example of docs/python.md shows it."""
    register_tiny()
    photo = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.open(draw_image(tmp_path / "one.png", 7, size=(60, 40))).save(photo, exif=exif)
    text = (REPOSITORY / "docs" / "python.md").read_text("utf-8")
    example = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0]
    found: dict[str, Any] = {"model": REPOSITORY / "tests" / "data" / "model-1.safetensors", "photo": photo}
    exec(compile(example, "python.md", "exec"), found)
    bundle, given = found["bundle"], found["images"]
    first, *others = bundle.predict(given)
    assert first.path == photo
    assert [(one.path, one.top) for one in others] == [(None, first.top)] * 3
    assert all(torch.equal(row, found["features"][0]) for row in found["features"])
    assert bundle.predict(given[3]) == [others[2]]  # one view is one image
    failed: dict[int, str] = {}
    rows = found["predictor"].log_probs([photo, b"text", np.zeros((60, 40, 3), np.uint8)], failed=failed)
    assert rows.isnan().all(1).tolist() == [False, True, True]
    assert "Image.fromarray" in failed[2]
    with pytest.raises(DecodeError, match=r"1 of 2 images[^\0]*image 1: not an image"):
        bundle.predict([photo, b"text"])


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(classes="ab"),
        lambda card: card.update(classes=["a", "a"]),
        lambda card: card.update(classes=["a", "b", "c"]),
        lambda card: card.update(classes=[1, 2]),
        lambda card: card.update(names=["a"]),
        lambda card: card.update(names={"a": 1}),
        lambda card: card.update(backbone="../../vgg16"),
        lambda card: card.update(backbone=["tiny"]),
        lambda card: card.update(split_seed="0"),
        lambda card: card.update(skipped=[{"path": "x"}]),
        lambda card: card.update(skipped="none"),
        lambda card: card.update(manifest={}),
        lambda card: card.update(manifest=None),
        lambda card: card["manifest"]["base"].update(input_size=1 << 40),
        lambda card: (card["manifest"]["base"].update(resize=1 << 16), card["preprocessing"].update(resize=1 << 16)),
        lambda card: (card["manifest"]["base"].update(resize=1), card["preprocessing"].update(resize=1)),
        lambda card: card["manifest"]["base"].update(precision="float8"),
        lambda card: card["preprocessing"].update(input_size=-1),
        lambda card: card["preprocessing"].update(mean=[0, 0, 0]),
        lambda card: card["preprocessing"].update(decoding="other"),
        lambda card: card["preprocessing"].update(channels="BGR"),
        lambda card: card["preprocessing"].update(scale=1),
        lambda card: card["preprocessing"].clear(),
        lambda card: card.pop("set_digest"),
        lambda card: card.update(training="none"),
        lambda card: card.update(weights=None),
        lambda card: card.update(images=[1]),
        lambda card: card.update(scores={"valid_accuracy": "much"}),
        lambda card: card.update(scores={"scored": [{}]}),
        lambda card: card.update(scores={"scored": {"test": 1}}),
        lambda card: card.update(scores={"scored": [{**SCORED, "intervals": {"top1": ["0", "1"]}}]}),
        lambda card: card.update(scores={"scored": [{**SCORED, "top5": "all"}]}),
        lambda card: card.update(calibration={"ece": {"valid": [1, 2]}, "temperature": 1.0}),
        lambda card: card.update(calibration={"ece": {"valid": [0.1, 0.2]}}),
        lambda card: card.update(calibration={"floor": {"valid": [0.1]}}),
        lambda card: card.update(calibration={"flip_temperature": 0.0}),
        lambda card: card.update(calibration={"flip_temperature": "1"}),
        lambda card: card.update(calibration={"flip_temperature": float("nan")}),
        lambda card: card.update(format=2),
    ],
)
def test_a_crafted_card_is_refused(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    """Wrong types, huge numbers, other classes than outputs, preprocessing that this program does not do."""
    card = good_card()
    change(card)
    with pytest.raises(HeadgraftError) as refused:
        load_model(written(tmp_path / "model.safetensors", card))
    assert "export it again" in str(refused.value)
    assert len(str(refused.value)) < 600


def same_model(file: Path, whole: Bundle) -> bool:
    """Whether a file has all tensors of `whole` and says what it says, but for its digest."""
    found = load_model(file)
    pairs = zip(found.head.state_dict().values(), whole.head.state_dict().values(), strict=True)
    cards = [{name: value for name, value in model.stored.items() if name in good_card()} for model in (found, whole)]
    return (
        cards[0] == cards[1]
        and found.backbone_tensors.keys() == whole.backbone_tensors.keys()
        and all(torch.equal(tensor, whole.backbone_tensors[name]) for name, tensor in found.backbone_tensors.items())
        and all(torch.equal(*pair) for pair in pairs)
    )


def test_a_model_with_one_byte_changed_is_refused_or_the_same(tmp_path: Path, times: Times) -> None:
    """Anywhere: length, header, card, tensors. Blanks of the header and the digest's own name change nothing."""
    file = written(tmp_path / "model.safetensors", good_card())
    whole, content = load_model(file), file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    harmless = {start - 1 - n for n in range(8) if content[start - 1 - n] == ord(" ")}  # blanks after the header
    harmless |= set(range(at := content.index(b"digest\\"), at + len("digest")))  # a model without one
    drawn = np.random.default_rng(0)
    for place in list(range(len(content))) * times(1, 5):
        damaged = bytearray(content)
        damaged[place] ^= drawn.integers(1, 256)
        file.write_bytes(damaged)
        try:
            assert same_model(file, whole), place
            assert place in harmless, place
        except BundleError as error:
            assert str(file) in str(error)


def test_a_damaged_tensor_is_named_as_damage(tmp_path: Path) -> None:
    """Its numbers are as good as any others; so is a class name that lost a letter."""
    content = written(tmp_path / "model.safetensors", {**good_card(), "names": {"a": "rose"}}).read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content.replace(b"rose", b"nose")):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(BundleError, match=r"model\.safetensors"):
            load_model(tmp_path / "model.safetensors")


def test_info_says_whether_the_tensors_were_checked(tmp_path: Path) -> None:
    """Models exported without a digest are used as before."""
    file = written(tmp_path / "model.safetensors", good_card())
    shown = CliRunner().invoke(main, ["model", "info", str(file)])
    assert "tensors: checked, xxh3-128:" in shown.stdout
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"headgraft": json.dumps(good_card())})
    shown = CliRunner().invoke(main, ["model", "info", str(file)])
    assert "tensors: not checked, exported without a digest" in shown.stdout


@pytest.mark.parametrize(
    "others",
    [
        {"features.0.weight": torch.zeros(8, 3, 1, 1)},
        {"features.9.weight": torch.zeros(1)},
        {"features.0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.float64)},
    ],
    ids=["another shape", "one more", "another type"],
)
def test_tensors_that_do_not_fit_the_backbone_are_refused(others: dict[str, Tensor], tmp_path: Path) -> None:
    """Before anything is predicted."""
    with pytest.raises(BundleError, match="tiny"):
        load_model(written(tmp_path / "model.safetensors", good_card(), **others))


def test_a_head_of_other_features_is_refused(tmp_path: Path) -> None:
    """A whole head, only not of this backbone."""
    register_tiny()
    head = Head.new(31, 4, 2)
    write_bundle(tmp_path / "model.safetensors", tiny_tensors(), head, good_card())
    with pytest.raises(BundleError, match=r"\b31\b.*\b32\b"):
        load_model(tmp_path / "model.safetensors")


def test_a_head_that_is_no_numbers_is_refused(tmp_path: Path) -> None:
    """Rather than to predict with."""
    register_tiny()
    head = Head.new(32, 4, 2)
    head.state_dict()["3.bias"][1] = float("nan")
    write_bundle(tmp_path / "model.safetensors", tiny_tensors(), head, good_card())
    with pytest.raises(BundleError, match="not finite"):
        load_model(tmp_path / "model.safetensors")


def test_a_head_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    """It would be taken over as if it were float32."""
    file = written(tmp_path / "model.safetensors", good_card())
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata = {"headgraft": json.dumps(good_card())}  # without a digest, as earlier versions wrote it
    save_file({**tensors, "head.3.bias": tensors["head.3.bias"].int()}, file, metadata)
    with pytest.raises(BundleError, match=r"torch.int32 in place of torch.float32"):
        load_model(file)


def test_weights_that_lead_to_no_numbers_are_said(tmp_path: Path) -> None:
    """Each of them finite, the probabilities not."""
    register_tiny()
    head = Head.new(32, 4, 2)
    head.state_dict()["0.weight"].fill_(3e38)
    write_bundle(tmp_path / "model.safetensors", tiny_tensors(), head, good_card())
    with pytest.raises(BundleError, match="NaN or infinite"):
        load_model(tmp_path / "model.safetensors").predict(draw_image(tmp_path / "one.png", 7))


def test_errors_and_answers_are_printable(tmp_path: Path) -> None:
    """A class or a tensor may be named as a command to a terminal."""
    card = {**good_card(), "classes": ["\x1b[2J", "b"], "names": {}}
    shown = CliRunner().invoke(main, ["model", "info", str(written(tmp_path / "model.safetensors", card))])
    assert shown.exit_code == 0
    assert "\\x1b[2J, b" in shown.stdout
    strange = written(tmp_path / "strange.safetensors", good_card(), **{"\x1b[2J": torch.zeros(1)})
    refused = CliRunner().invoke(main, ["model", "info", str(strange)])
    assert refused.exit_code == 1
    assert "\x1b" not in refused.output


def test_a_card_nested_without_end_is_refused(tmp_path: Path) -> None:
    """In place of JSON."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(crafted({"a": tensor(0, 16), "__metadata__": {"headgraft": "[" * 100_000}}))
    with pytest.raises(BundleError, match="not a model"):
        load_model(file)


def test_a_pipe_is_neither_model_nor_weights_nor_run(run: Path, tmp_path: Path) -> None:
    """Opening one would wait for its other end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="not a regular file"):
        load_model(tmp_path / "pipe")
    with pytest.raises(WeightsError, match="not a regular file"):
        load_weights_file(tmp_path / "pipe")
    (run / HEAD_FILE).unlink()
    os.mkfifo(run / HEAD_FILE)
    with pytest.raises(RunError, match="not a regular file"):
        Run.load(run)
