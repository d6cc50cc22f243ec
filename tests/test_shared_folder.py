"""One folder seen by several machines, as far as one can play them: by mounts, host names and process numbers."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Extract
from test_parts import PART, rows_of

from cache.errors import CacheBusy, CacheError
from cache.files import temporary_name
from cache.lock import writing
from cache.store import FeatureCache

# A day of attributes and of names that are not there, kept by each mount: worse than any NFS client.
CACHING = "attr_timeout=86400,entry_timeout=86400,negative_timeout=86400"
MOUNTS = {"bind": "mount --bind", "bindfs": f"bindfs -o {CACHING}"}

UNSHARE = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]

# The part of test_parts, begun when it is told to, so that two begin together.
PART_THERE = PART.replace(
    "data, cache, weights, part = sys.argv[1:]",
    "cache, data, weights, part = sys.argv[1:]\nprint('ready', flush=True)\nsys.stdin.readline()",
)

HOLD = """
import sys
from pathlib import Path
from cache.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

BEGIN = """
import os, sys
from pathlib import Path
from cache.files import temporary_name
file = Path(sys.argv[1]) / "shards" / temporary_name()
file.write_bytes(b"half")
print(file.name, flush=True)
sys.stdin.read()
os.replace(file, file.with_name("whole"))
"""


@pytest.fixture
def machines(tmp_path: Path) -> "Machines":
    """Processes that see a folder as other machines would; skips where there can be none."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts and host names of a process's own here: that takes root, and unshare")
    return Machines(tmp_path)


class Machines:
    """`start` runs Python on one of them; all see `disk`, each at a place of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self.disk.mkdir()

    def start(self, name: str, mount: str, script: str, *arguments: str) -> subprocess.Popen[str]:
        """`script` with the cache's place there before `arguments`."""
        if mount == "bindfs" and not (shutil.which("bindfs") and Path("/dev/fuse").exists()):
            pytest.skip("bindfs, or /dev/fuse, is not here")
        place = self.folder / name
        place.mkdir()
        shell = f'{MOUNTS[mount]} "$1" "$2" && hostname {name} && shift 2 && exec "$@"'
        python = [sys.executable, "-c", script, str(place / "features"), *arguments]
        return subprocess.Popen(
            [*UNSHARE, "sh", "-c", shell, "sh", str(self.disk), str(place), *python],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def together(machines: "Machines", mount: str, *parts: tuple[str, ...]) -> list[int]:
    """Compute parts at the same time, each on a machine of its own; returns how many rows each computed."""
    started = [machines.start(f"machine{n}", mount, PART_THERE, *part) for n, part in enumerate(parts)]
    assert [line_of(process) for process in started] == ["ready"] * len(parts)
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert [status for _, _, status in ended] == [0] * len(parts), ended
    return [int(printed) for printed, _, _ in ended]


def line_of(process: subprocess.Popen[str]) -> str:
    """The next that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("mount", MOUNTS)
def test_parts_of_two_machines_make_the_rows_of_one(
    run_extract: Extract, data: Path, tiny: str, tmp_path: Path, machines: Machines, mount: str
) -> None:
    """At the same time into one folder; indexed on a third, each row is there once."""
    run_extract(cache=tmp_path / "whole")
    computed = together(machines, mount, *((str(data), tiny, f"{number}/2") for number in (1, 2)))
    assert sum(computed) == 24
    features = machines.disk / "features"
    assert run_extract(cache=features, finish=True).computed == 0
    assert rows_of(features) == rows_of(tmp_path / "whole")
    assert sum(len(shard) for shard in FeatureCache.open(features).shards) == 24
    assert not list(features.rglob("*.tmp"))


def test_where_locks_are_not_shared_each_row_is_still_served_once(
    run_extract: Extract, data: Path, tiny: str, tmp_path: Path, machines: Machines
) -> None:
    """Each machine locks for itself, so both do the same part; what is served is what one makes."""
    run_extract(cache=tmp_path / "whole")
    computed = together(machines, "bindfs", (str(data), tiny, "1/1"), (str(data), tiny, "1/1"))
    print(computed)
    assert max(computed) <= 24 <= sum(computed)
    features = machines.disk / "features"
    assert run_extract(cache=features, finish=True).computed == 0
    assert rows_of(features) == rows_of(tmp_path / "whole")
    assert sum(len(shard) for shard in FeatureCache.open(features).shards) == 24


def test_locks_hold_across_mounts(machines: Machines) -> None:
    """Whoever comes second is told the machine that writes."""
    first = machines.start("machine1", "bind", HOLD)
    assert line_of(first) == "held", first.communicate()
    with pytest.raises(CacheBusy, match="machine1"), writing(machines.disk / "features"):
        pass
    with pytest.raises(CacheBusy), writing(machines.disk / "features", (1, 2)):
        pass
    first.communicate()
    with writing(machines.disk / "features"):
        pass


@pytest.mark.parametrize("own", ["--uts --pid", "--pid"])
def test_what_a_writer_of_another_machine_is_at_is_left_alone(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    """Its process number says nothing here, also where only that sets the two apart; a day later it is cleared."""
    monkeypatch.setattr(f"{__name__}.UNSHARE", ["unshare", "--mount", *own.split(), "--fork", "--mount-proc"])
    shards = machines.disk / "features" / "shards"
    shards.mkdir(parents=True)
    if "--uts" not in own:
        monkeypatch.setitem(MOUNTS, "bind", "hostname() { :; }; mount --bind")
    writer = machines.start("machine1", "bind", BEGIN)
    begun = shards / line_of(writer)
    for part in (None, (2, 2)):
        with writing(machines.disk / "features", part):
            assert begun.read_bytes() == b"half"
    writer.communicate()
    assert [file.name for file in shards.iterdir()] == ["whole"]
    begun.write_bytes(b"half")
    os.utime(begun, (0, 0))
    with writing(machines.disk / "features"):
        assert not begun.exists()


def test_processes_of_one_machine_have_its_name(tmp_path: Path) -> None:
    """What one that was killed here left is cleared at once."""
    (tmp_path / "shards").mkdir()
    name = subprocess.run(
        [sys.executable, "-c", "from cache.files import temporary_name; print(temporary_name())"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert name.split("-")[0] == temporary_name().split("-")[0]
    (tmp_path / "shards" / name).write_bytes(b"half")
    with writing(tmp_path):
        assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_worked_on(
    run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Once a command, by parts too."""

    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("cache.lock.fcntl.flock", without)
    for options in ({"shard_of": "1/2"}, {"shard_of": "2/2"}, {"finish": True}):
        said: list[str] = []
        run_extract(**options, say=said.append)
        assert [line for line in said if "without locks" in line] == [
            f"{tmp_path / 'features'} is on a file system without locks ({os.strerror(number)}): "
            "two writers there may do the same work"
        ]
    monkeypatch.undo()
    assert len(FeatureCache.open(tmp_path / "features")) == 24


def test_locks_can_be_had_over_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a shared one needs a file open for reading, one held alone a file open for writing; held is EACCES."""
    held: list[int] = []

    def over_nfs(handle: int, how: int) -> None:
        mode = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if how & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if held:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("cache.lock.fcntl.flock", over_nfs)
    with writing(tmp_path), writing(tmp_path, (1, 2)):
        held.append(1)
        with pytest.raises(CacheBusy), writing(tmp_path):
            pass


def test_a_lock_that_fails_otherwise_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the server went away."""

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("cache.lock.fcntl.flock", stale)
    with pytest.raises(CacheError, match="Stale file handle"), writing(tmp_path):
        pass
