"""docs/tutorial.ipynb: the cells of docs/tutorial.py, run from top to bottom with their outputs (`make notebook`)."""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS.parent / "tests"))

from demo import write_images  # noqa: E402  # where its folder is known


def notebook() -> NotebookNode:
    """The cells of the script, without outputs."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made: NotebookNode = new_notebook(metadata={"kernelspec": kernel})
    _, *cells = re.split(r"^# %%", (DOCS / "tutorial.py").read_text("utf-8"), flags=re.MULTILINE)
    for number, cell in enumerate(cells):
        kind, _, source = cell.partition("\n")
        if "markdown" in kind:
            made.cells.append(new_markdown_cell(re.sub(r"^# ?", "", source.strip(), flags=re.MULTILINE)))
        else:
            made.cells.append(new_code_cell(source.strip()))
        made.cells[-1].id = f"cell-{number}"
    return made


def run(made: NotebookNode, images: Path) -> None:
    """Run all cells in a new kernel; CellExecutionError of the first that fails."""
    before = os.environ.copy()
    os.environ |= {
        "HEADGRAFT_FLOWERS": str(images.resolve()),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, which would draw a bar
        "PYTHONPATH": os.pathsep.join([str(DOCS.parent), before.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    try:
        NotebookClient(made, timeout=1200, kernel_name="python3", record_timing=False).execute()
    finally:
        os.environ.clear()
        os.environ |= before


def main() -> None:
    """Write the notebook; of the flowers, or where they are not of scikit-learn's digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DOCS / "tutorial.ipynb")
    parser.add_argument("--digits", action="store_true", help="of digits, although there are flowers")
    given = parser.parse_args()
    images = Path(os.environ.get("HEADGRAFT_FLOWERS") or DOCS.parent.parent / "shared" / "flowers102")
    with tempfile.TemporaryDirectory() as folder:
        if given.digits or not (images / "train").is_dir():
            images = Path(folder)
            write_images(images)
        made = notebook()
        run(made, images)
    nbformat.write(made, given.output)
    print(f"{given.output}: {given.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
