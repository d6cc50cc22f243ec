"""Writers that are killed, that meet a full or failing disk, or that are two."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Extract, Times

from cache.check import verify
from cache.errors import CacheError
from cache.store import FeatureCache
from cache.writer import ShardWriter

EXTRACT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
import cache.writer
conftest.register_tiny()
cache.writer.ShardWriter.__init__.__defaults__ = (2, 20.0)
from cli import main
main()
"""


def command_line(data: Path, weights: str, cache: Path) -> list[str]:
    """`headgraft extract` with the tiny backbone, in a process of its own, in shards of two rows."""
    options = f"--backbone tiny --weights {weights} --image-size 32 --precision float32 --device cpu --threads 1"
    script = EXTRACT.format(tests=str(REPOSITORY / "tests"))
    return [sys.executable, "-c", script, "extract", str(data), "--cache", str(cache), "--json", *options.split()]


def test_no_kill_loses_an_acknowledged_row(tmp_path: Path, times: Times) -> None:
    """SIGKILL at random moments, each cache carried on to its end: nothing lost, wrong, bad or left lying."""
    program = [sys.executable, str(REPOSITORY / "tests" / "kill_writers.py"), str(tmp_path), str(times(6, 200))]
    done = subprocess.run(
        program,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] >= times(6, 200)
    assert found["rows"] == found["expected_rows"] > 0
    assert [found[name] for name in ("failed", "lost_rows", "wrong_rows", "bad_files", "stray_files")] == [0] * 5


def test_two_processes_make_one_cache(data: Path, tiny: str, tmp_path: Path, times: Times) -> None:
    """At the same time into one folder: each ends well or says who writes; rows as of one process, none twice."""
    for number in range(times(2, 20)):
        cache = tmp_path / f"cache_{number}"
        both = [
            subprocess.Popen(command_line(data, tiny, cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        ended = [(*process.communicate(), process.returncode) for process in both]
        assert min(status for _, _, status in ended) == 0
        for _, said, status in ended:
            assert status == 0 or (status == 1 and "is writing" in said and "Traceback" not in said)
        opened = FeatureCache.open(cache)
        assert verify(cache).bad == []
        keys = [key for shard in opened.shards for key in shard.keys]
        assert len(keys) == len(set(keys)) == 24
        assert not list(cache.rglob("*.tmp"))


def no_locks(*_: object) -> None:
    """What flock does on a file system that has none."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_locks_two_processes_still_serve_each_row_once(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has none: a second writer starts while the first is at work, and both end well."""
    monkeypatch.setattr("cache.lock.fcntl.flock", no_locks)
    monkeypatch.setattr("cache.writer.MERGE_BELOW", 0)
    inner: list[int] = []
    add = ShardWriter.add

    def interleaved(*given: Any) -> None:
        if not inner:
            inner.append(1)
            inner.append(run_extract(batch_size=5).computed)
        add(*given)

    monkeypatch.setattr(ShardWriter, "add", interleaved)
    assert run_extract(batch_size=8).computed == 24
    assert inner == [1, 24]
    cache = FeatureCache.open(tmp_path / "features")
    assert verify(cache.path).bad == []
    assert len(cache) == 24
    assert run_extract().computed == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 kB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=32k", "none", str(place)], check=False).returncode
    ):
        pytest.skip("no tmpfs can be mounted here: it takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_message(data: Path, tiny: str, small_disk: Path) -> None:
    """Exit status 1, no crash; what was written verifies, and with room again the run goes on."""
    cache = small_disk / "cache"
    done = subprocess.run(command_line(data, tiny, cache), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert [bad["shard"] for bad in verify(cache).bad] == []
    before = len(FeatureCache.open(cache))
    subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
    again = subprocess.run(command_line(data, tiny, cache), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["reused"] == before
    assert verify(cache).bad == []


def test_a_failing_fsync_is_one_message(run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk did not take is not counted as written."""
    fsync = os.fsync
    calls: list[int] = []

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr("cache.writer.ShardWriter.__init__.__defaults__", (2, 20.0))
    monkeypatch.setattr("cache.files.os.fsync", failing)
    with pytest.raises(CacheError, match="Input/output error"):
        run_extract(batch_size=2)
    monkeypatch.undo()
    assert verify(tmp_path / "features").bad == []


WRITE = """
import sys, numpy as np
from pathlib import Path
from cache.errors import CacheError
from cache.lock import writing
from cache.manifest import Base, Manifest
from cache.shard import ShardHeader
from cache.store import FeatureCache
from cache.writer import ShardWriter
from cache.writer import ShardWriter
base = Base("b", "l", "0" * 64, (4,), 32, 37, "i", (0, 0, 0), (1, 1, 1), "d", "float32")
try:
    with writing(Path(sys.argv[1])):
        cache = FeatureCache.create(Path(sys.argv[1]), Manifest(base))
        with ShardWriter(cache.path, ShardHeader(base.digest, (4,)), rows_per_shard=1) as writer:
            for number in range(10):
                writer.add([(bytes([number]) * 32, "pass:0")], np.full((1, 4), number, np.float16))
except CacheError as error:
    sys.exit(f"error: {error}")
"""


def test_a_failing_disk_under_a_real_process_is_one_message(tmp_path: Path, times: Times) -> None:
    """The system's own fsync fails, at random: injected by libfiu into a writer (without torch, which it breaks)."""
    if not shutil.which("fiu-run"):
        pytest.skip("libfiu (fiu-run) is not installed")
    always = "enable name=posix/io/sync/fsync"
    for number in range(times(4, 100)):
        cache = tmp_path / f"cache_{number}"
        how = "enable_random name=posix/io/sync/fsync,probability=0.03" if number else always
        command = ["fiu-run", "-x", "-c", how, sys.executable, "-c", WRITE, str(cache)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "") or (
            done.returncode == 1 and done.stderr.startswith("error: could not write") and done.stderr.count("\n") == 1
        )
        assert done.returncode == 1 or number
        if (cache / "manifest.json").exists():
            assert verify(cache).bad == []


def test_a_cache_that_is_deleted_midway_is_one_message(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, with what to do."""
    add = ShardWriter.add

    def deleting(*given: Any) -> None:
        shutil.rmtree(tmp_path / "features", ignore_errors=True)
        add(*given)

    monkeypatch.setattr(ShardWriter, "add", deleting)
    with pytest.raises(CacheError, match="could not write"):
        run_extract()


def test_a_read_only_place_is_one_message(data: Path, tiny: str, small_disk: Path) -> None:
    """Said before anything is computed."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = subprocess.run(command_line(data, tiny, small_disk / "c"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
