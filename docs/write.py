"""What of the documents is written by the program: `python docs/write.py` after a change of options or of results.

docs/commands.md comes from the command line itself, docs/json.md from the classes of results and errors, docs/api.md
from the public names of the library; the tables between `<!-- results:NAME -->` and `<!-- end -->` in the documents of
`WRITTEN` from the files in docs/results/, which `make results`, `make gpu`, `make bench-backbones` and
`make compare-backbones` measure.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from reference import api_page
from tables import TABLES

from cache.check import RepairResult, VerifyResult
from cache.errors import HeadgraftError
from cache.info import CacheInfo
from cache.pack import PackResult
from cache.prune import ForgetResult, PruneResult
from cache.remote import CopyResult
from cli import main
from pipeline import errors
from pipeline.commands.cv import CvResult
from pipeline.commands.doctor import DoctorResult
from pipeline.commands.export import ExportResult
from pipeline.commands.extract import ExtractResult
from pipeline.commands.labels import LabelsResult
from pipeline.commands.list_backbones import BackboneList
from pipeline.commands.predict import PredictResult
from pipeline.commands.reduce import ReduceResult
from pipeline.commands.report import ReportResult
from pipeline.commands.weights import WeightsFile, WeightsList
from pipeline.cross_validation.learning_curve import CurveResult
from pipeline.reporting.backbones import CompareResult
from pipeline.run_record import TrainResult
from pipeline.search.results import SweepResult
from pipeline.statistics.scoring import Scores

RESULTS: dict[str, type] = {
    "extract": ExtractResult,
    "train-head": TrainResult,
    "sweep": SweepResult,
    "cv": CvResult,
    "curve": CurveResult,
    "compare": CompareResult,
    "backbones": BackboneList,
    "doctor": DoctorResult,
    "evaluate": Scores,
    "report": ReportResult,
    "export": ExportResult,
    "predict": PredictResult,
    "cache info": CacheInfo,
    "cache verify": VerifyResult,
    "cache repair": RepairResult,
    "cache pack": PackResult,
    "cache labels": LabelsResult,
    "cache reduce": ReduceResult,
    "cache push": CopyResult,
    "cache pull": CopyResult,
    "cache forget": ForgetResult,
    "cache prune": PruneResult,
    "weights list": WeightsList,
    "weights fetch": WeightsFile,
}
SUMMARIES = {
    "cache push": "What `cache push` uploaded from `cache` to `url`.",
    "cache pull": "What `cache pull` downloaded from `url` into `cache`.",
    "weights fetch": "The weights that `weights fetch` fetched, or found already there.",
}
DOCS = Path(__file__).resolve().parent
WRITTEN = (
    DOCS.parent / "README.md",
    *(DOCS / f"{name}.md" for name in ("results", "performance", "backbones", "untouched")),
)
_START = """# Commands

What the help of each command says; this page is written by `docs/write.py`. Every command has `--json` too: what is
printed then is in [json.md](json.md).

Exit status: 0 done; 1 the work could not be done, with one message (`predict` also where one of the files could not be
read, `cache verify` where anything is bad); 2 wrong usage; 130 interrupted, 143 terminated.
"""
_JSON = """# JSON

With `--json` a command prints one object on standard output; everything else goes to standard error. Accuracies are
fractions, seconds are wall-clock. From the first release on, fields are added, never renamed or removed. This page is
written by `docs/write.py` from the docstrings of the result classes; `in_words()` of each says the same as the command
without `--json`.

`model info` prints `model`, the path, and the fields of the card. `serve` prints an object only where it is refused.

## Refusals

A command that is refused prints `{"error": {"code": ..., "message": ...}}`, the message on standard error as well, and
ends with status 2 for `wrong-usage`, else 1. Codes stay as they are; messages may be improved. A result with parts that
failed (`predict`, `cache verify`, `cache push`, `cache pull`) is printed as a result, and the status is 1.

