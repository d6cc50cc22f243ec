"""What of the documents is written by the program: `python docs/write.py` after a change of options or of results.

docs/commands.md comes from the command line itself; the tables between `<!-- results:NAME -->` and `<!-- end -->` in
README.md and docs/results.md from the files in docs/results/, which `make results` measures.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click
from tables import TABLES

from cli import main

DOCS = Path(__file__).resolve().parent
WRITTEN = (DOCS.parent / "README.md", DOCS / "results.md")
_START = """# Commands

What the help of each command says; this page is written by `docs/write.py`. Every command but `serve` has `--json` too:
what is printed then is in [json.md](json.md).

Exit status: 0 done; 1 the work could not be done, with one message (`predict` also where one of the files could not be
read, `cache verify` where anything is bad); 2 wrong usage; 130 interrupted, 143 terminated.
"""


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


def filled(text: str) -> str:
    """The same document with its tables as the results are now."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- results:(\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(commands(), "utf-8")
    for path in WRITTEN:
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
