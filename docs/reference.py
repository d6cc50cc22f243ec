"""docs/api.md: the public names of the library, from their signatures and docstrings."""

import inspect
import re
from collections.abc import Callable
from textwrap import indent
from typing import Any, cast

from pipeline import api
from pipeline.model.bundle import Predictor
from pipeline.model.prediction import ClassScore, Prediction

_START = """# Python API

    import pipeline as hg

gives the names of this page; nothing that takes time is imported before one of them is used. The page is written by
`docs/write.py` from signatures and docstrings. [python.md](python.md) shows the names at work, and
[json.md](json.md) explains the fields of each result.

A command of `headgraft` is a function of its options, with the same names, defaults and checks. It returns a result:
the fields of `--json`, `in_words()` as the command prints it, and a table in a notebook. Paths may be given as text.
Every error meant for you is a `HeadgraftError` with a stable `code` ([json.md](json.md#refusals)).
"""
# Command by command, as a data set passes through them.
COMMANDS = {
    "extract": "extract", "train_head": "train-head", "sweep": "sweep", "cv": "cv", "curve": "curve",
    "compare": "compare", "label": "", "evaluate": "evaluate", "report": "report", "export": "export",
    "predict": "predict", "serve": "", "reduce_cache": "cache reduce", "list_backbones": "backbones",
    "fetch_weights": "weights fetch",
}  # fmt: skip
FUNCTIONS = ("load_features", "load_model")
_METHODS: dict[type, tuple[str, ...]] = {
    api.Features: (),
    api.HeadClassifier: ("fit", "predict", "predict_proba", "predict_log_proba", "decision_function"),
    api.Bundle: ("classes", "preprocessing", "predict", "on", "evidence", "as_module"),
    Predictor: ("predict", "log_probs", "features"),
    Prediction: ("answered",),
    ClassScore: (),
    api.HeadgraftError: (),
}


def api_page() -> str:
    """The page."""
    parts = [_START, "## Commands\n", *map(_command, COMMANDS)]
    parts += ["## Features and models\n", *(_function(name, getattr(api, name)) for name in FUNCTIONS)]
    return "\n".join([*parts, "## Classes\n", *map(_class, _METHODS)]).rstrip() + "\n"


def _command(name: str) -> str:
    function, result = getattr(api, name), COMMANDS[name]
    text = _function(name, function)
    if result:
        text += f"\nReturns {_kind(inspect.signature(function).return_annotation)}: "
        text += f"[its fields](json.md#{result.replace(' ', '-')}).\n"
    return text


def _function(name: str, function: Callable[..., Any]) -> str:
    """Its signature, its text, a table of its parameters, and its errors."""
    text, parameters, errors = _parts(inspect.getdoc(function) or "")
    found = [f"### {name}\n", f"```text\n{_signature(name, function)}\n```\n", f"{text}\n"]
    if parameters:
        signature = inspect.signature(function).parameters
        described = dict(parameters)
        rows = [f"| `{one}` | {_type(signature[one])} | {described[one]} |" for one in signature]
        found.append("\n".join(["| parameter | type | |", "|---|---|---|", *rows]) + "\n")
    found += ["Raises:\n\n" + "\n".join(f"- `{kind}`: {why}" for kind, why in errors) + "\n"] if errors else []
    return "\n".join(found)


def _parts(text: str) -> tuple[str, list[tuple[str, str]], list[tuple[str, str]]]:
    """Of a docstring: what comes before its blocks, its parameters, its errors."""
    start, *blocks = re.split(r"\n\n(?=(?:Args|Raises|Attributes):\n)", text)
    found: dict[str, list[tuple[str, str]]] = {}
    for block in blocks:
        name, _, body = block.partition(":\n")
        items = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", body, re.MULTILINE)
        found[name] = [(one, re.sub(r"\s+", " ", words).replace("|", "\\|")) for one, words in items]
    return start, found.get("Args", found.get("Attributes", [])), found.get("Raises", [])


def _signature(name: str, function: Callable[..., Any]) -> str:
    """On one line where it fits, without types, which the table has."""
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    names = [one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in parameters]
    line = f"{name}({', '.join(names)})"
    if len(line) <= 100:
        return line
    lines, row = [], ""
    for one in names:
        row, full = (f"{row}{one}, ", "") if len(row) + len(one) < 96 else (f"{one}, ", row)
        lines += [full.rstrip()] if full else []
    return "\n    ".join([f"{name}(", *lines, row.rstrip()]) + "\n)"


def _type(parameter: inspect.Parameter) -> str:
    return f"`{_kind(parameter.annotation)}`".replace("|", "\\|")


def _kind(annotation: object) -> str:
    """A type as it is written, without the modules it comes from."""
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    text = annotation.__name__ if plain else str(annotation)  # type: ignore[attr-defined]  # a type has a name
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _class(kind: type) -> str:
    text, attributes, _ = _parts(inspect.getdoc(kind) or "")
    found = [f"### {kind.__name__}\n", f"{text}\n"]
    if attributes:
        rows = [f"| `{one}` | {words} |" for one, words in attributes]
        found.append("\n".join(["| field | |", "|---|---|", *rows]) + "\n")
    found += [_method(kind, name) for name in _METHODS[kind]]
    return "\n".join(found)


def _method(kind: type, name: str) -> str:
    """A line for a property, a signature for a function."""
    member = inspect.getattr_static(kind, name)
    words = indent(inspect.getdoc(member) or "", "  ")
    call = f".{name}" if isinstance(member, property) else _signature(f".{name}", cast(Callable[..., Any], member))
    return f"- `{' '.join(call.split())}`\n\n{words}\n"
