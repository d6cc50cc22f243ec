"""Texts that users see are in the field's standard terms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import REPOSITORY

# What a reader would not search for; beside each, the term that stands for it.
AVOIDED = {
    r"of validation\b(?! images| labels| accurac)": "validation accuracy",
    r"validat\w+ best": "best validation epoch",
    r"commonest": "majority, most frequent",
    r"\bbegun\b|\banew\b": "start, recreate, retrain",
    r"\bno numbers\b|\bno number\b": "NaN or infinite",
    r"whole rows?\b|whole pass|are whole\b": "full features, complete passes",
    r"what is trained|what leaves|what is said": "head, exported model, evaluation",
    r"rows in (a|the|this) basis": "projected features",
    r"\bsuspects\b": "label issues",
    r"surest|least sure": "most confident, least confident",
    r"how sure\b": "calibration",
    r"is the data clean": "data quality",
    r"paid for itself": "break-even",
    r"\bmend(ed|s|ing)?\b": "fix, repair",
    r"\bsets? (it |them )?aside\b": "quarantined",
    r"official split|exercise's split": "Oxford split, Udacity split",
    r"way of the data|look after": "data flow, cache maintenance",
    r"with the start\b": "including startup",
    r"\bcooled\b": "temperature-scaled",
    r"\btwins\b": "near-duplicates",
    r"views a batch|decodes in line": "images per batch, decodes in the main thread",
    r"\bgo(es|ing)? on\b(?! to)": "resume",
}
DOCUMENTS = [*REPOSITORY.glob("README.md"), *REPOSITORY.glob("docs/**/*.md"), REPOSITORY / "cache" / "FORMAT.md"]


def sentences(path: Path) -> Iterator[str]:
    """Texts of a module that may reach a user: literals with a blank, without docstrings but for those of commands."""
    tree = ast.parse(path.read_text("utf-8"))
    quiet: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and path.name != "cli.py":
                quiet.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in quiet and " " in node.value:
            yield node.value


def texts() -> Iterator[tuple[str, str]]:
    """Where, and what."""
    for path in [*DOCUMENTS, *REPOSITORY.glob("pipeline/**/*.html")]:
        yield str(path.relative_to(REPOSITORY)), path.read_text("utf-8")
    for path in [REPOSITORY / "cli.py", *REPOSITORY.glob("cache/*.py"), *REPOSITORY.glob("pipeline/**/*.py")]:
        yield from ((str(path.relative_to(REPOSITORY)), text) for text in sentences(path))


def test_standard_terms_are_used() -> None:
    """None of the words that are avoided, in any text that a user sees."""
    found = [
        f"{where}: {match[0]!r}: say {term}"
        for where, text in texts()
        for words, term in AVOIDED.items()
        for match in re.finditer(words, text, re.IGNORECASE)
    ]
    assert found == []
