"""Training on more rows than fit in memory."""

import resource
from pathlib import Path

import memory_use
import pytest
import torch
from conftest import Extract, Times, logged, train_config

from cache.errors import DamagedCache
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.bases.data import StreamedData
from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet
from pipeline.commands.evaluate import evaluate
from pipeline.commands.train import train_head
from pipeline.config.models import EvaluateConfig
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import available_bytes

TINY = 500  # bytes: a few rows of the tiny backbone


@pytest.fixture
def features(run_extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one augmented pass, in many small shards."""
    monkeypatch.setattr("cache.writer.MERGE_BELOW", 0)
    monkeypatch.setattr("pipeline.extraction.extractor.ShardWriter.__init__.__defaults__", (5, 20.0))
    run_extract(passes=1, batch_size=5)
    assert len(FeatureCache.open(tmp_path / "features").shards) >= 7
    return tmp_path / "features"


def streamed(features: Path, passes: int = 1, name: str = "pool") -> StreamedData:
    """The set's rows with next to no memory."""
    cache = FeatureCache.open(features)
    _, data = load_data(TrainingSet(cache, cache.index(), passes, {}), name, TINY)
    assert isinstance(data, StreamedData)
    return data


@pytest.mark.parametrize("name", ["full", "pool", "pyramid+white", "pyramid+pca:3"])
def test_an_epoch_has_each_training_image_once_under_its_label(features: Path, name: str) -> None:
    """In batches of the asked size, the last one aside, whichever pass was drawn."""
    data = streamed(features, name=name)
    cache = FeatureCache.open(features)
    images = cache.index().split("train")
    views = [data.basis.apply(cache.read([(i.key, view) for i in images])) for view in (CLEAN_VIEW, "pass:1")]
    labels = torch.from_numpy(cache.index().labels(images))
    for epoch in range(3):
        batches = list(data.batches(5, torch.Generator().manual_seed(epoch)))
        assert [len(rows) for rows, _ in batches] == [5, 5, 2]
        rows, found = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        distance = torch.stack([torch.cdist(rows, view) for view in views]).amin(0)  # (12 rows, 12 images)
        nearest = distance.argmin(1)
        assert distance.amin(1).max() < 1e-4
        assert sorted(nearest.tolist()) == list(range(12))
        assert torch.equal(labels[nearest], found)


@pytest.mark.parametrize("name", ["pool", "pyramid+white", "full+white:2"])
def test_a_streamed_basis_is_the_one_fitted_in_memory(features: Path, name: str) -> None:
    """On all rows of all passes, to rounding."""
    cache = FeatureCache.open(features)
    index = cache.index()
    in_memory, _ = load_data(TrainingSet(cache, index, 1, {}), name, 1 << 40)
    rows = cache.read(index.row_keys(1))
    assert torch.allclose(in_memory.apply(rows), streamed(features, name=name).basis.apply(rows), atol=1e-4)


def test_both_passes_are_drawn_and_the_order_changes(features: Path) -> None:
    """From epoch to epoch, by the generator alone."""
    data = streamed(features)
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat([rows for rows, _ in data.batches(4, generator)]) for _ in range(12)]
    again = torch.Generator().manual_seed(0)
    assert torch.equal(epochs[0], torch.cat([rows for rows, _ in data.batches(4, again)]))
    assert not torch.equal(epochs[0], epochs[1])
    assert len(torch.cat(epochs).unique(dim=0)) == 24


def test_a_streamed_run_is_a_run(features: Path, tmp_path: Path) -> None:
    """It learns, scores as it said, and the same seed gives the same bytes."""
    lines: list[str] = []
    for name in "ab":
        config = train_config(features, tmp_path / name, epochs=30, hidden=16, memory=TINY / 1e9)
        result = logged(lines, train_head, config)
    assert any("read in each epoch" in line for line in lines)
    assert result.valid_accuracy >= 0.75
    assert evaluate(EvaluateConfig(tmp_path / "a", split="valid")).top1 == result.valid_accuracy
    assert (tmp_path / "a" / "head.safetensors").read_bytes() == (tmp_path / "b" / "head.safetensors").read_bytes()


def test_a_shard_that_is_damaged_while_training_is_not_read(features: Path) -> None:
    """It was sound when the cache was opened; each reading checks it again."""
    data = streamed(features)
    list(data.batches(4, torch.Generator().manual_seed(0)))
    wanted = data.trainset.index.split("train")[0].key
    victim = next(shard.path for shard in data.trainset.cache.shards if (wanted, CLEAN_VIEW) in shard.keys)
    whole = bytearray(victim.read_bytes())
    whole[-1] ^= 1
    victim.write_bytes(whole)
    with pytest.raises(DamagedCache, match=victim.name):
        for seed in range(5):
            list(data.batches(4, torch.Generator().manual_seed(seed)))


def test_memory_stays_flat_as_rows_grow(tmp_path: Path, times: Times) -> None:
    """Anonymous memory that the process holds, from N to 4 N images, rows of VGG16's size: less than 10 % more."""
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory is read from /proc, which is not there")
    images = times(2000, 16000)  # two shards or more: with one, nothing is held while the next is read
    # The peak of a short run is over between two looks at it: the small one is looked at twice.
    first, again, large = (memory_use.measure(tmp_path, count, "0.01") for count in (images, images, 4 * images))
    small = max(first, again, key=lambda found: found["anonymous"])
    print(small, large)
    assert large["rows"] == 4 * small["rows"]
    assert large["anonymous"] < 1.1 * small["anonymous"]
    assert small["valid_accuracy"] == large["valid_accuracy"] == 1


def test_available_memory_respects_the_process_limit() -> None:
    """A limit below what the machine has free is what counts."""
    assert 0 < available_bytes() < 1 << 62
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    free = available_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + free // 2, hard))
        assert available_bytes() <= free // 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/job/step", "job", "memory.max", "anon"),
        ("4:cpu,memory:/job/step", "memory/job", "memory.limit_in_bytes", "total_rss"),
    ],
    ids=["version 2", "version 1"],
)
def test_available_memory_respects_control_groups(
    line: str, folder: str, limit: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the group above the process's, whose limit is less what is used and cannot be given up."""
    group = tmp_path / folder
    (group / "step").mkdir(parents=True)
    (group / limit).write_text("100000000\n")
    (group / "memory.stat").write_text(f"cache 70000000\n{used} 40000000\n")
    (tmp_path / "self").write_text(f"3:cpuset:/\n{line}\n")
    monkeypatch.setattr("pipeline.machine.cgroup._CGROUP", tmp_path / "self")
    monkeypatch.setattr("pipeline.machine.cgroup._ROOT", tmp_path)
    assert available_bytes() == 60000000


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/job/step", {"job/cpu.max": "150000 100000\n", "job/step/cpu.max": "max 100000\n"}),
        ("4:cpu,cpuacct:/job/step", {"cpu/job/cpu.cfs_quota_us": "150000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}),
        ("4:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"}),
    ],
    ids=["version 2", "version 1", "no limit"],
)
def test_available_processors_respect_control_groups(
    line: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of one and a half processors is used by two; without a limit, those of the affinity."""
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "self").write_text(f"{line}\n")
    monkeypatch.setattr("pipeline.machine.cgroup._CGROUP", tmp_path / "self")
    monkeypatch.setattr("pipeline.machine.cgroup._ROOT", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert available_cpus() == (8 if "-1\n" in files.values() else 2)
