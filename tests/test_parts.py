"""Stage one in parts: any number of processes, in any order, and the cache that one process would have made."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Extract, draw_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cache import layout
from cache.errors import CacheBusy, MissingRows
from cache.keys import RowKey, pack_keys, unpack_keys
from cache.lock import writing
from cache.store import FeatureCache
from pipeline.config.extract import ExtractConfig
from pipeline.errors import ConfigError, DecodeError, ImageSetError
from pipeline.extraction.plan import _part_of
from pipeline.inputs import records

PART = """
import sys
sys.path.insert(0, "tests")
from conftest import register_tiny
from pipeline.config.extract import ExtractConfig
from pipeline.commands.extract import extract
register_tiny()
data, cache, weights, part = sys.argv[1:]
given = dict(backbone="tiny", weights=weights, image_size=32, precision="float32", device="cpu", threads=1)
print(extract(ExtractConfig(data, cache, set="data", shard_of=part, **given)).computed)
"""


def rows_of(cache: Path) -> dict[RowKey, bytes]:
    """Every row that is served, by key."""
    opened = FeatureCache.open(cache)
    keys = sorted({key for shard in opened.shards for key in shard.keys})
    return dict(zip(keys, map(bytes, opened.read(keys)), strict=True))


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True), st.integers(1, 9))
def test_parts_are_a_partition(digests: list[bytes], parts: int) -> None:
    """Every row is in exactly one; all views of an image are in the same."""
    keys = [(digest, view) for digest in digests for view in ("pass:0", "pass:1")]
    found = [unpack_keys(_part_of(pack_keys(keys), (number, parts))) for number in range(1, parts + 1)]
    for number, part in enumerate(found):
        assert all(int.from_bytes(digest[-8:]) % parts == number for digest, _ in part)
    assert sorted(key for part in found for key in part) == sorted(keys)
    for part in found:
        assert {digest for digest, view in part if view == "pass:0"} == {digest for digest, _ in part}


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_make_the_rows_that_one_process_makes(run_extract: Extract, tmp_path: Path, parts: int) -> None:
    """In any order, and again; the last step indexes them and computes nothing."""
    whole = run_extract(cache=tmp_path / "whole", passes=1)

    def one(number: int) -> int:
        return run_extract(passes=1, shard_of=f"{number}/{parts}").computed

    computed = [one(number) for number in reversed(range(1, parts + 1))]
    assert sum(computed) == whole.computed == 36
    assert [one(number) for number in range(1, parts + 1)] == [0] * parts
    cache = tmp_path / "features"
    assert FeatureCache.open(cache).sets() == []
    for _ in range(2):
        assert run_extract(passes=1, finish=True).computed == 0
    assert rows_of(cache) == rows_of(tmp_path / "whole")
    assert FeatureCache.open(cache).index().digest == FeatureCache.open(tmp_path / "whole").index().digest
    assert FeatureCache.open(cache).index().passes == 1
    assert sum(len(shard) for shard in FeatureCache.open(cache).shards) == 36  # none is there twice


def test_processes_at_once(run_extract: Extract, data: Path, tiny: str, tmp_path: Path) -> None:
    """Three of them begin the same cache; together they compute each row once."""
    run_extract(cache=tmp_path / "whole")
    command = [sys.executable, "-c", PART, str(data), str(tmp_path / "features"), tiny]
    started = [
        subprocess.Popen([*command, f"{number}/3"], cwd=REPOSITORY, stdout=subprocess.PIPE) for number in (1, 2, 3)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sum(map(int, printed)) == 24
    assert run_extract(finish=True).computed == 0
    assert rows_of(tmp_path / "features") == rows_of(tmp_path / "whole")


def test_a_part_that_is_missing_is_said_or_computed(run_extract: Extract) -> None:
    """--finish computes nothing; the next extract does what is missing, and indexes all of it."""
    first = run_extract(shard_of="1/2")
    with pytest.raises(MissingRows, match=f"{24 - first.computed} rows"):
        run_extract(finish=True)
    assert run_extract().computed == 24 - first.computed


def test_parts_need_not_hash_what_was_hashed(
    run_extract: Extract, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After --hash-only they hash what changed since; a change that size and time hide is found by who decodes it."""
    run_extract(cache=tmp_path / "whole")
    listed = run_extract(hash_only=True)
    assert (listed.computed, listed.rows, listed.images) == (0, 24, 24)
    assert FeatureCache.open(tmp_path / "features").sets() == []
    hashed: list[str] = []
    digest = records._digest

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(records, "_digest", noted)
    computed = [run_extract(shard_of=f"{number}/2").computed for number in (1, 2)]
    assert (sum(computed), hashed) == (24, [])
    run_extract(finish=True)
    assert len(hashed) == 24
    assert not list((tmp_path / "features" / "listings").iterdir())
    assert rows_of(tmp_path / "features") == rows_of(tmp_path / "whole")
    # The index serves as well, once there is one.
    file = draw_image(data / "train" / "1" / "image_0.jpg", 5000)
    hashed.clear()
    assert sum(run_extract(shard_of=f"{number}/2").computed for number in (1, 2)) == 1
    assert set(hashed) == {file.name}


