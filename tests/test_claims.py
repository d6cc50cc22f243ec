"""Two processes at one run, and processes that are killed at it: a folder is one run's at every moment."""

import errno
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Extract, heard, logged, train_config

from cache.errors import CacheBusy, CacheError
from cache.files import temporary_name
from cache.lock import claimed
from pipeline.commands.evaluate import evaluate
from pipeline.commands.report import report
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.heads import SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ReportConfig
from pipeline.errors import RunError, TargetExists
from pipeline.run import Run
from pipeline.search.journal import Journal
from pipeline.search.results import SweepResult

# A command in a process of its own, which has its run but waits for the file `go` before it opens its rows.
FIRST = """
import json, sys, time
from pathlib import Path
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import SweepConfig, TrainConfig
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
kind, go, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
options |= {name: Path(options[name]) for name in ("cache", "run", "space") if options.get(name)}
opened = TrainingSet.open
def open(*given, **named):
    while not go.exists():
        time.sleep(0.01)
    return opened(*given, **named)
TrainingSet.open = open
train_head(TrainConfig(**options)) if kind == "train" else sweep(SweepConfig(**options))
"""
HOLD = """
import sys
from pathlib import Path
from cache.lock import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
RUN = ["basis.safetensors", "head.safetensors", "run.json"]
SWEEP = sorted([*RUN, "heads.csv", "journal.jsonl", "sweep.json"])
Config = TrainConfig | SweepConfig


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path) -> Path:
    """A cache with one augmented pass, and a space beside it."""
    run_extract(passes=1)
    space = 'basis = "pool"\nhidden = [4, 8]\nlr = { low = 1e-3, high = 3e-2, log = true }\nbatch_size = 8\n'
    (tmp_path / "space.toml").write_text(space)
    return tmp_path / "features"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where no run is yet."""
    return tmp_path / "runs" / "run"


def config(kind: str, features: Path, run: Path, **options: object) -> Config:
    """Of a head or a sweep small enough for a test."""
    if kind == "train":
        return train_config(features, run, **options)
    given: dict[str, object] = {"space": features.parent / "space.toml", "heads": 5, "epochs": 4, "seeds": 2}
    return SweepConfig(features, run, **{**given, **options})  # type: ignore[arg-type]  # checked by the config


def start(config: Config) -> subprocess.Popen[str]:
    """The command in a process of its own; returns when that has its run."""
    kind = "train" if isinstance(config, TrainConfig) else "sweep"
    arguments = [kind, str(go_file(config)), json.dumps(asdict(config), default=str)]
    go_file(config).unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST, *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (config.run / "writer.json").is_file() or process.poll() is not None)
    return process


def hold(run: Path) -> subprocess.Popen[str]:
    """A process that has the run and does nothing with it, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def go_file(config: Config) -> Path:
    """What the process waits for."""
    return config.cache.parent / "go"


def wait_until(true: Callable[[], bool]) -> None:
    """At most a minute."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def second(config: Config, when_waiting: Callable[[], object]) -> list[str]:
    """The command in this process; returns what it says, after `when_waiting` was called the moment it waits."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting until it ends" in line:
            when_waiting()

    with heard(say):
        train_head(config) if isinstance(config, TrainConfig) else sweep(config)
    return said


@contextmanager
def watched(run: Path) -> Iterator[list[str]]:
    """Load the run over and over meanwhile; collects what else is found than a run or none."""
    wrong: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            try:
                Run.load(run)
            except RunError as error:
                if "holds no run.json" not in str(error) and "unfinished" not in str(error):
                    wrong.append(str(error))
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("first", ["train", "sweep"])
@pytest.mark.parametrize("later", ["train", "sweep"])
def test_of_two_at_one_run_the_later_replaces_the_earlier(first: str, later: str, features: Path, run: Path) -> None:
    """Both end well, the later says for whom it waits; at no moment is a file of one beside run.json of the other."""
    process = start(config(first, features, run, seed=1))
    with watched(run) as wrong:
        said = second(config(later, features, run, seed=2), go_file(config(first, features, run)).touch)
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert wrong == []
    assert [line for line in said if f"process {process.pid} on " in line and f"is writing {run}" in line]
    loaded = Run.load(run)
    assert (loaded.record.sweep is not None) == (later == "sweep")
    assert sorted(file.name for file in run.iterdir()) == (SWEEP if later == "sweep" else RUN)
    if later == "sweep":
        assert json.loads((run / "journal.jsonl").read_text().splitlines()[0])["asked"]["seed"] == 2
    else:
        assert loaded.record.config.seed == 2


def test_the_later_of_two_equal_sweeps_takes_the_results_of_the_earlier(
    features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head is trained twice in the search, and the earlier run is there until the later takes its place."""
    asked = config("sweep", features, run)
    process = start(asked)
    monkeypatch.setattr(Journal, "record", None)
    second(asked, go_file(asked).touch)
    assert process.communicate()[1] == ""
    kept = Run.load(run).record.sweep
    assert kept is not None
    assert kept["heads"] == 5
    assert sorted(file.name for file in run.iterdir()) == SWEEP


