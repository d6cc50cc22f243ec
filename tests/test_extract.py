"""Stage one with the tiny backbone: counts, reuse, refusals, bad files, resume."""

import hashlib
import json
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Extract, draw_image, preprocessing, tiny_tensors
from safetensors.torch import save_file
from torch import nn

from cache.errors import CacheBusy, CacheError, DamagedCache, HeadgraftError, ManifestMismatch
from cache.lock import writing
from cache.store import FeatureCache
from pipeline.backbones.backbone import normalise
from pipeline.backbones.catalog import BACKBONES
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.trunk import build_trunk, layer_of
from pipeline.backbones.weights import NamedWeights
from pipeline.commands.extract import ExtractResult
from pipeline.errors import ConfigError, DecodeError, PipelineError, WeightsError
from pipeline.inputs.decode import decode_rgb
from pipeline.inputs.views import Views


def counts(result: ExtractResult) -> tuple[int, int, int, int]:
    """Images, rows, computed, reused."""
    assert result.rows == result.computed + result.reused
    return result.images, result.rows, result.computed, result.reused


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes, but the writer's lock."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


def test_a_second_run_computes_nothing(run_extract: Extract, tmp_path: Path) -> None:
    """Every image once, then none; the cache stays as it was, byte for byte."""
    assert counts(run_extract()) == (24, 24, 24, 0)
    before = files_below(tmp_path / "features")
    again = run_extract()
    assert counts(again) == (24, 24, 0, 24)
    assert files_below(tmp_path / "features") == before
    assert again.bytes == FeatureCache.open(tmp_path / "features").bytes > 0


def test_more_passes_compute_only_themselves(run_extract: Extract, tmp_path: Path) -> None:
    """Passes are for the 12 training images; asking for fewer deletes nothing."""
    assert counts(run_extract(passes=1)) == (24, 36, 36, 0)
    assert counts(run_extract(passes=3)) == (24, 60, 24, 36)
    assert counts(run_extract(passes=1)) == (24, 36, 0, 36)
    cache = FeatureCache.open(tmp_path / "features")
    assert len(cache) == 60
    assert cache.complete_passes(cache.index()) == 3


