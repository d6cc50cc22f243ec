"""The command line: options, exit status, one message, one JSON object."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from conftest import REPOSITORY, draw_image

from cli import main
from pipeline.command_line.command import Command
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import CompareConfig, ReduceConfig, SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, PredictConfig, ReportConfig, ServeConfig
from pipeline.config.options import flag
from pipeline.errors import ConfigError

COMMANDS = [
    "weights",
    "weights list",
    "weights fetch",
    "extract",
    "train-head",
    "sweep",
    "evaluate",
    "export",
    "predict",
]
CONFIGS = {
    "extract": ExtractConfig,
    "train-head": TrainConfig,
    "sweep": SweepConfig,
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "predict": PredictConfig,
}
COMMANDS = [*CONFIGS, "weights", "weights list", "weights fetch"]


def invoke(*arguments: object) -> Result:
    """Run the command line in this process; an exception that is no exit is a failure."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def invoke_json(*arguments: object) -> dict[str, object]:
    """Run with --json: exit status 0, and standard output is one JSON object and nothing else."""
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    found: dict[str, object] = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refused(*arguments: object) -> str:
    """Run what must fail with status 1: the message, which is all there is beside lines of progress."""
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture
def extracted(tiny: str, data: Path, tmp_path: Path) -> tuple[object, ...]:
    """Arguments of extract for the generated data."""
    settings = (
        "--backbone",
        "tiny",
        "--weights",
        tiny,
        "--image-size",
        32,
        "--precision",
        "float32",
        "--device",
        "cpu",
    )
    return ("extract", data, "--cache", tmp_path / "features", *settings)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    """--help and -h exit 0 and show usage."""
    for asked in ("--help", "-h"):
        result = invoke(*command.split(), asked)
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage:")


@pytest.mark.parametrize("group", ["", "cache", "model", "weights"])
def test_no_summary_is_cut(group: str) -> None:
    """At 80 columns every command says in one line what it does."""
    result = CliRunner().invoke(main, [*group.split(), "--help"], terminal_width=80)
    listed = result.stdout.partition("Commands:\n")[2].splitlines()
    command = main.commands[group] if group else main
    assert isinstance(command, click.Group)
    assert len(listed) == len(command.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed), result.stdout


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_those_of_the_configuration(name: str) -> None:
    """Every field of a stage's dataclass is a parameter of its command, with the same default."""
    config = CONFIGS[name]
    command = main.commands[name]
    parameters = {p.name: p for p in command.params if isinstance(p, click.Option | click.Argument)}
    for field in fields(config):
        parameter = parameters.pop(field.name)
        if isinstance(parameter, click.Option) and not parameter.required:
            assert parameter.default == field.default or (parameter.default, field.default) == (None, None)
            assert f"--{field.name.replace('_', '-')}" in parameter.opts
    assert parameters.keys() <= {"as_json", "table"}


def test_every_command_takes_json() -> None:
    """Also those that only list."""
    for name in COMMANDS:
        command: click.Command = main
        for part in name.split():
            assert isinstance(command, click.Group)
            command = command.commands[part]
        if not isinstance(command, click.Group):
            assert any("--json" in parameter.opts for parameter in command.params)


def commands(group: click.Group = main) -> Iterator[click.Command]:
    """All that are not groups."""
    for command in group.commands.values():
        yield from commands(command) if isinstance(command, click.Group) else [command]


NOISY = """
import ctypes, os, subprocess, sys
import cache.prune, cli

def noisy(folder, name):
    print("from python")
    os.write(1, b"from the descriptor\\n")
    subprocess.run(["echo", "from a child"])
    ctypes.CDLL(None).printf(b"from C\\n")
    return forgotten

forgotten = cache.prune.ForgetResult("folder", "flowers")
cache.prune.forget = noisy
cli.main(["cache", "forget", "folder", "--set", "flowers", *sys.argv[1:]])
"""


def test_whatever_a_library_prints_standard_output_is_the_object() -> None:
    """Printed by Python, past it, by a child process or by C code: that is for the person watching."""
    assert all(isinstance(command, Command) for command in commands())
    for options in (["--json"], []):
        command = [sys.executable, "-c", NOISY, *options]
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert len(result.stdout.splitlines()) == 1
        assert set(result.stderr.splitlines()) == {f"from {it}" for it in ("python", "the descriptor", "a child", "C")}
        assert "from" not in result.stdout
    assert "flowers" in result.stdout


