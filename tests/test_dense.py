"""Dense views: one map of a larger view, whose windows are rows like any other."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Extract, Tiny, key_of, some_base, some_rows, tiny_tensors, train_config
from torch import nn

from cache.check import verify
from cache.errors import DamagedCache, HeadgraftError, MissingRows
from cache.info import in_words, info
from cache.keys import pack_keys, unpack_keys
from cache.manifest import Manifest
from cache.prune import forget, prune
from cache.shard import ShardHeader, write_shard
from cache.store import FeatureCache
from cache.windows import cut_windows, split_keys, windows_of
from pipeline.backbones import backbone
from pipeline.backbones.backbone import normalise
from pipeline.bases.rows import HeadData, load_data
from pipeline.bases.stream import StreamedData
from pipeline.bases.trainset import TrainingSet
from pipeline.config import EvaluateConfig, ExtractConfig, SweepConfig
from pipeline.console import silent
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate import evaluate
from pipeline.extraction.checks import refuse_no_windows
from pipeline.inputs.clean import clean_view
from pipeline.inputs.decode import decode_rgb
from pipeline.run import Run
from pipeline.sweep import sweep
from pipeline.train import train_head

SIZE = 40  # a map of 10 x 10, where 32 pixels have 8 x 8: nine windows
WINDOWS = 9


class Unpooled(Tiny):
    """The tiny backbone with an `avgpool` that leaves the map of 32 pixels as it is: rows of (8, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(8)


@pytest.fixture
def run_dense(run_extract: Extract, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Extract with that backbone, dense views and all."""
    spec = replace(backbone.BACKBONES["tiny"], build=lambda weights=None: Unpooled())
    monkeypatch.setitem(backbone.BACKBONES, "tiny", spec)
    return lambda **options: run_extract(**{"dense": SIZE, **options})


def test_a_window_is_cut_from_the_map(run_dense: Extract, data: Path, tmp_path: Path) -> None:
    """Every one of every training image, as the network's own map of the larger view has it."""
    result = run_dense(passes=1)
    assert (result.rows, result.computed, result.reused) == (24 + 12 + 12, 48, 0)
    cache = FeatureCache.open(tmp_path / "features")
    assert cache.dense_windows(SIZE) == WINDOWS
    network = Unpooled()
    network.load_state_dict(tiny_tensors(), strict=False)
    for image in cache.index().split("train"):
        pixels = clean_view(decode_rgb((data / image.path).read_bytes()), SIZE, SIZE)
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0)
        with torch.inference_mode():
            whole = network.features(normalise(batch))[0].numpy()
        for number in range(WINDOWS):
            top, left = divmod(number, 3)
            row = cache.read([(image.key, f"dense:{SIZE}:{number}")])[0].reshape(8, 8, 8)
            assert np.allclose(row, whole[:, top : top + 8, left : left + 8], atol=1e-2)


def test_dense_views_are_rows_of_the_cache(run_dense: Extract, tmp_path: Path) -> None:
    """Computed once, counted, kept by prune as long as their images are trained on, and missed when they are lost."""
    run_dense()
    assert run_dense().computed == 0
    assert run_dense(dense=0).reused == 24
    path = tmp_path / "features"
    cache = FeatureCache.open(path)
    assert cache.index().dense == SIZE
    assert info(path).rows == {f"dense:{SIZE}": 12, "pass:0": 24}
    assert f"dense views of {SIZE} pixels" in in_words(info(path))
    assert prune(path).rows == 0
    assert verify(path).bad == []
    next(shard for shard in cache.shards if shard.header.row_shape == (8, 10, 10)).path.unlink()
    assert verify(path).missing == {"data": 12}
    assert run_dense().computed == 12
    forget(path, "data")
    assert prune(path).rows == 36


def test_heads_train_on_windows(run_dense: Extract, tmp_path: Path) -> None:
    """In memory or streamed, the same rows; a run and a sweep say what they were trained on."""
    run_dense(passes=1)
    features = tmp_path / "features"
    rows = TrainingSet.open(features, None, None, silent, SIZE)
    assert rows.views == ("pass:0", "pass:1", *(f"dense:{SIZE}:{number}" for number in range(WINDOWS)))
    basis, held = load_data(rows, "pyramid+white", 1 << 40)
    assert isinstance(held, HeadData)
    assert held.train_rows.shape == (12, 11)
    same, streamed = load_data(rows, "pyramid+white", 1)
    assert isinstance(streamed, StreamedData)
    some = FeatureCache.open(features).read([(image.key, rows.views[5]) for image in rows.index.split("train")])
    assert torch.allclose(basis.apply(some), same.apply(some), atol=1e-4)
    drawn = [len(x) for x, _ in streamed.batches(4, torch.Generator().manual_seed(0))]
    assert sum(drawn) == 12
    result = train_head(train_config(features, tmp_path / "run", dense=SIZE))
    assert Run.load(tmp_path / "run").record["config"]["dense"] == SIZE
    assert evaluate(EvaluateConfig(tmp_path / "run", split="valid")).top1 == result.valid_accuracy
    swept = sweep(SweepConfig(features, tmp_path / "swept", dense=SIZE, heads=2, epochs=1, seeds=1))
    assert swept.dense == SIZE
    assert Run.load(tmp_path / "swept").record["config"]["dense"] == SIZE


def test_dense_views_that_are_not_there_are_named(run_dense: Extract, tmp_path: Path) -> None:
    """Before a run is made."""
    run_dense(dense=0)
    with pytest.raises(MissingRows, match=r"no dense views of 40 pixels.*run extract with --dense 40"):
        train_head(train_config(tmp_path / "features", tmp_path / "run", dense=SIZE))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_more_views_cost(run_dense: Extract) -> None:
    """A dense view only where none was asked for."""
    said: list[str] = []
    for dense in (SIZE, 0):
        run_dense(dry_run=True, dense=dense, say=said.append)
    assert sum("an augmented pass is 12 views to compute" in line for line in said) == 2
    assert sum("--dense 41 takes as long as 1.64 passes" in line for line in said) == 1


def test_no_dense_view_is_advised_where_its_map_has_no_windows(run_extract: Extract) -> None:
    """The backbone averages it."""
    said: list[str] = []
    run_extract(dry_run=True, say=said.append)
    assert not any("--dense" in line for line in said)


def test_views_without_windows_are_refused(run_dense: Extract) -> None:
    """No larger than the input, no larger a map, or an input whose map is averaged."""
    config = ExtractConfig(Path("data"), Path("features"), dense=230)
    with pytest.raises(PipelineError, match="use 256 or more"):
        refuse_no_windows(config, (512, 7, 7))
    refuse_no_windows(replace(config, dense=256), (512, 7, 7))
    with pytest.raises(ConfigError, match="expected more than --image-size 32"):
        run_dense(dense=32)
    with pytest.raises(PipelineError, match="averages that of 64 pixels"):
        run_dense(image_size=64, dense=80)


def test_a_bad_file_is_skipped_once(run_dense: Extract, data: Path) -> None:
    """Though both networks would have had its views."""
    (data / "train" / "1" / "image_0.jpg").write_bytes(b"no image")
    with pytest.raises(HeadgraftError, match="1 image files cannot be decoded"):
        run_dense()
    assert [bad["path"] for bad in run_dense(skip_bad=True).skipped] == ["train/1/image_0.jpg"]


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((8, 2, 2), "dense:64"),
        ((8, 4, 4), "pass:0"),
        ((8, 1, 4), "dense:64"),
        ((4, 4, 4), "dense:64"),
    ],
)
def test_rows_of_another_shape_than_their_view_are_refused(shape: tuple[int, ...], view: str, tmp_path: Path) -> None:
    """A map under a clean view's name, or the other way round, however sound its digest is."""
    cache = FeatureCache.create(tmp_path / "features", Manifest(some_base()))
    header, rows = ShardHeader(cache.manifest.base.digest, shape), some_rows(1, int(np.prod(shape)))
    write_shard(cache.path / "shards", header, [key_of(1, view)], rows)
    with pytest.raises(DamagedCache, match="which its views do not have"):
        _ = FeatureCache.open(cache.path).shards


