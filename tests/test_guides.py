"""The guides: each is listed, its programs are programs, and the container file names what exists."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from run_guides import FILE, GUIDES, PAGES, commands

from cli import main
from pipeline.command_line.command import Command

CONTAINERFILE = (GUIDES / "Containerfile").read_text("utf-8")


def instructions(name: str) -> list[str]:
    """Arguments of each instruction `name` of the container file."""
    return re.findall(rf"^{name} (.*)", CONTAINERFILE, re.MULTILINE)


def test_every_guide_is_listed() -> None:
    """In the order of the list, each once."""
    listed = re.findall(r"^\| \[([a-z-]+\.md)\]", (GUIDES / "README.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in PAGES if page.parent == GUIDES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_commands_and_its_python_compiles(page: Path) -> None:
    """Blocks of Python that are files are run by `make guides`; all others are at least Python."""
    text = page.read_text("utf-8")
    assert len(commands(text)) > 2
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        compile(block, str(page), "exec")
    for _, name in FILE.findall(text):
        assert any(name in command for command in commands(text)), name


def test_commands_are_indented_lines_and_may_be_continued() -> None:
    """What is fenced is none."""
    text = "Text\n\n    headgraft a \\\n        --b\n    curl c\n\n```python\n# a.py\n    indented()\n```\n"
    assert commands(text) == ["headgraft a --b", "curl c"]
    assert FILE.findall(text) == [("# a.py\n    indented()\n", "a.py")]


def test_the_container_file_names_extras_and_files_that_exist() -> None:
    """Those of pyproject.toml, and of the folder of the source, with all that pyproject.toml refers to."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    (install,) = (line for line in instructions("RUN") if "pip install" in line)
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", install)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    assert {"pyproject.toml", project["readme"], *project["license-files"], "constraints.txt"} <= set(copied)
    (version,) = re.findall(r"python:(3\.\d+)-slim", instructions("FROM")[0])
    assert tuple(map(int, version.split("."))) >= tuple(map(int, project["requires-python"].strip(">=").split(".")))


def test_the_container_starts_a_command_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry point and command together are parsed; nothing runs."""
    ran: list[str | None] = []
    monkeypatch.setattr(Command, "invoke", lambda command, context: ran.append(command.name))
    words = json.loads(instructions("ENTRYPOINT")[0]) + json.loads(instructions("CMD")[0])
    assert words[0] == "headgraft"
    main.main(words[1:], standalone_mode=False)
    assert ran == ["serve"]
