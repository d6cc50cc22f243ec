"""The README's example runs as it stands."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, draw_dataset, require_weights


@pytest.mark.real
def test_the_first_python_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `images` a data set and `folder` a place for results."""
    require_weights("alexnet")
    readme = REPOSITORY / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, "README.md has no python block"
    if "vgg16" in blocks[0]:
        require_weights("vgg16")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    exec(compile(blocks[0], "README.md", "exec"), {"images": draw_dataset(tmp_path / "images"), "folder": folder})