| code | class | meaning |
|---|---|---|
"""
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null", Any: "any"}


def commands() -> str:
    """docs/commands.md."""
    return "\n".join([_START, *_sections(main, "headgraft")])


def _sections(command: click.Command, path: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _sections(below, f"{path} {name}")
        return
    arguments = [_argument(one) for one in command.params if isinstance(one, click.Argument)]
    yield f"## {' '.join([path, *arguments])}\n\n{_line(command.help)}\n"
    options = [one for one in command.params if isinstance(one, click.Option) and one.name != "as_json"]
    if options:
        yield "\n".join(["| option | default | |", "|---|---|---|", *map(_row, options)]) + "\n"


def _argument(one: click.Argument) -> str:
    name = one.make_metavar(click.Context(main))
    return name.strip("[]") if one.required else f"[{name.strip('[]')}]"


def _row(option: click.Option) -> str:
    names = " / ".join([*option.opts, *option.secondary_opts])
    metavar = "" if option.is_flag else f" {option.make_metavar(click.Context(main))}".replace("|", "\\|")
    help, _, stated = _line(option.help).partition("[default: ")
    default = "required" if option.required else stated.rstrip("]") or _default(option)
    return f"| `{names}{metavar}` | {default} | {help.strip()} |"


def _default(option: click.Option) -> str:
    if not option.show_default or option.default is None:
        return ""
    if option.is_flag:
        return f"`{option.opts[0] if option.default else option.secondary_opts[0]}`"
    return f"`{option.default}`"


def _line(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def json_page() -> str:
    """docs/json.md."""
    known = [f"| `{one.code}` | `{one.__name__}` | {_line(one.__doc__)} |" for one in _errors(HeadgraftError)][1:]
    known.append("| `system-error` | `OSError` | The system refused to read, write or connect. |")
    return _JSON + "\n".join([*known, "", *map(_result, RESULTS)])


def _errors(kind: type[HeadgraftError]) -> Iterator[type[HeadgraftError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ in ("cache.errors", errors.__name__):
            yield from _errors(below)


def _result(command: str) -> str:
    kind = RESULTS[command]
    summary, _, _ = str(kind.__doc__).partition("\n\n")
    head = f"## {command}\n\n{SUMMARIES.get(command) or _line(summary)}\n\n| field | type | meaning |\n|---|---|---|\n"
    return head + "\n".join(_rows(kind, set())) + "\n"


def _rows(kind: Any, seen: set[Any], prefix: str = "") -> Iterator[str]:
    """A row for each field of a result, and for those of the results in it, of each kind once."""
    meanings = attributes(kind)
    for field in fields(kind):
        yield f"| `{prefix}{field.name}` | {_type(field.type)} | {meanings[field.name]} |"
        for part in (field.type, *get_args(_plain(field.type))):
            if is_dataclass(part) and part not in seen:
                seen.add(part)
                yield from _rows(part, seen, f"{prefix}{field.name}{'' if part is field.type else '[]'}.")


def attributes(kind: type) -> dict[str, str]:
    """What the `Attributes:` blocks of a class and its bases say of each field; of an option, its help."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, block = str(base.__doc__).partition("Attributes:\n")
        found = re.findall(r"^ {8}(\w+): (.*(?:\n {9,}.*)*)", block, re.MULTILINE)
        meanings |= {name: re.sub(r"\bNone\b", "null", _line(text)) for name, text in found}
    options = {field.name: field.metadata["option"].help for field in fields(kind) if "option" in field.metadata}
    return {**{name: _line(help.partition("[default")[0]) for name, help in options.items()}, **meanings}


def _plain(kind: Any) -> Any:
    """A type without its bounds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _type(kind: Any) -> str:
    """A type of Python in the words of JSON."""
    kind = _plain(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in (list, tuple):
        return f"list of {_type(parts[0])}s"
    if NoneType in parts:
        return " or ".join(map(_type, parts))
    return _JSON_TYPES.get(kind, "object")


def filled(text: str) -> str:
    """The same document with its tables as the results are now."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- results:(\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(commands(), "utf-8")
    (DOCS / "json.md").write_text(json_page(), "utf-8")
    (DOCS / "api.md").write_text(api_page(), "utf-8")
    for path in WRITTEN:
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
