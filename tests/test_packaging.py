"""What is installed: names in site-packages, a quick start, no import back up."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest
from conftest import REPOSITORY


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
    for path in (REPOSITORY / "pipeline").glob("*.py"):
        assert "import cli" not in path.read_text()
        assert "from cli" not in path.read_text()


def test_python_cli_py_is_the_same_program() -> None:
    """Run as a file it shows the same usage."""
    result = subprocess.run(
        [sys.executable, "cli.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "train-head" in result.stdout