def test_a_closed_output_is_no_error() -> None:
    """Of either kind: what would stand there is lost, and nothing takes its place."""
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f'exec "{sys.executable}" -c "$0" --json {closed}'
        result = subprocess.run(
            ["sh", "-c", command, NOISY], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert result.stdout.count("\n") == (closed == "2>&-")
        assert "from C" not in result.stdout


def test_stage_one_and_two_print_one_object_each(extracted: tuple[object, ...], tmp_path: Path) -> None:
    """extract, train-head and evaluate: exactly the stated fields."""
    found = invoke_json(*extracted, "--passes", 1)
    assert found.keys() == {
        "set", "images", "rows", "computed", "reused", "seconds", "warmup_seconds", "images_per_second", "phases",
        "bound", "skipped", "cache", "bytes", "remarks", "unread", "outside",
    }  # fmt: skip
    assert found["phases"].keys() == {"decode", "compute", "write"}  # type: ignore[attr-defined]
    assert (found["set"], found["images"], found["rows"]) == ("data", 24, 36)
    assert found["rows"] == found["computed"] + found["reused"]  # type: ignore[operator]

    train = (
        "train-head",
        "--cache",
        tmp_path / "features",
        "--run",
        tmp_path / "run",
        "--epochs",
        2,
        "--basis",
        "pool",
    )
    found = invoke_json(*train)
    fields_ = {"run", "set", "basis", "precision", "leaks", "epochs", "seconds"}
    assert found.keys() == fields_ | {"valid_accuracy", "valid_loss", "classes_without_validation", "refit"}
    assert found["leaks"].keys() == {"across_splits", "two_labels"}  # type: ignore[attr-defined]
    epochs = found["epochs"]
    assert isinstance(epochs, list)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[0].keys() == {"epoch", "train_loss", "valid_accuracy", "valid_loss", "seconds"}

    found = invoke_json("evaluate", tmp_path / "run")
    names = {
        "images",
        "classes",
        "split",
        "top1",
        "top5",
        "mean_per_class",
        "ece",
        "ece_floor",
        "intervals",
        "unrelated",
        "out_of_fold",
        "aurc",
        "risk_coverage",
        "answered",
        "sets",
        "seeds",
    }
    assert found.keys() == names
    assert (found["images"], found["split"], found["top5"]) == (4, "test", None)
    assert found["intervals"].keys() == {"top1", "mean_per_class"}  # type: ignore[attr-defined]
    said = invoke("evaluate", tmp_path / "run").stdout
    assert "95 % intervals" in said
    assert "top-5" not in said  # of four classes


def test_without_json_a_command_says_what_it_did(extracted: tuple[object, ...]) -> None:
    """In words on standard output."""
    result = invoke(*extracted)
    assert result.exit_code == 0
    assert "24 computed, 0 reused" in result.stdout


def test_skipped_files_are_in_the_object(extracted: tuple[object, ...], data: Path) -> None:
    """With path and reason."""
    (data / "train" / "1" / "bad.jpg").write_bytes(b"text")
    skipped = invoke_json(*extracted, "--skip-bad")["skipped"]
    assert isinstance(skipped, list)
    assert skipped[0].keys() == {"path", "reason"}


def test_errors_are_one_message_and_status_1(extracted: tuple[object, ...], data: Path, tmp_path: Path) -> None:
    """Missing data, no cache, no run, no model, an existing run: no traceback, nothing on standard output."""
    cache, run = tmp_path / "features", tmp_path / "run"
    assert str(tmp_path / "none") in refused("extract", tmp_path / "none", "--cache", cache)
    assert str(cache) in refused("train-head", "--cache", cache, "--run", run)
    assert str(run) in refused("export", run, tmp_path / "model.safetensors")
    model = tmp_path / "model.safetensors"
    assert str(model) in refused("predict", model, draw_image(tmp_path / "a.png", 1))
    assert str(model) in refused("evaluate", model)
    (data / "train" / "1" / "bad.jpg").write_bytes(b"text")
    assert "--skip-bad" in refused(*extracted)


def test_a_refusal_is_one_object_too(
    extracted: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --json: a code for scripts, and the message that is on standard error as well; the status is the same."""
    cache, run = tmp_path / "features", tmp_path / "run"
    invoke(*extracted)
    train = ("train-head", "--cache", cache, "--run", run, "--epochs", 1)
    invoke(*train)
    refusals = {
        (*train,): (1, "target-exists"),
        (*train, "--overwrite", "--set", "none"): (1, "unknown-set"),
        (*train, "--overwrite", "--passes", 1): (1, "missing-rows"),
        (*train, "--lr", 0): (2, "wrong-usage"),
        (*train, "--nonsense"): (2, "wrong-usage"),
        ("weights", "fetch", "vgg99"): (2, "wrong-usage"),
        (*extracted, "--backbone", "vgg99"): (2, "wrong-usage"),
        ("evaluate", tmp_path / "none"): (1, "run-error"),
        ("serve", tmp_path / "none"): (1, "model-error"),
    }
    for arguments, (status, code) in refusals.items():
        result = invoke(*arguments, "--json")
        found = json.loads(result.stdout)
        assert (result.exit_code, found.keys(), found["error"]["code"]) == (status, {"error"}, code), arguments
        assert found["error"]["message"] in result.stderr
    monkeypatch.setattr("cache.check.repair", lambda _: Path(tmp_path, "none").read_bytes())
    assert json.loads(invoke("cache", "repair", cache, "--json").stdout)["error"]["code"] == "system-error"


@pytest.mark.parametrize(
    "arguments",
    [
        ("cache", "info"), ("cache", "verify"), ("cache", "repair"), ("cache", "pack", "", "f.h5"), ("cache", "prune"),
        ("cache", "push", "", "memory://b"), ("report",), ("export", "", "m.safetensors"), ("evaluate",),
        ("train-head", "--run", "r", "--cache"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
def test_what_a_message_advises_is_possible(arguments: tuple[str, ...], there: bool, tmp_path: Path) -> None:
    """A path to a file, or to nothing: every option in the message is one of the command, or of one that it names."""
    path = tmp_path / "path"
    if there:
        path.write_bytes(b"text")
    given = [path if one == "" else one for one in arguments] if "" in arguments else [*arguments, path]
    said = refused(*given)
    assert str(path) in said
    assert there or "does not exist" in said
    own = invoke(*arguments[: 1 + (arguments[0] == "cache")], "--help").stdout
    advised = re.findall(r"--[a-z-]+", said.replace("train-head --run", ""))
    assert [option for option in advised if option not in own] == []


def test_json_before_the_command_is_said_to_come_after_it() -> None:
    """As wrong usage."""
    result = invoke("--json", "weights", "list")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "after the command" in result.stderr


def test_a_file_that_is_no_csv_is_one_message(tmp_path: Path) -> None:
    """A picture given as DATA."""
    refused("extract", draw_image(tmp_path / "a.png", 1, size=(400, 400)), "--cache", tmp_path / "features")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["extract"],
        ["extract", "data"],
        ["extract", "data", "--cache", "c", "--passes", "many"],
        ["extract", "data", "--cache", "c", "--precision", "float8"],
        ["train-head", "--cache", "c"],
        ["train-head", "--cache", "c", "--run", "r", "--nonsense"],
        ["evaluate"],
        ["export", "run"],
        ["predict", "model"],
        ["weights", "nonsense"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    """Unknown commands and options, missing arguments, values of another type."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_value_out_of_range_is_refused_by_its_option(tmp_path: Path) -> None:
    """The message names the option as it is typed."""
    assert "--image-size is 8" in invoke("extract", tmp_path, "--cache", tmp_path / "c", "--image-size", 8).stderr
    assert "--batch-size is 0" in invoke("train-head", "--cache", "c", "--run", "r", "--batch-size", 0).stderr


@pytest.mark.parametrize("config", [*CONFIGS.values(), ReduceConfig, ReportConfig, ServeConfig])
def test_every_limit_that_is_declared_is_checked(config: Any) -> None:
    """Of every option, at the command line and from Python: its choices, the numbers just beyond, and NaN."""
    given = {field.name: Path(field.name) for field in fields(config) if field.default is MISSING}
    for field in fields(config):
        option = field.metadata.get("option")
        if option is None:
            continue
        limits = {option.above: 0, option.below: 0, option.least: -1, option.most: 1}
        wrong: list[Any] = [limit + beyond for limit, beyond in limits.items() if limit is not None]
        wrong += ["none of these"] if option.choices else [float("nan")] if wrong else []
        for value in wrong:
            with pytest.raises(ConfigError, match=f"^{flag(field.name)} is "):
                config(**{**given, field.name: value})


def test_a_program_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only our errors become messages: anything else is a bug and shows itself."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pipeline.commands.extract.extract", broken)
    with pytest.raises(ZeroDivisionError):
        invoke("extract", tmp_path, "--cache", tmp_path / "c")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_what_is_kept(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ctrl-C is no traceback either, nor is a plain kill."""
    before = signal.getsignal(signal.SIGTERM)

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        signal.raise_signal(number)

    monkeypatch.setattr("pipeline.commands.extract.extract", interrupted)
    result = invoke("extract", tmp_path, "--cache", tmp_path / "c")
    assert result.exit_code == status
    assert "run the same command" in result.stderr
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_the_system_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A place that cannot be read or written is named."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/place")

    monkeypatch.setattr("pipeline.commands.extract.extract", refused)
    result = invoke("extract", tmp_path, "--cache", tmp_path / "c")
    assert (result.exit_code, result.stderr) == (1, "error: /some/place: Permission denied\n")


def test_weights_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each backbone with its file's place, there or not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = invoke_json("weights", "list")["weights"]
    assert isinstance(rows, list)
    assert {"vgg16", "alexnet"} <= {row["backbone"] for row in rows}
    assert not any(row["present"] for row in rows)
    vgg16 = next(row for row in rows if row["backbone"] == "vgg16")
    assert vgg16["path"] == str(tmp_path / "headgraft" / "weights" / "vgg16-IMAGENET1K_V1.safetensors")


def test_fetching_without_a_network_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Status 1 and where to put a file."""
    monkeypatch.setenv("HEADGRAFT_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "--weights FILE" in refused("weights", "fetch", "alexnet")


def test_the_cache_is_looked_after_from_the_command_line(data: Path, tiny: str, tmp_path: Path) -> None:
    """info, verify, repair, pack, forget, prune: words or JSON, and exit status 1 for a bad cache."""
    cache = tmp_path / "c"
    small = ("--backbone", "tiny", "--weights", tiny, "--image-size", 32, "--precision", "float32", "--device", "cpu")
    invoke_json("extract", data, "--cache", cache, *small)
    assert invoke_json("cache", "info", cache)["rows"] == {"pass:0": 24}
    assert "24 of the clean view" in invoke("cache", "info", cache, "--duplicates").stdout
    verified = invoke_json("cache", "verify", cache, "--full")
    assert (verified["shards"], verified["rows"], verified["bad"]) == (1, 24, [])
    assert invoke_json("cache", "pack", cache, tmp_path / "packed.h5")["rows"] == 24
    (shard,) = (cache / "shards").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])
    result = invoke("cache", "verify", cache, "--json")
    assert result.exit_code == 1
    assert shard.name in json.loads(result.stdout)["bad"][0]["shard"]
    assert invoke_json("cache", "repair", cache)["missing"] == {"data": 24}
    invoke_json("cache", "forget", cache, "--set", "data")
    assert invoke_json("cache", "prune", cache)["rows"] == 0


def test_a_sweep_is_a_table_and_one_json_object(extracted: tuple[object, ...], tmp_path: Path) -> None:
    """The fields that scripts rely on; a space that is none is wrong usage."""
    invoke(*extracted)
    (tmp_path / "space.toml").write_text('basis = "pool"\nhidden = [4, 8]\nlr = [0.001, 0.01]\n')
    where = ("--cache", tmp_path / "features", "--space", tmp_path / "space.toml")
    options = ("sweep", *where, "--search", "grid", "--epochs", 2, "--seeds", 2)
    found = invoke_json(*options, "--run", tmp_path / "a")
    assert {"run", "heads", "best", "baselines", "seconds", "basis_seconds", "retrain_seconds"} <= found.keys()
    best = {"config", "valid_accuracy", "mean", "std", "seeds", "corrected", "won", "difference", "merged"}
    assert best == found["best"].keys()  # type: ignore[attr-defined]
    result = invoke(*options, "--run", tmp_path / "b")
    assert f"of {len(found['heads'])} heads" in result.stdout  # type: ignore[arg-type]
    (tmp_path / "space.toml").write_text("hiden = 4")
    refusal = invoke(*options, "--run", tmp_path / "c")
    assert refusal.exit_code == 2
    assert "'hiden'" in refusal.stderr
    assert "'hidden'" in refusal.stderr
    assert not (tmp_path / "c").exists()
    for left_out in ((*where,), ("--run", tmp_path / "c")):
        refusal = invoke("sweep", *left_out)
        assert refusal.exit_code == 2
        assert "Missing option" in refusal.stderr


MODEL = REPOSITORY / "tests" / "data" / "model-1.safetensors"


@pytest.mark.usefixtures("tiny")
def test_predict_prints_failures_beside_the_results_not_among_them(tmp_path: Path) -> None:
    """On standard error, with status 1: what reads the results sees results alone."""
    image = draw_image(tmp_path / "a.png", 1)
    result = CliRunner().invoke(main, ["predict", str(MODEL), str(image), str(tmp_path / "b.png")])
    assert result.exit_code == 1
    [line] = result.stdout.splitlines()
    assert line.startswith(str(image))
    assert f"{tmp_path}/b.png: " in result.stderr
