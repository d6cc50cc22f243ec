"""Looking after a cache: verify, repair, forget, prune, pack, info."""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Extract, Times, draw_image, train_config

from cache.check import repair, verify
from cache.errors import CacheError, DamagedCache, MissingRows, UnknownSet
from cache.index import SetIndex
from cache.info import info
from cache.manifest import Manifest
from cache.pack import pack
from cache.prune import forget, prune
from cache.store import FeatureCache
from pipeline.commands.evaluate import evaluate
from pipeline.commands.reduce import reduce_cache
from pipeline.commands.report import report
from pipeline.commands.train import train_head
from pipeline.config.heads import ReduceConfig
from pipeline.config.models import EvaluateConfig, ReportConfig
from pipeline.inputs.images import changed_files


@pytest.fixture
def cache(run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of 24 clean rows and 12 of one augmented pass, in a shard each."""
    monkeypatch.setattr("cache.writer.MERGE_BELOW", 0)
    run_extract()
    run_extract(passes=1)
    return tmp_path / "features"


def shards(cache: Path) -> list[Path]:
    """Shard files of a cache."""
    return sorted((cache / "shards").glob("*.h5"))


def test_a_sound_cache_verifies(cache: Path) -> None:
    """Every row counted once, nothing bad."""
    result = verify(cache, changed_files)
    assert (result.shards, result.rows, result.bad, result.changed) == (len(shards(cache)), 36, [], {})


def test_every_flipped_bit_is_found(cache: Path, times: Times) -> None:
    """Anywhere in a shard's file: header, keys, padding, features."""
    generator = random.Random(0)
    for _ in range(times(40, 1000)):
        shard = generator.choice(shards(cache))
        whole = shard.read_bytes()
        place = generator.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        shard.write_bytes(damaged)
        assert f"shards/{shard.name}" in [bad["shard"] for bad in verify(cache).bad], place
        shard.write_bytes(whole)
    assert verify(cache).bad == []


def test_every_truncation_and_all_trailing_junk_is_found(cache: Path, times: Times) -> None:
    """At any length, with any bytes after the end."""
    generator = random.Random(1)
    for _ in range(times(10, 100)):
        shard = generator.choice(shards(cache))
        whole = shard.read_bytes()
        for damaged in (
            whole[: generator.randrange(len(whole))],
            whole + generator.randbytes(generator.randint(1, 99)),
        ):
            shard.write_bytes(damaged)
            assert f"shards/{shard.name}" in [bad["shard"] for bad in verify(cache).bad]
        shard.write_bytes(whole)


@pytest.mark.parametrize("change", ["cut", "grown", "gone", "renamed", "stray"])
def test_every_damage_to_the_folder_is_found(change: str, cache: Path) -> None:
    """Truncated, with bytes added, deleted, under another name, not a shard at all."""
    shard = shards(cache)[0]
    if change == "cut":
        os.truncate(shard, 100)
    elif change == "grown":
        shard.write_bytes(shard.read_bytes() + b"!")
    elif change == "gone":
        shard.unlink()
    elif change == "renamed":
        shard.rename(shard.with_name(f"{'0' * 32}-{shard.stat().st_size}.h5"))
    else:
        (shard.parent / "notes.h5").write_bytes(b"hello")
    assert verify(cache).bad


def test_lost_rows_are_not_a_smaller_default(cache: Path, run_extract: Extract) -> None:
    """A deleted shard of augmented rows is missed, not taken for a cache without that pass."""
    pass_one = next(p for p in FeatureCache.open(cache).shards if any(view == "pass:1" for _, view in p.keys))
    pass_one.path.unlink()
    assert list(verify(cache).missing) == ["data"]
    opened = FeatureCache.open(cache)
    index = opened.index()
    assert index.passes == 1
    with pytest.raises(MissingRows):
        opened.read(index.row_keys(index.passes))
    assert run_extract(passes=1).computed == 12
    assert verify(cache).bad == []


def test_repair_sets_aside_what_is_bad_and_extract_mends_the_rest(cache: Path, run_extract: Extract) -> None:
    """Nothing is deleted, the sound rows stay, and only the lost ones are computed again."""
    victim = shards(cache)[0]
    (cache / "sets" / "data.json").write_text("{}")
    damaged = victim.read_bytes()[:-1]
    victim.write_bytes(damaged)
    with pytest.raises(DamagedCache, match="cache repair"):
        run_extract(passes=1)
    result = repair(cache)
    assert {entry["shard"] for entry in result.set_aside} == {f"shards/{victim.name}", "sets/data.json"}
    assert (cache / "damaged" / victim.name).read_bytes() == damaged
    assert verify(cache).bad == []
    mended = run_extract(passes=1)
    assert mended.computed in (12, 24)
    assert mended.rows == 36
    assert verify(cache).bad == []
    assert repair(cache).set_aside == []


def test_repair_counts_what_extract_will_compute_again(cache: Path, run_extract: Extract) -> None:
    """The index tells, when it is sound itself."""
    victim = FeatureCache.open(cache).shards[0]
    os.truncate(victim.path, 10)
    assert repair(cache).missing == {"data": len(victim.keys)}
    assert run_extract(passes=1).computed == len(victim.keys)


def test_full_verification_hashes_the_images(cache: Path, data: Path) -> None:
    """A change that leaves size and time as they were is found; so is a folder that is gone."""
    image = next((data / "train" / "1").glob("*.jpg"))
    times = image.stat()
    contents = bytearray(image.read_bytes())
    contents[-3] ^= 1
    image.write_bytes(contents)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(cache).changed == {}
    assert verify(cache, changed_files).changed == {"data": [f"train/1/{image.name} has other contents"]}
    shutil.rmtree(data)
    assert "out of reach" in verify(cache, changed_files).changed["data"][0]


def test_prune_keeps_what_a_set_uses(cache: Path, data: Path, run_extract: Extract) -> None:
    """Rows of a removed image go, with its pass; a forgotten set takes along only what no other uses."""
    before = {key: FeatureCache.open(cache).read([key]) for key in FeatureCache.open(cache).index().row_keys(1)}
    gone = next(iter(sorted((data / "train" / "1").iterdir())))
    gone.unlink()
    run_extract(passes=1)
    assert prune(cache, dry_run=True).rows == 2
    assert len(FeatureCache.open(cache)) == 36
    assert prune(cache).rows == 2
    kept = FeatureCache.open(cache)
    assert len(kept) == 34
    for key in kept.index().row_keys(1):
        assert np.array_equal(kept.read([key]), before[key])
    assert verify(cache).bad == []
    assert prune(cache).rows == 0
    with pytest.raises(UnknownSet, match="'other'"):
        forget(cache, "other")
    forget(cache, "data")
    assert prune(cache).rows == 34
    assert shards(cache) == []


def test_prune_stops_at_an_index_it_cannot_read(cache: Path) -> None:
    """Its rows would count as unused."""
    (cache / "sets" / "data.json").write_text("{")
    with pytest.raises(DamagedCache):
        prune(cache)
    assert len(FeatureCache.open(cache)) == 36


def test_a_packed_file_is_read_without_us(cache: Path, tmp_path: Path) -> None:
    """Plain h5py finds features, labels, names, paths, splits and passes, row by row."""
    result = pack(cache, tmp_path / "packed.h5")
    opened = FeatureCache.open(cache)
    with h5py.File(tmp_path / "packed.h5") as packed:
        names = packed["class_names"].asstr()[()]
        paths, splits = packed["paths"].asstr()[()], packed["splits"].asstr()[()]
        assert packed["features"].shape == (result.rows, 32) == (36, 32)
        assert packed["features"].dtype == "<f4"
        assert sorted(packed["features"].dims[0].keys()) == ["labels", "passes", "paths", "splits"]
        for row in range(36):
            image = next(i for i in opened.index().images if i.path == paths[row])
            assert (names[packed["labels"][row]], splits[row]) == (image.label, image.split)
            expected = opened.read([(image.key, f"pass:{packed['passes'][row]}")])[0]
            assert np.array_equal(packed["features"][row], expected)
    with pytest.raises(CacheError, match="--overwrite"):
        pack(cache, tmp_path / "packed.h5")
    assert pack(cache, tmp_path / "packed.h5", passes=0, overwrite=True).rows == 24


def test_a_full_disk_leaves_no_packed_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is claimed before HDF5 writes a byte."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cache.pack.os.posix_fallocate", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(CacheError, match="No space left"):
        pack(cache, tmp_path / "out" / "packed.h5")
    assert list((tmp_path / "out").iterdir()) == []


def test_info_says_what_is_there(cache: Path) -> None:
    """Backbone, preprocessing, passes, rows and sets, in words and in numbers."""
    found = info(cache)
    assert found.rows == {"pass:0": 24, "pass:1": 12}
    (entry,) = found.sets
    assert (entry["set"], entry["images"], entry["passes"], entry["missing"]) == ("data", 24, 1, 0)
    text = found.in_words()
    for words in ("tiny", "float32", "crop-flip-rotate", "24 of the clean view", "12 of augmented pass 1", "12 train"):
        assert words in text


@pytest.mark.parametrize("look_after", [repair, prune, lambda path: forget(path, "data")])
@pytest.mark.parametrize("exists", [True, False])
def test_where_there_is_no_cache_nothing_is_made(
    look_after: Callable[[Path], object], exists: bool, tmp_path: Path
) -> None:
    """A misspelt path does not become a folder, a folder of images gets no lock."""
    place = tmp_path / "pictures"
    if exists:
        draw_image(place / "a.png", 1)
    with pytest.raises(CacheError, match="pictures"):
        look_after(place)
    assert sorted(file.name for file in tmp_path.rglob("*")) == (["a.png", "pictures"] if exists else [])


def test_more_passes_than_there_are_cannot_be_packed(cache: Path, tmp_path: Path) -> None:
    """How many there are, and what to do."""
    with pytest.raises(MissingRows, match=r"\b1\b.*\b3\b"):
        pack(cache, tmp_path / "packed.h5", passes=3)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read(kind: str, cache: Path) -> None:
    """A pipe or a link to a device among the indexes is bad, and set aside; nothing waits for its end."""
    place = cache / "sets" / "other.json"
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    assert [entry["shard"] for entry in verify(cache).bad] == ["sets/other.json"]
    assert "not a regular file" in verify(cache).bad[0]["reason"]
    assert [entry["shard"] for entry in repair(cache).set_aside] == ["sets/other.json"]
    assert verify(cache).bad == []


def test_a_pass_that_another_process_begins_is_no_other_cache(cache: Path, run_extract: Extract) -> None:
    """A cache opened before its first augmented rows has their recipe by the time it reads them."""
    shutil.rmtree(cache)
    run_extract()
    before = FeatureCache.open(cache)
    run_extract(passes=1)
    assert len(before) == 36


def test_what_cannot_be_packed_is_said(cache: Path, tmp_path: Path) -> None:
    """A folder as the file."""
    with pytest.raises(CacheError, match="is a folder"):
        pack(cache, tmp_path, overwrite=True)


@pytest.mark.parametrize("command", ["extract", "train-head", "evaluate", "report", "reduce"])
def test_a_command_reads_manifest_and_index_once(
    command: str, cache: Path, run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million images, an index takes seconds to read; nor does a command see two states of one cache."""
    run, reads = tmp_path / "run", Counter[str]()
    if command in ("evaluate", "report"):
        train_head(train_config(cache, run))
    for kind in (Manifest, SetIndex):

        def counted(*given: Any, kind: Any = kind, load: Any = kind.load) -> Any:
            reads[kind.__name__] += 1
            return load(*given)

        monkeypatch.setattr(kind, "load", counted)
    if command == "extract":
        run_extract(passes=1)
    elif command == "train-head":
        train_head(train_config(cache, run))
    elif command == "evaluate":
        evaluate(EvaluateConfig(run))
    elif command == "report":
        report(ReportConfig(run))
    else:
        reduce_cache(ReduceConfig(cache, tmp_path / "reduced", basis="pool+pca:6", seeds=1))
    # Extraction reads the manifest again once nobody else writes the cache.
    assert reads == {"Manifest": 2 if command == "extract" else 1, "SetIndex": 1}
