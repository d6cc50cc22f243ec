"""docs/tutorial.ipynb: the cells of docs/tutorial.py, which run from top to bottom."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, require_weights

DOCS = REPOSITORY / "docs"


def cells(file: Path) -> list[dict[str, Any]]:
    """Of a notebook."""
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["cells"]
    return found


def test_the_notebook_has_the_cells_of_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make notebook` writes it; it is small, and names no folder of the machine that ran it."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: make setup-notebook")
    monkeypatch.syspath_prepend(str(DOCS))
    made = importlib.import_module("notebook").notebook().cells
    kept = [(one["cell_type"], "".join(one["source"])) for one in cells(DOCS / "tutorial.ipynb")]
    assert kept == [(one.cell_type, one.source) for one in made]
    text = (DOCS / "tutorial.ipynb").read_text("utf-8")
    assert len(text) < 1_000_000
    assert "site-packages" not in text
    assert str(REPOSITORY) not in text


@pytest.mark.real
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell, of digits: the first error would end it."""
    for package in ("nbclient", "ipykernel", "cleanlab", "fastapi"):
        pytest.importorskip(package, reason=f"{package} is not installed: make setup-notebook")
    require_weights("vgg16")
    file = tmp_path / "tutorial.ipynb"
    subprocess.run([sys.executable, DOCS / "notebook.py", "--digits", "--output", file], check=True)
    code = [one for one in cells(file) if one["cell_type"] == "code"]
    assert [one["execution_count"] for one in code] == list(range(1, len(code) + 1))
