"""Devices: which one is taken, what is done where its memory ends, and that it computes what the processor does."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Extract, draw_image, preprocessing

from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.trunk import build_network
from pipeline.config.heads import HeadSettings
from pipeline.errors import DecodeError, ImageSetError, PipelineError, RunError
from pipeline.extraction import startup
from pipeline.heads.group import HeadGroup, HeadHyperparameters, HeadShape, HeadState
from pipeline.inputs.decode import Pixels
from pipeline.inputs.device_views import DecodedView, DeviceViews
from pipeline.inputs.loader import DecodeTask, Loader
from pipeline.inputs.views import Views
from pipeline.machine import device as devices
from pipeline.machine.device import CPU, computes, free_bytes, full_precision, resolve_device
from pipeline.search import executor
from pipeline.search.executor import Executor, Group, Outcome, Trial
from pipeline.search.journal import Score

CUDA = torch.device("cuda")
on_accelerator = pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch finds no accelerator here")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch found a CUDA device, the second one of its machine being the current one."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    monkeypatch.setattr(devices, "_fault", lambda device: "")


def test_auto_is_the_accelerator_that_is_current(pretend: None) -> None:
    """With its index: the current device belongs to a thread."""
    found = {name: str(resolve_device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")}
    assert found == {"auto": "cuda:1", "cuda": "cuda:1", "cuda:0": "cuda:0", "cpu": "cpu"}
    with pytest.raises(PipelineError, match="torch finds only cuda here; use --device cuda"):
        resolve_device("mps")


def test_without_an_accelerator_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other is made up."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(PipelineError, match="torch finds no accelerator here; use --device cpu"):
        resolve_device("cuda")


def test_a_card_that_torch_has_no_kernels_for_is_not_taken(pretend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, and computes nothing: the CPU instead, or a sentence where it was asked for."""
    monkeypatch.setattr(devices, "_fault", lambda device: "no kernel image is available")
    assert resolve_device("auto") == CPU
    with pytest.raises(PipelineError, match="no kernel image is available"):
        resolve_device("cuda")


def test_what_the_process_chose_for_float32_is_left_to_it() -> None:
    """Full precision holds within the block alone."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with full_precision(CUDA):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_heads_that_do_not_fit_together_are_trained_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, as often as it takes; one that does not fit alone is told."""
    sizes: list[int] = []

    def train(group: Group, data: object, device: torch.device) -> list[Outcome]:
        sizes.append(len(group.trials))
        if len(group.trials) > most:
            raise torch.OutOfMemoryError
        return [(Score.of(trial.number, 0.5, np.ones(1, np.bool_)), None) for trial in group.trials]

    monkeypatch.setattr(executor, "train_group", train)
    group = Group(tuple(Trial(number, HeadSettings()) for number in range(7)), 1, 1, 0)
    most = 2
    assert [score.epochs for score, _ in Executor().train_part(group, None)] == [*range(7)]  # type: ignore[arg-type]
    assert sizes == [7, 4, 2, 2, 3, 2, 1]
    most = 0
    with pytest.raises(RunError, match="does not hold the training of one head"):
        Executor().train_part(group, None)  # type: ignore[arg-type]