def test_windows_are_counted_row_by_row() -> None:
    """None where the map is no map, or smaller; keys are split where they ask for a window, and only there."""
    assert windows_of((512, 9, 9), (512, 7, 7)) == 9
    assert windows_of((512, 7, 8), (512, 7, 7)) == 2
    assert [windows_of(shape, (512, 7, 7)) for shape in ((512, 6, 9), (256, 9, 9), (512,))] == [0, 0, 0]
    maps = np.arange(2 * 12, dtype=np.float16).reshape(2, 12)
    assert cut_windows(maps, (1, 3, 4), (1, 2, 3), np.array([0, 3])).tolist() == [
        [0, 1, 2, 4, 5, 6],
        [17, 18, 19, 21, 22, 23],
    ]
    keys = [key_of(1), key_of(1, "dense:288"), key_of(2, "dense:288:8"), key_of(1, "dense:288:0"), key_of(3, "pass:12")]
    stored, numbers = split_keys(pack_keys(keys))
    assert numbers.tolist() == [-1, -1, 8, 0, -1]
    expected = [key_of(1), key_of(1, "dense:288"), key_of(2, "dense:288"), key_of(1, "dense:288"), key_of(3, "pass:12")]
    assert unpack_keys(stored) == expected


def test_the_configuration_knows_its_bounds() -> None:
    """Before any work."""
    with pytest.raises(ConfigError):
        ExtractConfig(Path("data"), Path("cache"), dense=5000)
