"""Ray: the rows and the heads that one process makes, made by workers, some of which are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray_workers
import torch
from conftest import REPOSITORY, Extract, draw_image, require_weights
from hypothesis import given
from hypothesis import strategies as st
from test_parts import rows_of

from cache.store import FeatureCache
from pipeline.commands.sweep import sweep
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import SweepConfig
from pipeline.config.options import ClusterConfig
from pipeline.errors import ConfigError, DecodeError, PipelineError
from pipeline.extraction import units
from pipeline.extraction.units import cut
from pipeline.inputs.loader import DecodeTask
from pipeline.machine.cluster import Workers

ON_RAY: dict[str, Any] = {"engine": "ray", "unit_rows": 4}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of two workers that know the tiny backbone; the folder by which they are told what to do."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")
    folder = tmp_path_factory.mktemp("workers")
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {"env_vars": {"PYTHONPATH": path, ray_workers.FOLDER: str(folder)}}
    hook = {"worker_process_setup_hook": "ray_workers.prepare"}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={**environment, **hook},
    )
    yield folder
    ray.shutdown()


@pytest.fixture
def workers(cluster: Path) -> Path:
    """The same, with nothing told yet."""
    for file in cluster.iterdir():
        file.unlink()
    return cluster


def computed_in(folder: Path) -> list[tuple[int, int]]:
    """Process and views of every batch that workers computed."""
    lines = (folder / "computed").read_text().splitlines()
    return [(int(process), int(views)) for process, views in map(str.split, lines)]


@given(st.lists(st.integers(1, 5), max_size=40), st.integers(1, 12))
def test_units_are_the_work_in_its_order(views: list[int], rows: int) -> None:
    """Each has as many rows as asked for, and no more than one image's too many; the last may have fewer."""
    work = [DecodeTask(Path(str(n)), b"", tuple(map(str, range(count)))) for n, count in enumerate(views)]
    found = list(cut(work, rows))
    assert [item for unit in found for item in unit] == work
    sizes = [sum(len(item.views) for item in unit) for unit in found]
    assert all(rows <= size < rows + 5 for size in sizes[:-1])
    assert all(size for size in sizes)


@given(st.integers(1, 100_000), st.integers(1, 500))
def test_units_are_small_where_there_is_little(rows: int, workers: int) -> None:
    """Every worker has several, unless they would be of a few rows; never more than a shard of work."""
    unit = units._unit_rows(rows, workers, torch.device("cpu"))
    assert 16 <= unit <= 128
    assert unit == 16 or rows > (unit - 1) * 8 * workers


def test_workers_make_the_rows_that_one_process_makes(run_extract: Extract, tmp_path: Path, workers: Path) -> None:
    """Byte for byte, none twice; what is there is not computed again, by either."""
    whole = run_extract(cache=tmp_path / "whole", passes=1)
    result = run_extract(passes=1, **ON_RAY)
    assert (result.computed, result.rows, result.images) == (whole.computed, whole.rows, whole.images)
    assert sum(views for _, views in computed_in(workers)) == whole.computed
    # By others than this process: by both, unless one was done before the other had come up.
    assert os.getpid() not in {process for process, _ in computed_in(workers)}
    features = tmp_path / "features"
    assert rows_of(features) == rows_of(tmp_path / "whole")
    assert sum(len(shard) for shard in FeatureCache.open(features).shards) == whole.computed
    assert FeatureCache.open(features).index().digest == FeatureCache.open(tmp_path / "whole").index().digest
    assert run_extract(passes=1, **ON_RAY).computed == run_extract(passes=1).computed == 0
    assert run_extract(passes=2, **ON_RAY).computed == 12


