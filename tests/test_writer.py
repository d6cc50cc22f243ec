"""When shards land, on a clock that a test turns."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import key_of, some_rows
from hypothesis import given
from hypothesis import strategies as st

from cache.keys import RowKey
from cache.shard import Float16Array, ShardHeader
from cache.writer import ShardWriter

Shards = list[list[RowKey]]


class Clock:
    """A monotonic clock that stands still until it is turned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("cache.writer.time.monotonic", lambda: self.now)


class Recorded(ShardWriter):
    """A writer that keeps the keys of each shard in `shards` and writes nothing."""

    def __init__(self, **limits: int | float | None) -> None:
        self.shards: Shards = []
        super().__init__(Path("nowhere"), ShardHeader("b" * 64, (1,)), **limits)  # type: ignore[arg-type]

    def _write(self, keys: list[RowKey], rows: list[Float16Array]) -> None:
        self.shards.append(keys)

    def written(self) -> int:
        """Rows in shards, all that were handed to the writing thread."""
        self._wait()
        return sum(map(len, self.shards))


def allowed(elapsed: float) -> float:
    """The longest that a row may wait, `elapsed` seconds after the start."""
    return max(2.0, min(20.0, elapsed / 2))


def oldest_waits(gaps: Sequence[float]) -> list[tuple[float, float, float]]:
    """A row after each of `gaps` seconds: the time, and the age of the oldest row not in a shard before and after."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, found = Clock(monkeypatch), []
        start = clock.now
        added: list[float] = []
        with Recorded() as writer:
            for number, gap in enumerate(gaps):
                clock.now += gap
                waiting = added[writer.written() :]
                before = clock.now - waiting[0] if waiting else 0.0
                writer.add([key_of(number)], some_rows(1, 1))
                added.append(clock.now)
                waiting = added[writer.written() :]
                found.append((clock.now - start, before, clock.now - waiting[0] if waiting else 0.0))
    return found


@given(st.lists(st.floats(0, 30), max_size=60))
def test_no_row_waits_longer_than_half_of_the_time_so_far(gaps: list[float]) -> None:
    """However irregular the rows come: after each of them, 2 s at the start, never more than 20 s."""
    for elapsed, _, waits in oldest_waits(gaps):
        assert waits < allowed(elapsed)


@given(st.floats(0.01, 2), st.integers(1, 300))
def test_rows_that_come_evenly_wait_no_longer_at_any_moment(gap: float, count: int) -> None:
    """Also just before the next ones come: a shard is written before its rows would wait too long."""
    for elapsed, before, _ in oldest_waits([gap] * count):
        assert before <= allowed(elapsed) + 1e-6


def test_shards_land_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch every 0.5 s: the first after 2 s, each later one twice as late, then every 20 s."""
    clock, landed = Clock(monkeypatch), [0.0]
    with Recorded() as writer:
        for number in range(240):
            clock.now += 0.5
            before = writer.written()
            writer.add([key_of(number)], some_rows(1, 1))
            if writer.written() > before:
                landed.append(clock.now - 1000)
    between = [later - earlier for earlier, later in pairwise(landed)]
    assert between[0] <= 2
    assert sorted(between) == between
    assert len(between) <= 11
    assert 19 <= between[-1] <= 20


def test_without_a_limit_in_time_rows_alone_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a unit of a cluster, which is one shard whatever it takes."""
    clock = Clock(monkeypatch)
    with Recorded(rows_per_shard=6, seconds_per_shard=None) as writer:
        for number in range(8):
            clock.now += 100
            writer.add([key_of(number)], some_rows(1, 1))
    assert [len(keys) for keys in writer.shards] == [6, 2]
