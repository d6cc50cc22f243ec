"""The house in order: imports in one direction, commands that nothing builds on."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import REPOSITORY

SOURCES = sorted([REPOSITORY / "cli.py", *REPOSITORY.glob("cache/*.py"), *REPOSITORY.glob("pipeline/**/*.py")])
MODULES = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in SOURCES}


def imported(path: Path) -> Iterator[str]:
    """Modules of the project that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from {node.module, *(f"{node.module}.{name.name}" for name in node.names)} & MODULES
        if isinstance(node, ast.Import):
            yield from {name.name for name in node.names} & MODULES


def room(module: str) -> str:
    """What a module belongs to: a folder of pipeline/ or a file there, cache or cli."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def name_of(path: Path) -> str:
    """Of a module, from its file."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def test_a_command_is_imported_by_the_command_line_and_the_public_names_alone() -> None:
    """What several commands need lies below them."""
    found = {(room(name_of(path)), module) for path in SOURCES for module in imported(path)}
    users = {user for user, module in found if module.startswith("pipeline.commands.") and user != "pipeline.commands"}
    assert users == {"cli", "pipeline.command_line", "pipeline.api"}


def test_no_command_imports_another() -> None:
    """Each is a file of its own on the floors below."""
    commands = [path for path in SOURCES if path.parent.name == "commands"]
    assert len(commands) > 10
    assert [
        path for path in commands if any(module.startswith("pipeline.commands.") for module in imported(path))
    ] == []


def test_rooms_import_in_one_direction() -> None:
    """No room imports what imports it, however many rooms lie between."""
    arrows: dict[str, set[str]] = {}
    for path in SOURCES:
        here = room(name_of(path))
        arrows.setdefault(here, set()).update(room(module) for module in imported(path) if room(module) != here)
    TopologicalSorter(arrows).prepare()  # CycleError names the rooms


def test_no_two_modules_import_each_other() -> None:
    """Nor in a longer circle, within a room either."""
    TopologicalSorter({name_of(path): set(imported(path)) - {name_of(path)} for path in SOURCES}).prepare()


def test_every_module_of_a_folder_is_named_where_the_folders_are_described() -> None:
    """In CONTRIBUTING.md, and none that does not exist; commands are named by docs/commands.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    for folder in sorted(path.parent for path in REPOSITORY.glob("pipeline/*/__init__.py")):
        if folder.name == "commands":
            continue
        (found,) = re.findall(rf"^- `{folder.name}/`(.*(?:\n  .*)*)", text, re.MULTILINE)
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert set(re.findall(r"`(\w+)`", found)) == modules, folder.name


def test_backbone_constants_have_one_home() -> None:
    """Mean and standard deviation are named where backbones are; the name of VGG's layer is read off the network."""
    assert [path.name for path in SOURCES if "0.485" in path.read_text("utf-8")] == ["spec.py"]
    assert [path.name for path in SOURCES if '"avgpool"' in path.read_text("utf-8")] == []
