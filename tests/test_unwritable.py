"""Places that cannot be written: refused before any work; a run that is read-only can be scored all the same."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import Extract, logged, read_only, train_config

from cache.errors import CacheError
from cache.files import refuse_unwritable
from cache.lock import claimed, writing
from cli import main
from pipeline.commands.train import train_head

NOBODY = 65534


@pytest.fixture(params=["below a file", "in a folder of the system", "read-only", "a name too long"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where nothing can be written, whoever asks."""
    if request.param == "below a file":
        (tmp_path / "file").write_text("text")
        yield tmp_path / "file" / "runs"
    elif request.param == "in a folder of the system":
        if not Path("/proc/self").exists():
            pytest.skip("no /proc here")
        yield Path("/proc/headgraft/runs")
    elif request.param == "a name too long":
        yield tmp_path / ("x" * 300) / "runs"
    else:
        (tmp_path / "disk").mkdir()
        with read_only(tmp_path / "disk"):
            yield tmp_path / "disk" / "runs"


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder of root's, and no right to write in it."""
    if os.geteuid() != 0:
        pytest.skip("to be another user takes root")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def run(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


COMMANDS = {
    "train-head": "train-head --cache {none} --run {place}",
    "sweep": "sweep --cache {none} --run {place}",
    "export": "export {none} {place}/model.safetensors",
    "export --onnx": "export {none} {fine}/model.safetensors --onnx {place}/model.onnx",
    "model info --card": "model info {none} --card {place}/card.md",
    "cache pack": "cache pack {none} {place}/features.h5",
    "cache reduce": "cache reduce {none} --out {place}",
    "cache pull": "cache pull file://{none} {place}",
    "extract": "extract {none} --cache {place}",
    "extract --hash-only": "extract {none} --cache {place} --hash-only",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(command: str, place: Path, tmp_path: Path) -> None:
    """With one sentence that names it: what the command would read is not there at all, and is not asked for."""
    if command == "export --onnx":
        pytest.importorskip("onnxscript")
    given = {"none": tmp_path / "none", "place": place, "fine": tmp_path / "fine"}
    result = run(*(part.format(**given) for part in COMMANDS[command].split()))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot write in {place}: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "fine").exists()


def test_a_place_of_another_user_is_refused() -> None:
    """As a folder to write in, as one to make another in, and as a run's."""
    with as_nobody() as folder:
        for path in (folder, folder / "runs" / "head"):
            with pytest.raises(CacheError, match=f"{path}: Permission denied"):
                refuse_unwritable(path)
            with pytest.raises(CacheError, match=f"{path}: Permission denied"), claimed(path):
                pass
        assert list(folder.iterdir()) == []


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    """Also where folders would have to be made, and by a link."""
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "runs" / "head", tmp_path / "link" / "head"):
        refuse_unwritable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="cannot write in"):
        refuse_unwritable(tmp_path / "link")


def test_a_cache_whose_shards_cannot_be_written_is_refused(tmp_path: Path, run_extract: Extract) -> None:
    """Before images are hashed: the folder itself can be written, the one below cannot."""
    run_extract()
    with read_only(tmp_path / "features" / "shards"):
        with pytest.raises(CacheError, match="shards: Read-only"):
            run_extract(data=tmp_path / "none")
        with pytest.raises(CacheError, match="shards: Read-only"), writing(tmp_path / "features"):
            pass
        assert run_extract(dry_run=True).reused == 24


@pytest.fixture
def trained(run_extract: Extract, tmp_path: Path) -> Path:
    """A run that has not been scored."""
    run_extract(passes=1)
    train_head(train_config(tmp_path / "features", tmp_path / "run"))
    return tmp_path / "run"


def test_a_read_only_run_is_evaluated_and_says_what_is_not_recorded(trained: Path) -> None:
    """The object on standard output is complete, one line says that the run does not know of it."""
    with read_only(trained):
        result = run("evaluate", trained, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["images"] == 4
    assert result.stderr == f"{trained} does not record this evaluation: Read-only file system\n"
    assert json.loads((trained / "run.json").read_text())["scored"] == []


def test_the_report_of_a_read_only_run_goes_elsewhere(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --output it is refused before anything is looked for, and that option is named."""
    with read_only(trained):
        result = run("report", trained, "--output", tmp_path / "pages" / "page.html")
        assert result.exit_code == 0, result.output
        assert (tmp_path / "pages" / "page.html").is_file()
        monkeypatch.setattr("pipeline.commands.report.find", None)
        result = run("report", trained)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot write in {trained}: Read-only file system")
    assert "--output" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_read_only_cache_is_trained_on(run_extract: Extract, tmp_path: Path) -> None:
    """The rows in a basis cannot be kept for the next run, which is said; a damaged file of them stays."""
    run_extract(passes=1)
    train_head(train_config(tmp_path / "features", tmp_path / "a"))
    (kept,) = (tmp_path / "features" / "projections").iterdir()
    kept.write_bytes(b"damaged")
    said: list[str] = []
    with read_only(tmp_path / "features"):
        logged(said, train_head, train_config(tmp_path / "features", tmp_path / "b"))
    assert [line for line in said if "does not keep" in line and "Read-only" in line]
    a, b = (tmp_path / name / "head.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