def test_a_batch_that_does_not_fit_is_halved(run_extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first row; and where one view does not fit, that is said."""
    tried: list[int] = []

    def warm_up(network: Backbone, *_: object) -> float:
        tried.append(network.batch_size)
        if network.batch_size > most:
            raise torch.OutOfMemoryError
        return 0.1

    monkeypatch.setattr(startup, "_warm_up", warm_up)
    most = 5
    assert run_extract(batch_size=16).computed == 24
    assert tried == [16, 8, 4]
    most = 0
    with pytest.raises(PipelineError, match="does not hold tiny and one view of 32 pixels"):
        run_extract(passes=1, batch_size=2)


def test_memory_that_ends_on_the_way_names_the_option(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed stays."""
    whole = Backbone.start

    def start(self: Backbone, views: Sequence[Pixels]) -> object:
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        calls.append(len(views))
        return whole(self, views)

    calls: list[int] = []
    monkeypatch.setattr(startup, "_warm_up", lambda *_: 0.1)
    monkeypatch.setattr(Backbone, "start", start)
    with pytest.raises(PipelineError, match="use --batch-size 2; rows so far are kept"):
        run_extract(batch_size=4)
    assert len(FeatureCache.open(tmp_path / "features")) == 12


def test_an_unknown_device_is_a_sentence() -> None:
    """As a library too, where the command line does not ask for one of its choices."""
    for name in ("foo", ""):
        with pytest.raises(PipelineError, match="expected auto, cpu, cuda"):
            resolve_device(name)
    assert resolve_device("cpu:0") == CPU


def test_views_that_do_not_fit_are_rendered_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in their order; one that does not fit alone is an error of the device."""
    views = DeviceViews(Views(preprocessing(64)), CPU)
    decoded = [(n, views.prepare(view, bytes(32), ["pass:0"])[0]) for n, view in enumerate(some_views(7))]
    whole, render, most = dict(views.finish(decoded)), DeviceViews.render, 2

    def rendered(self: DeviceViews, some: Sequence[DecodedView]) -> torch.Tensor:
        if len(some) > most:
            raise torch.OutOfMemoryError
        return render(self, some)

    monkeypatch.setattr(DeviceViews, "render", rendered)
    halves = dict(views.finish(decoded))
    assert list(halves) == list(whole)
    assert all(torch.equal(halves[number], view) for number, view in whole.items())
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        list(views.finish(decoded))


def test_a_large_image_does_not_make_room_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images lie side by side at the size of the largest: one large one is rendered with few others."""
    views, together = DeviceViews(Views(preprocessing(32)), CPU), list[int]()
    monkeypatch.setattr("pipeline.inputs.device_views._BYTES", 3 * 100 * 100 * 10)

    def render(_: DeviceViews, some: Sequence[DecodedView]) -> torch.Tensor:
        together.append(len(some))
        return torch.zeros(len(some))

    monkeypatch.setattr(DeviceViews, "render", render)
    sizes = [20] * 30 + [100] + [20] * 30
    images = [np.zeros((size, size, 3), np.uint8) for size in sizes]
    list(views.finish((n, view) for n, one in enumerate(images) for view in views.prepare(one, bytes(32), ["pass:0"])))
    assert sum(together) == 61
    assert together == [30, 11, 20]


def test_a_file_that_changed_ends_the_run_in_its_turn(tmp_path: Path) -> None:
    """Where threads are handed several at once too: files before it come out, one that is damaged with its reason."""
    tasks = []
    for number in range(20):
        file = draw_image(tmp_path / f"{number}.png", number)
        tasks.append(DecodeTask(file, hashlib.sha256(file.read_bytes()).digest(), ("pass:0",)))
    tasks[3].path.write_bytes(b"damaged")
    tasks[3] = replace(tasks[3], digest=hashlib.sha256(b"damaged").digest())
    tasks[6].path.write_bytes(b"changed")
    views, found = DeviceViews(Views(preprocessing(32)), CPU), list[bool]()
    with Loader(views, 2) as loader, pytest.raises(ImageSetError, match=r"6\.png changed"):
        for _, outcome in loader.run(tasks):
            found.append(isinstance(outcome, DecodeError))
    assert found == [False, False, False, True, False, False]


def vgg(device: torch.device, precision: str, batch_size: int = 64) -> Backbone:
    """VGG11 of random weights, whose activations neither vanish nor grow, for views of 64 pixels."""
    torch.manual_seed(0)
    tensors = {name: tensor.clone() for name, tensor in build_network("vgg11", 64).state_dict().items()}
    return load_backbone("vgg11", tensors, preprocessing(64), device=device, precision=precision, batch_size=batch_size)


def some_views(count: int = 64) -> list[Pixels]:
    """Noise of several contrasts."""
    random = np.random.default_rng(0)
    return [random.integers(0, random.integers(2, 256), (64, 64, 3)).astype(np.uint8) for _ in range(count)]


@on_accelerator
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.9995), ("float16", 0.9999)])
def test_rows_are_near_the_processors(precision: str, least: float) -> None:
    """Of every view, in each precision that the device has."""
    device = resolve_device("auto")
    if not computes(device, precision):
        pytest.skip(f"this device does not compute in {precision}")
    here, there = vgg(CPU, "float32").features(some_views()), vgg(device, precision).features(some_views())
    assert torch.cosine_similarity(here.double(), there.double()).min() > least


@on_accelerator
def test_rows_do_not_depend_on_their_batch() -> None:
    """Bit for bit, however many views are in it."""
    network = vgg(resolve_device("auto"), "bfloat16" if computes(resolve_device("auto"), "bfloat16") else "float32")
    whole = network(some_views())
    for count in (1, 3, 63):
        assert np.array_equal(network(some_views()[:count]), whole[:count])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_starting_a_batch_does_not_wait() -> None:
    """For anything that the device computes."""
    network = vgg(resolve_device("cuda"), "float32")
    views = [torch.from_numpy(view).cuda() for view in some_views()]
    network(views)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = network.start(views)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(pending()).all()


@on_accelerator
def test_an_extraction_on_a_device(run_extract: Extract, tmp_path: Path) -> None:
    """Rows of all passes, decoded by many threads, are those of the processor."""
    run_extract(cache=tmp_path / "here", passes=2)
    run_extract(cache=tmp_path / "there", passes=2, workers=8, batch_size=5, device=resolve_device("auto").type)
    here, there = (FeatureCache.open(tmp_path / name) for name in ("here", "there"))
    keys = here.index().row_keys(2)
    one, other = (torch.from_numpy(cache.read(keys)).float() for cache in (here, there))
    assert torch.cosine_similarity(one, other).min() > 0.999
    assert {made["views"] for made in there.provenance(keys)} == {"device"}


@on_accelerator
def test_free_memory_counts_what_torch_keeps() -> None:
    """What a group of heads has left behind is there for the next."""
    device = resolve_device("auto")
    shape = HeadShape(512, 512, 10, 10)
    before = free_bytes(device)
    group = HeadGroup([HeadState.new(HeadHyperparameters(1e-3), shape) for _ in range(64)], shape, device=device)
    group.step(torch.randn(64, 512, device=device), torch.zeros(64, dtype=torch.long, device=device))
    taken = before - free_bytes(device)
    del group
    assert taken > 64 * 512 * 512 * 4
    assert free_bytes(device) > before - taken / 10
