"""What must never decide a number: workers, shards, order, place, time, an interruption."""

import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Extract
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.keys import RowKey
from cache.store import FeatureCache
from cache.writer import ShardWriter
from pipeline.inputs.augment import ViewParameters, view_parameters
from pipeline.inputs.images import ImageSet
from pipeline.inputs.loader import Loader

Drawn = dict[RowKey, ViewParameters]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The parameters of every augmented view that is rendered, by its key; none may be rendered twice differently."""
    seen: Drawn = {}

    def watched(seed: int, digest: bytes, number: int) -> ViewParameters:
        found = view_parameters(seed, digest, number)
        assert seen.setdefault((digest, f"pass:{number}"), found) == found
        return found

    monkeypatch.setattr("pipeline.inputs.views.view_parameters", watched)
    return seen


def interrupted(run_extract: Extract, cache: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """An extraction that ends after ten batches."""
    add, batches = ShardWriter.add, itertools.count()

    def counted(*given: Any) -> None:
        if next(batches) == 10:
            raise KeyboardInterrupt
        add(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", counted)
        with pytest.raises(KeyboardInterrupt):
            run_extract(cache=cache, **options)


@pytest.mark.parametrize("shard_rows", [1, 7, 64])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_augmentation_does_not_depend_on_how_rows_are_made(
    workers: int, shard_rows: int, run_extract: Extract, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, rows a shard, order, a run that was interrupted: each view has its parameters, each row its view."""
    run_extract(cache=tmp_path / "plain", passes=2)
    plain, reference = FeatureCache.open(tmp_path / "plain"), dict(drawn)
    drawn.clear()
    monkeypatch.setattr("pipeline.extraction.extractor.ShardWriter.__init__.__defaults__", (shard_rows, 20.0))
    monkeypatch.setattr("cache.writer.MERGE_BELOW", 0)
    run = Loader.run
    shuffled = random.Random(workers + shard_rows)
    monkeypatch.setattr(
        "pipeline.extraction.extractor.Loader.run", lambda self, work: run(self, shuffled.sample(work, len(work)))
    )
    options = {"passes": 2, "workers": workers, "batch_size": 1}
    interrupted(run_extract, tmp_path / "other", monkeypatch, **options)
    assert run_extract(cache=tmp_path / "other", **options).reused == 10
    other, keys = FeatureCache.open(tmp_path / "other"), plain.index().row_keys(2)
    assert drawn == reference == {key: view_parameters(0, key[0], int(key[1][5:])) for key in keys if key in drawn}
    assert len(drawn) == 24
    assert max(map(len, other.shards)) <= shard_rows
    assert np.allclose(plain.read(keys), other.read(keys), atol=1e-3, rtol=1e-3)


PLACES = st.text(st.sampled_from("ab é."), min_size=1, max_size=8).map(lambda name: f"x{name}x")
TIMES = st.integers(0, 1 << 31)


@settings(max_examples=10)
@given(PLACES, TIMES, st.sampled_from([0, 1, 3]), st.integers(1, 9), st.randoms(use_true_random=False))
def test_place_time_workers_batches_and_order_enter_no_digest(
    data: Path,
    run_extract: Extract,
    tmp_path_factory: pytest.TempPathFactory,
    place: str,
    when: int,
    workers: int,
    batch_size: int,
    order: random.Random,
) -> None:
    """Manifest and set have the same digests wherever and however they are made, and no row is computed twice."""
    folder = tmp_path_factory.mktemp("anywhere")
    root = shutil.copytree(data, folder / place / "data")
    for file in root.rglob("*"):
        os.utime(file, (when, when))
    iterdir: Callable[[Path], object] = Path.iterdir

    def any_order(self: Path) -> object:
        return iter(order.sample(found := list(iterdir(self)), len(found)))  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", any_order)
        run_extract(data=root, cache=folder / "c", passes=1, workers=workers, batch_size=batch_size)
    made = FeatureCache.open(folder / "c")
    run_extract(cache=folder / "plain", passes=1)
    plain = FeatureCache.open(folder / "plain")
    assert made.manifest.base.digest == plain.manifest.base.digest
    assert made.manifest.augmentation == plain.manifest.augmentation
    assert made.index().digest == plain.index().digest == ImageSet.scan(data).index("any").digest
    assert run_extract(data=root, cache=folder / "plain", set="moved", passes=1).computed == 0