def test_a_killed_worker_costs_its_unit(run_extract: Extract, tmp_path: Path, workers: Path) -> None:
    """SIGKILL in the middle of a unit: that unit is computed again, nothing else is, and nothing is left lying."""
    whole = run_extract(cache=tmp_path / "whole", passes=1)
    (workers / "slow").touch()

    def kill() -> None:
        while not (workers / "computed").exists() or len(computed_in(workers)) < 4:
            time.sleep(0.01)
        os.kill(computed_in(workers)[-1][0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run_extract(passes=1, batch_size=1, **ON_RAY)
    killer.join()
    assert result.computed == whole.computed
    assert len({process for process, _ in computed_in(workers)}) >= 2  # the one that went, and who came in its place
    again = sum(views for _, views in computed_in(workers)) - whole.computed
    assert 0 < again <= 5  # a unit of four, and the second view of its last image
    assert rows_of(tmp_path / "features") == rows_of(tmp_path / "whole")
    assert not list((tmp_path / "features").rglob(".*"))


def test_a_unit_that_kills_its_workers_is_named(
    run_extract: Extract, tmp_path: Path, workers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence, and what others made is kept."""
    monkeypatch.setattr("pipeline.machine.cluster.RETRIES", 0)
    (workers / "die").touch()
    with pytest.raises(PipelineError, match="image_"):
        run_extract(**ON_RAY)
    (workers / "die").unlink()
    assert run_extract(**ON_RAY).rows == 24


def test_bad_files_are_named_or_recorded(run_extract: Extract, data: Path, workers: Path) -> None:
    """All of them, wherever they were found; with --skip-bad they are left out."""
    for name in ("train/1/bad.jpg", "train/2/worse.jpg", "test/10/worst.png"):
        (data / name).write_text(name)
    with pytest.raises(DecodeError, match=r"^3\b") as error:
        run_extract(**ON_RAY)
    assert str(error.value).count("\n") == 4
    result = run_extract(skip_bad=True, **ON_RAY)
    assert sorted(bad["path"] for bad in result.skipped) == [
        "test/10/worst.png",
        "train/1/bad.jpg",
        "train/2/worse.jpg",
    ]
    assert (result.rows, result.images) == (24, 27)


def test_a_worker_without_the_images_takes_none_for_bad(
    run_extract: Extract, data: Path, tmp_path: Path, workers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that does not see them, with --skip-bad too, all would be left out of the set."""
    whole = units._for_workers

    def elsewhere(config: ExtractConfig) -> ExtractConfig:
        return replace(whole(config), data=tmp_path / "not-mounted")

    monkeypatch.setattr(units, "_for_workers", elsewhere)
    with pytest.raises(PipelineError, match="not-mounted"):
        run_extract(skip_bad=True, **ON_RAY)
    assert FeatureCache.open(tmp_path / "features").sets() == []


def test_what_a_worker_refuses_is_said_as_here(run_extract: Extract, data: Path, workers: Path) -> None:
    """An image that changed after it was listed: the same sentence, without the way it came."""
    whole = units.compute_units

    def changing(*given: Any) -> Any:
        draw_image(data / "train" / "1" / "image_0.jpg", 99)
        return whole(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extraction.executor.compute_units", changing)
        with pytest.raises(PipelineError, match=r"image_0\.jpg") as error:
            run_extract(**ON_RAY)
    assert "\n" not in str(error.value)


def test_a_sweep_by_workers_is_the_sweep_of_one_process(run_extract: Extract, tmp_path: Path, workers: Path) -> None:
    """Head by head, through the rungs of halving; one begun by workers is finished by one process."""
    run_extract(passes=1)
    space = tmp_path / "space.toml"
    space.write_text('basis = ["pool", "pyramid+lda"]\nhidden = [4, 8]\nlr = [0.01, 0.03, 0.1]\nbatch_size = 8\n')
    config = SweepConfig(tmp_path / "features", tmp_path / "local", space=space, heads=12, epochs=4, seeds=2)
    local = sweep(replace(config, run=tmp_path / "local"))
    there = sweep(replace(config, run=tmp_path / "there", engine="ray"))
    assert there.heads == local.heads
    assert there.best == local.best
    assert {head.epochs for head in there.heads} == {1, 4}
    # What one begins, the other finishes: the journal says nothing of who trained.
    (tmp_path / "taken-over").mkdir()
    lines = (tmp_path / "there" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "taken-over" / "journal.jsonl").write_text("".join(lines[:9]))
    assert sweep(replace(config, run=tmp_path / "taken-over")).heads == local.heads


def test_why_a_worker_cannot_begin_is_said(cluster: Path) -> None:
    """In its own words, such as of a cache that is not to be seen from where it is."""
    import ray

    with (
        Workers[int, int](ray, ray_workers.Blind, (), ClusterConfig(engine="ray")) as crew,
        pytest.raises(PipelineError, match=r"^no cache is seen from here$"),
    ):
        crew.first_ready()


def test_more_than_the_cluster_has_is_refused(run_extract: Extract, workers: Path) -> None:
    """With what it has and what was asked for."""
    for asked in ({"gpus_per_worker": 1.0}, {"cpus_per_worker": 3}):
        with pytest.raises(PipelineError, match="2 processors and 0 GPUs"):
            run_extract(**ON_RAY, **asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "slurm"}, "--engine is 'slurm', expected one of local, ray"),
        ({"ray_workers": 2}, "--ray-workers is for --engine ray"),
        ({"ray_address": "auto"}, "--ray-address is for --engine ray"),
        ({"gpus_per_worker": 1}, "--gpus-per-worker is for --engine ray"),
        ({"unit_rows": 5}, "--unit-rows is for --engine ray"),
        ({"engine": "ray", "unit_rows": 0}, "--unit-rows is 0"),
        ({"engine": "ray", "ray_workers": 0}, "--ray-workers is 0"),
        ({"engine": "ray", "gpus_per_worker": -1}, "--gpus-per-worker is -1"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], message: str) -> None:
    """Said before anything is begun."""
    with pytest.raises(ConfigError, match=message):
        ExtractConfig(Path("data"), Path("cache"), **given)


def test_without_ray_one_sentence(run_extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where to get it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"--engine ray .*'\.\[ray\]'"):
        run_extract(**ON_RAY)


@pytest.mark.real
def test_the_command_begins_a_cluster_itself(data: Path, tmp_path: Path) -> None:
    """On this machine, for the time of the command; with real weights, and from a folder of its own."""
    pytest.importorskip("ray", reason="Ray is not installed: make setup-ray")
    require_weights("alexnet")
    command = [sys.executable, str(REPOSITORY / "cli.py"), "extract", str(data), "--backbone", "alexnet"]
    ran = [
        subprocess.run(
            [*command, "--cache", name, "--json", *engine], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        for name, engine in (("here", ()), ("there", ("--engine", "ray")))
    ]
    assert [run.returncode for run in ran] == [0, 0], ran[1].stderr
    assert [json.loads(run.stdout)["computed"] for run in ran] == [24, 24]
    assert "Traceback" not in ran[1].stderr
    assert rows_of(tmp_path / "here") == rows_of(tmp_path / "there")


@pytest.mark.real
def test_the_command_joins_a_cluster_that_is_there(data: Path, tmp_path: Path, workers: Path) -> None:
    """By its address, which may also be in the environment; it stays there when the command has ended."""
    ray: Any = pytest.importorskip("ray")
    require_weights("alexnet")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(REPOSITORY / "cli.py"), "extract", str(data), "--backbone", "alexnet", "--json"]
    joined = subprocess.run(
        [*command, "--cache", "there", "--engine", "ray", "--ray-address", address],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(joined.stdout)["computed"] == 24, joined.stderr
    assert "Ray: 2 processors" in joined.stderr
    assert ray.cluster_resources()["CPU"] == 2
    nowhere = subprocess.run(
        [*command, "--cache", "nowhere", "--engine", "ray"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert nowhere.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr


def test_a_worker_takes_what_it_is_given() -> None:
    """Processors: one, beside a GPU four, or as asked for."""
    given = [
        ClusterConfig(engine="ray"),
        ClusterConfig(engine="ray", gpus_per_worker=0.5),
        ClusterConfig(engine="ray", cpus_per_worker=3),
    ]
    assert [cluster.cpus for cluster in given] == [1, 4, 3]
