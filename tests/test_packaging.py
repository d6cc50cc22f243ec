"""What is installed: names in site-packages, a quick start, no import back up."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.errors import ParityError, PipelineError
from pipeline.machine.cluster import _refuse_other_packages
from pipeline.model.parity import _ask_fresh_process


@pytest.mark.parametrize("name", ["cache", "pipeline", "cli"])
def test_no_other_distribution_owns_our_names(name: str) -> None:
    """The generic top-level names belong to headgraft alone."""
    assert set(packages_distributions().get(name, [])) <= {"headgraft"}


def test_help_does_not_import_torch() -> None:
    """`headgraft --help` starts without torch, h5py, scikit-learn or Pillow."""
    code = (
        "import sys, cli\n"
        "try: cli.main(['extract', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torchvision', 'h5py', 'sklearn', 'PIL', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(result.stderr.strip().splitlines()[-1])
    assert "torch" not in loaded
    assert "torchvision" not in loaded
    assert "sklearn" not in loaded


def test_the_cache_never_imports_torch_or_the_pipeline() -> None:
    """cli, pipeline, cache: imports go one way."""
    for path in (REPOSITORY / "cache").glob("*.py"):
        names = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not {name.split(".")[0] for name in names} & {"torch", "torchvision", "pipeline", "cli"}, path


def test_the_pipeline_never_imports_the_command_line() -> None:
    """Nor anything but itself, the cache and its dependencies."""
    for path in (REPOSITORY / "pipeline").glob("**/*.py"):
        assert not re.search(r"^\s*(import|from) cli\b", path.read_text(), re.MULTILINE), path


def test_python_cli_py_is_the_same_program() -> None:
    """Run as a file it shows the same usage."""
    result = subprocess.run(
        [sys.executable, "cli.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "train-head" in result.stdout


@pytest.mark.parametrize("name", ["cache", "pipeline"])
def test_a_file_of_our_name_that_comes_first_is_named_in_one_sentence(name: str, tmp_path: Path) -> None:
    """By the program, where it is found on Python's path before ours."""
    (tmp_path / f"{name}.py").write_text("")
    command = [sys.executable, "-m", "cli", "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / name}.py ")
    assert result.stderr.count("\n") == 1


def test_the_pipeline_names_a_file_that_hides_the_cache(tmp_path: Path) -> None:
    """Where a script has a cache.py beside it; python -P does not look there."""
    (tmp_path / "cache.py").write_text("")
    (tmp_path / "script.py").write_text("import pipeline.config")
    for options, code in (([], 1), (["-P"], 0)):
        command = [sys.executable, *options, "script.py"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert code == 0 or result.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'cache.py'} ")


def test_our_own_processes_import_our_own_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies in the folder the program runs in; workers of Ray look there first, so that is refused."""
    monkeypatch.chdir(tmp_path)
    for name in ("cache", "pipeline", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ParityError, match=r"missing\.safetensors does not exist"):
        _ask_fresh_process({"model": "missing.safetensors", "weights": None, "paths": [], "in_batches": 0})
    with pytest.raises(PipelineError, match=r"cache\.py"):
        _refuse_other_packages(tmp_path)
    _refuse_other_packages(REPOSITORY)
    _refuse_other_packages(REPOSITORY / "tests")
