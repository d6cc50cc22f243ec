"""The documents say what the program does and what was measured, and lead nowhere that is not there."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY

import cache.errors
import pipeline.api
import pipeline.errors

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), REPOSITORY / "cache" / "FORMAT.md"])


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """docs/write.py."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    yield importlib.import_module("write")
    for name in ("write", "reference", "tables", "tabular", "untouched_tables"):
        sys.modules.pop(name, None)


def test_the_command_reference_is_that_of_the_program(writer: ModuleType) -> None:
    """`python docs/write.py` writes it."""
    assert (REPOSITORY / "docs" / "commands.md").read_text("utf-8") == writer.commands()


def test_the_json_reference_is_that_of_the_results(writer: ModuleType) -> None:
    """`python docs/write.py` writes it; every field of a result is explained, and nothing else is."""
    assert (REPOSITORY / "docs" / "json.md").read_text("utf-8") == writer.json_page()
    for kind in writer.RESULTS.values():
        assert list(writer.attributes(kind)) == [field.name for field in fields(kind)], kind


def test_the_api_reference_is_that_of_the_public_names(writer: ModuleType) -> None:
    """`python docs/write.py` writes it; each public name has its place."""
    page = writer.api_page()
    assert (REPOSITORY / "docs" / "api.md").read_text("utf-8") == page
    assert [name for name in pipeline.api.__all__ if f"### {name}\n" not in page] == []


def test_every_command_that_prints_has_its_result_in_the_reference(writer: ModuleType) -> None:
    """But for one whose result is a file's own card, and those that print nothing."""
    names = set(re.findall(r"^## headgraft ([a-z -]+[a-z])", writer.commands(), re.MULTILINE))
    assert names - writer.RESULTS.keys() == {"label", "model info", "serve"}
    assert writer.RESULTS.keys() <= names


def test_every_error_has_a_code_of_its_own() -> None:
    """Short, hyphenated, listed in json.md."""
    listed = (REPOSITORY / "docs" / "json.md").read_text("utf-8")
    kinds = [one for one in (*vars(cache.errors).values(), *vars(pipeline.errors).values()) if isinstance(one, type)]
    codes = {one: one.code for one in kinds if issubclass(one, cache.errors.HeadgraftError)}
    assert len(set(codes.values())) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes.values())
    assert [code for code in codes.values() if f"| `{code}` |" not in listed] == ["error"]


def test_every_figure_of_the_results_comes_from_a_file(writer: ModuleType) -> None:
    """The documents hold the tables that the files in docs/results/ give; every table is in one of them."""
    for path in writer.WRITTEN:
        text = path.read_text("utf-8")
        assert "<!-- results:" in text
        assert writer.filled(text) == text
    named = {name for path in writer.WRITTEN for name in re.findall(r"<!-- results:(\w+) -->", path.read_text("utf-8"))}
    assert named == writer.TABLES.keys()


def test_results_say_what_repeats_them() -> None:
    """The command, the day and the machine."""
    files = sorted((REPOSITORY / "docs" / "results").glob("*.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text("utf-8"))
        assert found["command"].startswith(
            ("make results", "make gpu", "make bench-backbones", "make compare-backbones")
        )
        assert "torch" in found["hardware"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    """To files of the project, pictures too, and to headings of pages."""
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not _there(document, *link.partition("#")[::2])] == []


def _there(document: Path, file: str, heading: str) -> bool:
    """Whether the file of a link exists, and has the heading that it names."""
    target = document.parent / file if file else document
    if not target.exists() or not heading or target.suffix != ".md":
        return target.exists()
    text = re.sub(r"```.*?```", "", target.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_line_of_prose_is_too_long_to_read_in_an_editor(document: Path) -> None:
    """120 characters; code and tables are as wide as they have to be."""
    text = re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]
    assert long == []


def test_every_option_of_the_documents_exists(writer: ModuleType) -> None:
    """A text that names one that is gone leads its reader astray."""
    known = set(re.findall(r"--[a-z][a-z-]+", writer.commands())) | {"--json", "--help"}
    others = {"--soak", "--only", "--images"}  # of pytest and of the benchmarks
    named = ("quickstart", "concepts", "python", "json", "shared-storage")
    for name in ("README.md", *(f"docs/{one}.md" for one in named)):
        said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (REPOSITORY / name).read_text("utf-8")))
        assert said <= known | others, name