@pytest.mark.parametrize("kind", ["train", "sweep"])
def test_a_killed_process_holds_no_run(kind: str, features: Path, run: Path) -> None:
    """What it leaves of its claim is in nobody's way, whether it was killed before or is waited for."""
    process = hold(run)
    process.kill()
    process.communicate()
    assert sorted(file.name for file in run.iterdir()) == ["writer.json", "writer.lock"]
    (run / f"{temporary_name_of(process.pid)}").write_bytes(b"half")
    said = second(config(kind, features, run), lambda: pytest.fail("it waits for the dead"))
    assert sorted(file.name for file in run.iterdir()) == (SWEEP if kind == "sweep" else RUN)
    assert not [line for line in said if "waiting" in line]
    shutil.rmtree(run)
    process = hold(run)
    second(config(kind, features, run), process.kill)
    assert sorted(file.name for file in run.iterdir()) == (SWEEP if kind == "sweep" else RUN)
    process.communicate()


def temporary_name_of(process: int) -> str:
    """The name of a file that another process was writing."""
    machine, _, rest = temporary_name().split("-")
    return f"{machine}-{process}-{rest}"


def test_a_sweep_that_is_killed_while_others_wait_can_be_resumed(
    features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a sweep that waits, with the results there are; a training that waits is refused, as by any such sweep."""
    complete = sweep(config("sweep", features, run.with_name("complete")))  # type: ignore[arg-type]
    lines = (run.with_name("complete") / "journal.jsonl").read_text().splitlines(keepends=True)
    run.mkdir()
    (run / "journal.jsonl").write_text("".join(lines[:4]))
    process = hold(run)
    with pytest.raises(TargetExists, match="unfinished"):
        second(config("train", features, run), process.kill)
    process.communicate()
    process, kept, record = hold(run), [], Journal.record

    def counted(journal: Journal, *given: object) -> None:
        kept.append(given)
        record(journal, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "record", counted)
    second(config("sweep", features, run), process.kill)
    assert len(kept) == len(lines) - 4
    assert SweepResult.load(run).heads == complete.heads
    process.communicate()


def test_a_run_that_was_there_before_is_not_waited_for(features: Path, run: Path) -> None:
    """Without --overwrite it is refused at once, although another process is replacing it."""
    train_head(config("train", features, run))  # type: ignore[arg-type]
    process = hold(run)
    with pytest.raises(TargetExists):
        second(config("train", features, run), lambda: pytest.fail("it waits"))
    process.kill()
    process.communicate()
    assert Run.load(run).record.config.seed == 0


def test_a_run_that_is_finished_just_before_the_claim_is_replaced(
    features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when the command was started: it is the earlier of two at once, with nothing to wait for."""

    def late(*given: object) -> object:
        monkeypatch.undo()
        train_head(config("train", features, run, seed=1))  # type: ignore[arg-type]
        return claimed(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.run.claimed", late)
    train_head(config("train", features, run, seed=2))  # type: ignore[arg-type]
    assert Run.load(run).record.config.seed == 2


def test_a_claim_that_fails_leaves_nothing(features: Path, run: Path) -> None:
    """Neither the folder that was made for it nor, in one that was there, a file."""
    for there in (False, True):
        if there:
            run.mkdir()
        with pytest.raises(RunError, match="--lr"):
            train_head(config("train", features, run, lr=1e30))  # type: ignore[arg-type]
        assert run.exists() == there
    assert list(run.iterdir()) == []


def test_many_claims_hold_one_at_a_time(tmp_path: Path) -> None:
    """Also where the folder and the lock come and go with each."""
    inside: list[int] = []
    most: list[int] = []

    def claim() -> None:
        for _ in range(10):
            with claimed(tmp_path / "run"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40
    assert list((tmp_path / "run").glob("*")) == []


def test_a_folder_that_goes_while_it_is_found_to_be_there_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another's does at the end of its claim; a file of that name is no folder, and stays an error."""
    make, calls = os.mkdir, iter([True])

    def late(path: Path, mode: int = 0o777) -> None:
        if next(calls, False):
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, mode)

    monkeypatch.setattr(os, "mkdir", late)
    with claimed(tmp_path / "run"):
        assert (tmp_path / "run" / "writer.lock").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="File exists"), claimed(tmp_path / "file"):
        pass


@pytest.mark.parametrize(("step", "gone"), [("os.open", "folder"), ("_flock", "lock")])
def test_a_claim_outlives_the_end_of_another(
    step: str, gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That removes the folder before the lock is opened, or the lock before it is held: both are made again."""
    real, calls = pkgutil.resolve_name(f"cache.lock:{step}"), iter([True])

    def late(*given: Any) -> Any:
        if next(calls, False):
            if gone == "folder":
                (tmp_path / "run").rmdir()
            else:
                (tmp_path / "run" / "writer.lock").unlink()
        return real(*given)

    monkeypatch.setattr(f"cache.lock.{step}", late)
    with claimed(tmp_path / "run"):
        assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["writer.json", "writer.lock"]
    assert list(tmp_path.iterdir()) == []


def test_evaluations_at_once_are_all_recorded(features: Path, run: Path) -> None:
    """None takes another's place on the record."""
    train_head(config("train", features, run))  # type: ignore[arg-type]
    scored = [threading.Thread(target=evaluate, args=(EvaluateConfig(run, split="valid"),)) for _ in range(4)]
    for thread in scored:
        thread.start()
    for thread in scored:
        thread.join()
    assert len(Run.load(run).record.scored) == 4


def test_what_is_found_of_a_run_is_not_written_into_another(
    features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was replaced meanwhile: an evaluation is not recorded, a report not written."""
    train_head(config("train", features, run))  # type: ignore[arg-type]
    loaded = Run.load(run)
    said: list[str] = []
    train_head(config("train", features, run, seed=1, overwrite=True))  # type: ignore[arg-type]
    before = (run / "run.json").read_bytes()
    logged(said, loaded.add_scores, [{"split": "test"}])
    assert "replaced by another run" in said[0]
    assert (run / "run.json").read_bytes() == before
    find = sys.modules["pipeline.commands.report"].find

    def replaced(*given: object) -> object:
        train_head(config("train", features, run, seed=2, overwrite=True))  # type: ignore[arg-type]
        return find(*given)

    monkeypatch.setattr("pipeline.commands.report.find", replaced)
    with pytest.raises(RunError, match="replaced by another run"):
        report(ReportConfig(run))
    assert sorted(file.name for file in run.iterdir()) == RUN


def test_a_run_that_is_being_replaced_is_scored_and_not_recorded(
    features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are there, and who writes; a report is refused before it is made."""
    monkeypatch.setattr("pipeline.run._PATIENCE", 0.0)
    train_head(config("train", features, run))  # type: ignore[arg-type]
    said: list[str] = []
    with claimed(run):
        assert logged(said, evaluate, EvaluateConfig(run, split="valid")).images == 8
        with pytest.raises(CacheBusy, match=f"{os.getpid()} .*{run}"):
            report(ReportConfig(run, cache=features / "none"))
    assert f"process {os.getpid()} on " in said[0]
    assert Run.load(run).record.scored == []


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_kill_at_any_step_of_writing_leaves_a_run_or_none(
    call: str, features: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each file that is renamed or removed: never files of one run with run.json of another."""
    sweep(config("sweep", features, run))  # type: ignore[arg-type]
    (run / "report.html").write_text("of the sweep")
    train_head(config("train", features, run.with_name("other"), seed=9))  # type: ignore[arg-type]
    kept = shutil.copytree(run, run.with_name("kept"))
    real, found = getattr(os, call), list[int | str]()

    class Killed(BaseException):
        """Nothing catches it."""

    for step in range(12):
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        steps = iter(range(step))

        def stopped(*given: object, left: Iterator[int] = steps, **named: object) -> None:
            if next(left, None) is None:
                raise Killed
            real(*given, **named)

        other = replace(Run.load(run.with_name("other")), path=run)
        with monkeypatch.context() as patched:
            patched.setattr(f"cache.files.os.{call}", stopped)
            with suppress(Killed):
                other.save()
        try:
            loaded = Run.load(run)
            found.append(loaded.record.config.seed)
            assert (
                (loaded.record.sweep is not None) == (run / "sweep.json").is_file() == (run / "report.html").is_file()
            )
        except RunError as error:
            assert "holds no run.json" in str(error) or "unfinished" in str(error)
            found.append("none")
    assert found[-1] == 9
    assert "none" in found