def test_renaming_or_moving_images_computes_nothing(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """A renamed class folder, then a moved data set, only rewrite the index."""
    run_extract()
    for split in ("train", "valid", "test"):
        (data / split / "2").rename(data / split / "20")
    assert counts(run_extract()) == (24, 24, 0, 24)
    cache = FeatureCache.open(tmp_path / "features")
    assert cache.index("data").classes == ("1", "10", "100", "20")
    moved = data.rename(tmp_path / "moved")
    assert counts(run_extract(data=moved)) == (24, 24, 0, 24)
    assert cache.sets() == ["data", "moved"]


def test_a_new_image_computes_only_itself(run_extract: Extract, data: Path) -> None:
    """One file more is one row more, and its passes."""
    run_extract(passes=1)
    draw_image(data / "train" / "10" / "new.png", 500)
    assert counts(run_extract(passes=1)) == (25, 38, 2, 36)


def test_identical_files_share_rows(run_extract: Extract, data: Path) -> None:
    """A copy, in another split too, costs nothing; an image of valid that is copied to train gets its passes."""
    shutil.copy(data / "train" / "1" / "image_0.jpg", data / "train" / "1" / "copy.jpg")
    shutil.copy(data / "valid" / "1" / "image_0.jpg", data / "train" / "1" / "leak.jpg")
    assert counts(run_extract(passes=1)) == (26, 24 + 13, 37, 0)


def test_rows_are_the_backbones_features_of_their_views(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """A row is what the network gives for that image's view: right image, right view, normalised as torchvision."""
    run_extract(passes=1)
    cache = FeatureCache.open(tmp_path / "features")
    weight, bias = tiny_tensors()["features.0.weight"], tiny_tensors()["features.0.bias"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing().mean, preprocessing().std))
    for image in cache.index().split("train"):
        for number in (0, 1):
            pixels = Views(preprocessing()).render_all(
                decode_rgb((data / image.path).read_bytes()), image.key, (f"pass:{number}",)
            )[0]
            x = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
            maps = torch.nn.functional.conv2d(x[None], weight, bias, stride=4, padding=1).relu()
            expected = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten()
            row = cache.read([(image.key, f"pass:{number}")])[0]
            assert np.allclose(row.astype(np.float32), expected.numpy(), atol=2e-3)


def test_rows_do_not_depend_on_workers_or_batch_size(run_extract: Extract, tmp_path: Path) -> None:
    """Decoding in line or in up to four threads, one view a batch or all: the same features to rounding."""
    rows = []
    for workers, batch_size in ((0, 1), (1, 5), (2, 8), (4, 64)):
        place = tmp_path / f"features_{workers}"
        run_extract(cache=place, passes=2, workers=workers, batch_size=batch_size)
        cache = FeatureCache.open(place)
        rows.append(cache.read(cache.index().row_keys(2)).astype(np.float32))
    for other in rows[1:]:
        assert np.allclose(rows[0], other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("option", "field"), [({"image_size": 64}, "input_size"), ({"passes": 1, "seed": 5}, "seed")])
def test_other_settings_are_refused_by_field(run_extract: Extract, option: dict[str, int], field: str) -> None:
    """The message names the field, and nothing is computed."""
    run_extract(passes=1)
    with pytest.raises(ManifestMismatch, match=field):
        run_extract(**option)


def test_other_weights_are_refused(run_extract: Extract, tmp_path: Path) -> None:
    """Weights are known by the digest of their tensors; the same tensors in another file are the same weights."""
    run_extract()
    save_file(tiny_tensors(), tmp_path / "copy.safetensors", {"made": "elsewhere"})
    assert run_extract(weights=str(tmp_path / "copy.safetensors")).computed == 0
    save_file(tiny_tensors(1), tmp_path / "other.safetensors")
    with pytest.raises(ManifestMismatch, match="weights_digest"):
        run_extract(weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"set": "a/b"}, "--set"),
        ({"data": Path("nowhere")}, "nowhere does not exist"),
        ({"data": Path("elsewhere/data")}, "--set data"),
        ({"backbone": "vgg99"}, "vgg99"),
        ({"backbone": "alexnet", "weights": None, "image_size": 224}, "backbone: .*'tiny'"),
        ({"image_size": 64}, "input_size"),
        ({"passes": 1, "seed": 5}, "seed"),
        ({"weights": "nowhere.safetensors"}, "existing file"),
        ({"finish": True, "cache": Path("nowhere")}, "no parts to finish"),
        ({"weights": "other.safetensors"}, "weights_digest: the cache has [0-9a-f]{12}…, asked for [0-9a-f]{12}…$"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_hashed_or_fetched(
    option: dict[str, Any], named: str, run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set's images may take minutes to hash, weights minutes to fetch."""
    hashing = Mock(wraps=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", hashing)
    run_extract(passes=1)
    assert hashing.call_count == 24
    hashing.reset_mock()
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    monkeypatch.setenv("HEADGRAFT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    save_file(tiny_tensors(1), tmp_path / "other.safetensors")
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere" / "data")
    with pytest.raises(HeadgraftError, match=re.compile(named, re.MULTILINE)):
        run_extract(**option)
    assert not hashing.called
    assert not (tmp_path / "empty").exists()


def test_a_cache_without_rows_refuses_other_settings_too(run_extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """As --hash-only leaves it; nothing is hashed again for that."""
    run_extract(hash_only=True)
    hashing = Mock(wraps=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", hashing)
    with pytest.raises(ManifestMismatch, match="input_size"):
        run_extract(image_size=64)
    assert not hashing.called


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_hashed(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes it, or nobody can; a dry run writes nothing, so neither matters to it."""
    run_extract()
    hashing = Mock(wraps=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", hashing)
    with writing(tmp_path / "features"):
        with pytest.raises(CacheBusy):
            run_extract(passes=1)
        assert not hashing.called
        run_extract(passes=1, dry_run=True)
    hashing.reset_mock()
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=f"{tmp_path}/file/features.*: Not a directory"):
        run_extract(cache=tmp_path / "file" / "features")
    assert not hashing.called


def test_weights_that_do_not_fit_are_refused(run_extract: Extract, tmp_path: Path) -> None:
    """A tensor of another shape, one missing, and a file that is not there."""
    tensors = tiny_tensors()
    save_file({**tensors, "features.0.bias": torch.zeros(9)}, tmp_path / "shape.safetensors")
    save_file({"features.0.weight": tensors["features.0.weight"]}, tmp_path / "missing.safetensors")
    for name in ("shape", "missing"):
        with pytest.raises(WeightsError, match=r"tiny: features\.0\.bias"):
            run_extract(weights=str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(WeightsError, match="existing file"):
        run_extract(weights="nowhere.safetensors")


def test_a_feature_that_is_not_finite_names_its_image(run_extract: Extract, tmp_path: Path) -> None:
    """Weights that overflow float16 stop the run instead of being stored."""
    tensors = tiny_tensors()
    tensors["features.0.bias"] += 1e6
    save_file(tensors, tmp_path / "huge.safetensors")
    with pytest.raises(PipelineError, match="SHA-256"):
        run_extract(weights=str(tmp_path / "huge.safetensors"))


@pytest.mark.parametrize(
    ("place", "phase"),
    [
        ("pipeline.inputs.preprocessing.decode_rgb", "decode"),
        ("pipeline.backbones.backbone.Backbone.start", "compute"),
        ("cache.writer.write_shard", "write"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_phase_that_the_others_wait_for_is_named(
    place: str, phase: str, workers: int, run_extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is slow, with decoding in line or ahead."""
    monkeypatch.setattr("cache.writer.ShardWriter.__init__.__defaults__", (2, 20.0))
    quick = pkgutil.resolve_name(place)

    def slowed(*args: object, **named: object) -> object:
        time.sleep(0.05)
        return quick(*args, **named)

    monkeypatch.setattr(place, slowed)
    assert run_extract(workers=workers).bound == phase
    assert run_extract(workers=workers).bound == ""


def test_a_network_of_another_form_is_refused(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its classifier's outputs pass for features."""
    monkeypatch.setitem(
        BACKBONES, "odd", BackboneSpec(lambda size: nn.Sequential(nn.ReLU()), NamedWeights("odd", "NONE", None))
    )
    with pytest.raises(PipelineError, match="odd ends in ReLU, expected a classifier"):
        layer_of("odd", 64)
    with pytest.raises(ConfigError, match="--image-size is 32"):
        layer_of("alexnet", 32)


def test_an_unknown_backbone_is_refused(run_extract: Extract) -> None:
    """With the name that was perhaps meant."""
    with pytest.raises(PipelineError, match="did you mean resnet50"):
        run_extract(backbone="resnet5O")


def test_without_skip_bad_every_bad_file_is_listed(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """All of them in one error, wherever they stand; no index is written."""
    (data / "train" / "1" / "image_0.jpg").write_bytes(b"text")
    (data / "valid" / "2" / "image_1.png").write_bytes(b"")
    with pytest.raises(DecodeError, match=r"\b2\b") as caught:
        run_extract()
    assert "train/1/image_0.jpg" in str(caught.value)
    assert "valid/2/image_1.png: the file is empty" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert FeatureCache.open(tmp_path / "features").sets() == []


def test_skip_bad_lists_files_and_leaves_them_out(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Each bad file, a copy of one too, in the result and in the index; the others are computed, once."""
    for name in ("image_0.jpg", "copy.jpg"):
        (data / "train" / "1" / name).write_bytes(b"text")
    result = run_extract(skip_bad=True)
    assert sorted(Path(bad["path"]).name for bad in result.skipped) == ["copy.jpg", "image_0.jpg"]
    assert (result.images, result.rows, result.computed) == (25, 23, 23)
    index = FeatureCache.open(tmp_path / "features").index()
    assert len(index.images) == 23
    assert len(index.skipped) == 2
    again = run_extract(skip_bad=True)
    assert (again.computed, again.bound) == (0, "")
    assert (again.computed, len(again.skipped)) == (0, 2)


def test_a_dry_run_writes_nothing(run_extract: Extract, tmp_path: Path) -> None:
    """It counts what is missing, on no cache and on one."""
    result = run_extract(dry_run=True)
    assert (result.rows, result.computed) == (24, 0)
    assert not (tmp_path / "features").exists()
    run_extract()
    before = files_below(tmp_path / "features")
    assert run_extract(passes=2, dry_run=True).reused == 24
    assert files_below(tmp_path / "features") == before


def test_a_set_of_another_root_is_replaced_only_by_name(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Two folders of one name are told apart."""
    run_extract()
    other = tmp_path / "other" / "data"
    shutil.copytree(data, other)
    with pytest.raises(CacheError, match="--set"):
        run_extract(data=other)
    assert run_extract(data=other, set="data").computed == 0
    assert FeatureCache.open(tmp_path / "features").index().data == str(other)


def test_a_damaged_shard_stops_the_run_and_its_rows_come_back(run_extract: Extract, tmp_path: Path) -> None:
    """Named and refused; once it is moved away, only its rows are computed."""
    run_extract()
    run_extract(passes=1)
    (shard, *_) = sorted((tmp_path / "features" / "shards").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedCache, match=shard.name):
        run_extract(passes=1)
    shard.unlink()
    assert run_extract(passes=1).computed > 0
    assert run_extract(passes=1).computed == 0


def test_extracting_again_rewrites_a_damaged_index(run_extract: Extract, tmp_path: Path) -> None:
    """As the error on a damaged index says."""
    run_extract()
    path = tmp_path / "features" / "sets" / "data.json"
    path.write_text(path.read_text().replace('"train"', '"valid"'))
    with pytest.raises(DamagedCache, match=r"data\.json"):
        FeatureCache.open(tmp_path / "features").index()
    assert run_extract().computed == 0
    assert len(FeatureCache.open(tmp_path / "features").index().images) == 24


def test_every_shard_tells_how_it_was_computed(run_extract: Extract, tmp_path: Path) -> None:
    """Device, versions, code path and the weights' place, outside the manifest."""
    run_extract()
    cache = FeatureCache.open(tmp_path / "features")
    (made,) = cache.provenance(cache.index().row_keys(0))
    assert {"device", "capability", "machine", "torch", "torchvision", "code_path", "weights"} <= set(made)
    assert "torch" not in json.loads((tmp_path / "features" / "manifest.json").read_text())["base"]


def test_a_killed_run_goes_on_where_it_was(run_extract: Extract, data: Path, tiny: str, tmp_path: Path) -> None:
    """SIGKILL at the fifth batch: the shards written until then are whole, and their rows are not computed again."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from functools import partial
from pathlib import Path
import conftest, pipeline.extraction.extractor as stage
from cache.writer import ShardWriter
from pipeline.commands.extract import extract
from pipeline.config.extract import ExtractConfig
conftest.register_tiny()
stage.ShardWriter = partial(stage.ShardWriter, rows_per_shard=4)
add, done = ShardWriter.add, []
def counted(*given):
    done.append(1)
    if len(done) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    add(*given)
ShardWriter.add = counted
extract(ExtractConfig(Path({str(data)!r}), Path({str(tmp_path / "features")!r}), backbone="tiny",
    weights={tiny!r},
    image_size=32,
    precision="float32", device="cpu", batch_size=4, threads=1))
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = run_extract()
    assert 12 <= result.reused < 24
    assert result.rows == 24
    cache = FeatureCache.open(tmp_path / "features")
    assert len(cache) == sum(len(shard.keys) for shard in cache.shards) == 24
    assert not list((tmp_path / "features").rglob("*.tmp"))


def test_the_code_path_changes_features_by_rounding_only() -> None:
    """A network with Winograd convolutions agrees with the plain one."""
    from torchvision.models import vgg11

    torch.manual_seed(0)
    tensors = {k: v for k, v in vgg11(weights=None).state_dict().items() if k.startswith("features.")}
    views = [np.random.default_rng(n).integers(0, 256, (32, 32, 3)).astype(np.uint8) for n in range(3)]
    cpu = torch.device("cpu")
    fast = load_backbone("vgg11", dict(tensors), preprocessing(), device=cpu, precision="float32")
    plain = build_trunk("vgg11", 32, None, tensors)
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
    assert fast.code_path == "winograd"
    assert torch.allclose(fast.features(views), plain(normalise(pixels, preprocessing())), atol=1e-4, rtol=1e-3)


def test_a_set_is_known_by_its_place_however_it_is_spelled(run_extract: Extract, data: Path, tmp_path: Path) -> None:
    """Through a link, through "..", and after it was moved; another place that is still there is refused."""
    run_extract()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "data").symlink_to(data)
    for same in (tmp_path / "links" / "data", data / ".." / "data"):
        assert run_extract(data=same).computed == 0
    other = shutil.copytree(data, tmp_path / "other" / "data")
    with pytest.raises(CacheError, match="--set data"):
        run_extract(data=other)
    shutil.rmtree(data)
    (tmp_path / "links" / "data").unlink()
    assert run_extract(data=other).computed == 0