def test_a_hidden_change_is_found_by_who_decodes_it(run_extract: Extract, data: Path) -> None:
    """Other bytes under the size and time that were listed: no row is made of them."""
    run_extract(hash_only=True)
    file = data / "train" / "1" / "image_0.jpg"
    was = file.stat()
    file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(ImageSetError, match="since it was listed"):
        run_extract(shard_of="1/1")
    run_extract(hash_only=True)
    with pytest.raises(DecodeError):
        run_extract(shard_of="1/1")


@pytest.mark.parametrize("beside", [{"finish": True}, {"shard_of": "1/2"}, {"dry_run": True}])
def test_hashing_goes_before_all_others(beside: dict[str, object]) -> None:
    """And not with them."""
    with pytest.raises(ConfigError, match="--hash-only"):
        ExtractConfig(Path("data"), Path("cache"), hash_only=True, **beside)  # type: ignore[arg-type]


def test_bad_files_are_recorded_by_the_last_step(run_extract: Extract, data: Path) -> None:
    """A part leaves them out; an extract that skips them lists them."""
    (data / "train" / "1" / "bad.jpg").write_text("text")
    skipped = [run_extract(shard_of=f"{number}/2", skip_bad=True).skipped for number in (1, 2)]
    assert sorted(map(len, skipped)) == [0, 1]
    assert [bad["path"] for bad in run_extract(skip_bad=True).skipped] == ["train/1/bad.jpg"]


def test_parts_write_beside_each_other_and_beside_nothing_else(tmp_path: Path) -> None:
    """Not the same part twice; nothing that merges, indexes or prunes while one writes, nor the other way round."""
    with writing(tmp_path / "cache", (1, 2)), writing(tmp_path / "cache", (2, 2)):
        # Of an earlier writer that was killed: it has no part in this.
        (tmp_path / "cache" / layout.HOLDER_FILE).write_text('{"process": 9, "machine": "m", "since": "then"}')
        with pytest.raises(CacheBusy, match=r"another process .*part 1/2"), writing(tmp_path / "cache", (1, 2)):
            pass
        with pytest.raises(CacheBusy), writing(tmp_path / "cache"):
            pass
    with writing(tmp_path / "cache"), pytest.raises(CacheBusy), writing(tmp_path / "cache", (1, 2)):
        pass


@pytest.mark.parametrize("given", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_what_is_no_part_is_refused(given: str) -> None:
    """With what is expected."""
    with pytest.raises(ConfigError, match="--shard-of"):
        ExtractConfig(Path("data"), Path("cache"), shard_of=given)


def test_a_part_reports_oddities_of_its_files_once(run_extract: Extract, data: Path) -> None:
    """It decodes them, so nobody else can; a file with two views is one file."""
    first, second = (Image.fromarray(np.full((40, 44, 3), value, np.uint8)) for value in (50, 200))
    first.save(data / "train" / "1" / "pages.tif", save_all=True, append_images=[second])
    lines: list[str] = []
    result = run_extract(shard_of="1/1", passes=1, say=lines.append)
    assert [count for count, _ in result.remarks.values()] == [1]
    assert any(line.startswith("1 file with more than one page") for line in lines)
