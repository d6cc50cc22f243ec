"""How every command behaves: options from a config, one result on standard output, one message for an error."""

import errno
import json
import logging
import signal
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from cache.errors import HeadgraftError
from pipeline.config.options import flag, kind_of
from pipeline.console import named, results_alone, shown
from pipeline.errors import ConfigError

PATH = click.Path(path_type=Path)
_LEVELS = {None: logging.INFO, "quiet": logging.WARNING, "verbose": logging.DEBUG}
_RESUMED = ("extract", "sweep", "reduce")  # commands that go on from where they were stopped

Function = Callable[..., None]


class Command(click.Command):
    """A command whose result is all that it prints on standard output, with `--json` as one object.

    Our errors become one message and exit status 1, or 2 for wrong usage; others are bugs with a traceback.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object on standard output.")
        )

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does; wrong usage is an object as well, if one was asked for."""
        as_json = "--json" in args
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            if as_json:
                _print_error(ConfigError.code, error.format_message())
            raise

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta["as_json"] = ctx.params.pop("as_json")
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            with shown(_LEVELS[ctx.find_root().params["verbosity"]]), results_alone() as ctx.obj:
                return super().invoke(ctx)
        except HeadgraftError as error:
            _refuse(ctx, error.code, str(error), 2 if isinstance(error, ConfigError) else 1)
        except KeyboardInterrupt as error:
            resumes = "progress was saved; rerun the same command to resume"
            click.echo(f"interrupted: {resumes if self.name in _RESUMED else 'rerun the command'}", err=True)
            ctx.exit(143 if error.args == (signal.SIGTERM,) else 130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # nobody reads the output any more: click ends quietly
            message = f"{error.filename or 'the system'}: {error.strerror or error}"
            _refuse(ctx, "system-error", message, 1)
        finally:
            signal.signal(signal.SIGTERM, before)


class Group(click.Group):
    """Commands, and groups of them."""

    command_class = Command
    group_class = type


def _terminate(number: int, _: object) -> NoReturn:
    """SIGTERM ends as tidily as an interrupt from the keyboard."""
    raise KeyboardInterrupt(number)


def _refuse(ctx: click.Context, code: str, message: str, status: int) -> NoReturn:
    if ctx.meta["as_json"]:
        _print_error(code, message)
    click.echo(_printable(f"error: {message}"), err=True)
    ctx.exit(status)


def _print_error(code: str, message: str) -> None:
    click.echo(json.dumps({"error": {"code": code, "message": message}}))


def _printable(text: str) -> str:
    """Lines of text in which names may hold anything, commands to a terminal too."""
    return "\n".join(map(named, text.split("\n")))


def as_json() -> bool:
    """Whether the running command was given `--json`."""
    return bool(click.get_current_context().meta["as_json"])


def emit(result: Any, text: str | None = None) -> None:
    """Print a result dataclass as JSON, or in words: `text` or its own."""
    if as_json():
        line = json.dumps(asdict(result) if is_dataclass(result) and not isinstance(result, type) else result)
    else:
        line = _printable(result.in_words() if text is None else text)
    if line:
        click.get_current_context().obj(line)


def options(config: type) -> Callable[[Function], Function]:
    """The arguments and options of a config, made one of its instances that the command is called with."""
    declared = sorted(fields(config), key=lambda field: bool(field.kw_only))  # those come last, as in a call

    def decorate(command: Function) -> Function:
        @wraps(command)
        def call(**given: Any) -> None:
            command(config(**{field.name: given.pop(field.name) for field in declared}), **given)

        function: Function = call
        for field in reversed(declared):
            function = _parameter(field)(function)
        return function

    return decorate


def _parameter(field: Field[Any]) -> Callable[[Function], Function]:
    """A field as click has it: an option, or an argument where it is not declared as one."""
    name, kind, default, option = field.name, kind_of(field), field.default, field.metadata.get("option")
    click_type: Any = PATH if kind is Path else str if kind is tuple else kind
    if option is None:
        several, metavar = -1 if kind is tuple else 1, field.metadata.get("metavar")
        return click.argument(name, type=click_type, required=default is MISSING, nargs=several, metavar=metavar)
    names = f"{flag(name)}/{flag('no_' + name)}" if default is True else flag(name)
    if kind is bool:
        return click.option(names, name, is_flag=True, default=default, show_default=default, help=option.help)
    if option.choices:
        click_type = click.Choice(option.choices)
    given = {"required": True} if default is MISSING else {"default": default, "show_default": default is not None}
    return click.option(names, name, type=click_type, help=option.help, metavar=option.metavar, **given)
