"""The examples of the documents: Python runs as it stands, and command lines are those of the program."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import REPOSITORY, draw_dataset, require_weights
from demo import write_images

from cli import main
from pipeline.backbones.catalog import BACKBONES
from pipeline.command_line.command import Command
from pipeline.search.space import Space

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def text_of(name: str) -> str:
    """Of a document."""
    return (REPOSITORY / name).read_text("utf-8")


def found(pattern: str) -> list[tuple[str, str]]:
    """Each document with each match of a pattern that has one group."""
    return [
        (str(document.relative_to(REPOSITORY)), match)
        for document in DOCUMENTS
        for match in re.findall(pattern, document.read_text("utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize(("document", "line"), found(r"^ {4}headgraft (.*)"))
def test_a_command_line_is_one_of_the_program(document: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command, arguments, options and values are taken by the parser; nothing runs."""
    ran: list[str | None] = []
    monkeypatch.setattr(Command, "invoke", lambda command, context: ran.append(command.name))
    main.main(shlex.split(line.partition(" > ")[0], comments=True), standalone_mode=False)
    assert len(ran) == 1, document


def test_commands_that_prose_names_exist() -> None:
    """Those in backquotes, with or without their arguments."""
    named = found(r"`headgraft ([^`]+)`")
    assert len(named) > 10
    for document, line in named:
        command: click.Command = main
        for word in [word for word in line.split() if not word.startswith("-") and word.upper() != word]:
            if isinstance(command, click.Group):
                assert word in command.commands, (document, line)
                command = command.commands[word]


def test_targets_that_documents_name_exist() -> None:
    """In blocks and in backquotes: `make` knows them."""
    known = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = found(r"(?:^ {4}|`)make ([a-z][a-z-]*)")
    assert len(named) > 20
    assert [pair for pair in named if pair[1] not in known] == []


def test_the_search_space_of_the_quick_start_is_one(tmp_path: Path) -> None:
    """The lines of TOML, as they stand."""
    (tmp_path / "space.toml").write_text("\n".join(re.findall(r"^ {4}(\w+ = .*)", text_of("docs/quickstart.md"), re.M)))
    assert len(Space.load(tmp_path / "space.toml").domains) == 4


def run_python_of(document: str, names: dict[str, Any]) -> None:
    """Its blocks in their order, with these names."""
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(document), re.DOTALL | re.MULTILINE)
    assert blocks, document
    for block in blocks:
        exec(compile(block, document, "exec"), names)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.export
def test_python_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README.md, then docs/python.md with what that has left, `images` a data set and `folder` a place for results."""
    require_weights("alexnet")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    names = {"images": draw_dataset(tmp_path / "images"), "folder": folder}
    before = dict(BACKBONES)
    for document in ("README.md", "docs/python.md"):
        run_python_of(document, names)
    assert (tmp_path / "model.pt2").is_file()
    assert BACKBONES.keys() - before.keys() == {"narrow_resnet"}
    BACKBONES.pop("narrow_resnet")  # other tests see the backbones of the program


@pytest.mark.real
def test_python_of_your_own_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/own-notebook.md on handwritten digits; its classifiers are better than guessing."""
    for package in ("cleanlab", "umap"):
        pytest.importorskip(package, reason=f"{package} is not installed: make setup-notebook")
    for backbone in ("alexnet", "vgg16"):
        require_weights(backbone)
    monkeypatch.setenv("MPLBACKEND", "agg")
    write_images(tmp_path / "images")
    names: dict[str, Any] = {"images": tmp_path / "images", "folder": tmp_path}
    run_python_of("docs/own-notebook.md", names)
    valid = names["valid"]
    assert min(names[one].score(valid.X, valid.y) for one in ("classifier", "calibrated")) > 0.6
    assert (tmp_path / "map.png").is_file()
