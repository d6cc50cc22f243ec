"""headgraft doctor: what is there, and what to do where something is wrong or missing."""

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from conftest import tiny_tensors
from safetensors.torch import save_file
from test_cli import invoke

import cache.lock
from pipeline.backbones.catalog import backbone_spec
from pipeline.commands.doctor import Check, _import_fault, doctor

PARTS = ["headgraft", "Python", "torch", "torchvision", "decoding", "libraries", "devices", "precision", "memory"]
PARTS += ["weights", "weights folder", "current folder", "file locks"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where those of the default backbone would lie; torch hub has none either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HEADGRAFT_OFFLINE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return backbone_spec("vgg16").weights.path


def checks() -> dict[str, Check]:
    """By name."""
    return {one.name: one for one in doctor().checks}


def test_the_program_itself_can_be_imported_as_an_extra_names_it() -> None:
    """By the name of its package, which is not that of its distribution."""
    assert _import_fault("headgraft") == ""
    assert "No module" in _import_fault("not-there")


def test_a_healthy_machine_is_ready(weights: Path, tmp_path: Path) -> None:
    """Every part in one line, nothing fetched, nothing left behind."""
    weights.parent.mkdir(parents=True)
    save_file(tiny_tensors(), weights)
    assert invoke("doctor").exit_code == 0
    assert [*weights.parent.iterdir(), *Path().iterdir()] == [weights]
    found = doctor()
    extras = [f"[{one}]" for one in metadata.metadata("headgraft").get_all("Provides-Extra") or [] if one != "dev"]
    assert [one.name for one in found.checks] == PARTS + extras
    assert all(one.advice == "" for one in found.checks if one.status == "ok")
    assert all(one.advice for one in found.checks if one.status != "ok")
    assert len(found.in_words().splitlines()) == len(found.checks)
    by = {one.name: one for one in found.checks}
    assert by["weights"].found == weights.stem
    assert metadata.version("torch") in by["torch"].found
    assert all(one.status == "ok" for one in found.checks if one.name in PARTS[1:])


def test_with_json_it_prints_one_object(weights: Path) -> None:
    """The fields of the result."""
    result = invoke("doctor", "--json")
    assert '"ready": true' in result.stdout
    assert '{"name": "weights", "status": "missing"' in result.stdout


def test_weights_that_are_missing_can_be_fetched(weights: Path) -> None:
    """From the first source; offline they cannot, and stage one cannot run."""
    assert (checks()["weights"].status, doctor().ready) == ("missing", True)
    assert "64 MB from the package index" in checks()["weights"].advice
    assert not weights.parent.exists()


def test_missing_weights_offline_are_an_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless others are there, or torch hub has them."""
    monkeypatch.setenv("HEADGRAFT_OFFLINE", "1")
    result = invoke("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("error")]
    assert "HEADGRAFT_OFFLINE is 1" in line
    assert str(weights) in line
    weights.parent.mkdir(parents=True)
    save_file(tiny_tensors(), weights.with_stem("alexnet-IMAGENET1K_V1"))
    assert (checks()["weights"].status, doctor().ready) == ("warning", True)
    hub = weights.parents[3] / "hub" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / backbone_spec("vgg16").weights.enum.url.rsplit("/", 1)[-1]).touch()
    assert checks()["weights"].advice.endswith(str(next(hub.iterdir())))


def test_folders_that_cannot_be_written_are_errors(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one, and that of weights where these would have to be fetched."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    monkeypatch.chdir("/proc")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    found = checks()
    assert {name for name, one in found.items() if one.status == "error"} == {
        "weights",
        "weights folder",
        "current folder",
    }
    assert "--cache" in found["current folder"].advice
    assert "XDG_CACHE_HOME" in found["weights folder"].advice
    assert invoke("doctor").exit_code == 1


def test_a_user_without_a_home_is_an_error(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable that helps."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert checks()["weights"].status == "error"
    assert "XDG_CACHE_HOME" in checks()["weights"].found


def test_a_system_without_locks_is_said(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is possible all the same."""
    monkeypatch.setattr(cache.lock, "fcntl", None)
    assert (checks()["file locks"].status, doctor().ready) == ("warning", True)


@pytest.mark.parametrize(
    ("package", "part", "status"), [("optuna", "[optuna]", "warning"), ("torch", "torch", "error")]
)
def test_a_broken_package_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, part: str, status: str
) -> None:
    """With what its import raises, whatever that is; without torch, the other parts are looked at."""
    real = doctor.__globals__["import_module"]

    def broken(name: str) -> object:
        if name == package:
            raise AttributeError(f"{name} lost a part\nof itself")
        return real(name)

    monkeypatch.setitem(doctor.__globals__, "import_module", broken)
    if package not in sys.modules:
        pytest.importorskip(package)
    found = checks()
    assert found[part].status == status
    assert f"cannot be imported ({package} lost a part)" in found[part].found
    assert ("devices" in found) == (status == "warning")
    assert found["current folder"].status == "ok"


def test_versions_that_are_too_old_and_packages_that_are_missing(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a library, an error; of an extra, missing."""
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["torch>=99", "no-such-thing>=1", 'nor-this>=2; extra == "optuna"']
    )
    found = checks()
    assert found["torch"].status == found["libraries"].status == "error"
    assert ">=99" in found["torch"].found
    assert "no-such-thing is not installed" in found["libraries"].found
    assert found["[optuna]"].status == "missing"
    assert "'.[optuna]'" in found["[optuna]"].advice


@pytest.mark.parametrize(("installed", "status"), [("0.0.1", "warning"), (None, "error")])
def test_an_install_that_is_older_than_its_source(
    weights: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None, status: str
) -> None:
    """As an editable one after the source was updated; or none at all."""
    real: Callable[[str], str] = metadata.version

    def version(name: str) -> str:
        if name != "headgraft":
            return real(name)
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "version", version)
    assert checks()["headgraft"].status == status
    assert "pip install -e ." in checks()["headgraft"].advice
