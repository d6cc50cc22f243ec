"""The simulation of stage one on many workers, on settings whose outcome can be said beforehand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import Setting, simulate

SMALL = Setting(images=20_000, workers=7, unit=100, rate=50.0)
HARSH = replace(SMALL, noise=0.5, slow_share=0.3, mtbf=40.0, restart=5.0, phase_every=100.0, phase_length=30.0)

settings = st.builds(
    replace,
    st.just(HARSH),
    images=st.integers(1, 5_000),
    workers=st.integers(1, 9),
    noise=st.sampled_from([0.0, 0.5]),
    slow_share=st.sampled_from([0.0, 0.5, 1.0]),
    mtbf=st.sampled_from([5.0, 50.0]),
    store=st.sampled_from([1e5, float("inf")]),
    static=st.booleans(),
    backups=st.booleans(),
    seed=st.integers(0, 100),
)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("workers", [1, 7, 200, 300])
def test_undisturbed_work_takes_as_many_rounds_as_it_must(workers: int, static: bool) -> None:
    """200 units of 2 seconds, rounded up to whole rounds of all workers."""
    outcome = simulate(replace(SMALL, workers=workers, static=static))
    assert outcome.makespan == -(-200 // workers) * 2.0
    assert (outcome.failures, outcome.copies, outcome.rows_again) == (0, 0, 0)
    assert outcome.efficiency == pytest.approx(200 * 2 / workers / outcome.makespan)


@given(settings)
def test_every_unit_is_counted_once_whatever_fails(setting: Setting) -> None:
    """Lost ones are done again, second copies are spare."""
    outcome = simulate(setting)
    assert outcome.units == setting.units
    assert outcome.copies * setting.unit <= outcome.rows_again <= (outcome.copies + outcome.failures) * setting.unit
    assert 0 <= outcome.tail <= outcome.makespan
    assert outcome.worker_hours * 3600 <= outcome.makespan * setting.workers * (1 + 1e-9)


@given(settings)
def test_the_same_setting_gives_the_same_outcome(setting: Setting) -> None:
    """To the last bit."""
    assert simulate(setting) == simulate(setting)


@given(
    images=st.integers(1, 5_000),
    workers=st.integers(1, 12),
    share=st.floats(0, 1),
    factor=st.floats(1, 10),
    seed=st.integers(0, 100),
)
def test_shares_are_never_faster_than_the_queue(
    images: int, workers: int, share: float, factor: float, seed: int
) -> None:
    """Whichever workers are slow, and however slow they are."""
    queue = replace(SMALL, images=images, workers=workers, slow_share=share, slow_factor=factor, seed=seed)
    assert simulate(queue).makespan <= simulate(replace(queue, static=True)).makespan * (1 + 1e-9)


def test_one_slow_worker_holds_its_share_up_and_not_the_queue() -> None:
    """Of ten workers one is five times slower: five times as long, or 10 / 9.2 and a unit."""
    setting = replace(SMALL, workers=10, slow_share=0.1, slow_factor=5.0)
    assert simulate(replace(setting, static=True)).makespan == pytest.approx(5 * setting.ideal)
    assert simulate(setting).makespan == pytest.approx(10 / 9.2 * setting.ideal, abs=5 * setting.unit_seconds)


def test_a_copy_of_the_slowest_unit_ends_the_wait() -> None:
    """The slow worker's last unit, of 200 seconds, is done by an idle one in 2."""
    setting = replace(SMALL, workers=2, images=300, slow_share=0.5, slow_factor=100.0)
    assert simulate(setting).makespan == 200.0
    outcome = simulate(replace(setting, backups=True))
    assert outcome.makespan == 6.0
    assert (outcome.units, outcome.copies) == (3, 1)


def test_a_store_that_is_too_slow_sets_the_pace() -> None:
    """200 units of 100 rows of 1,000 bytes at 10,000 bytes a second: 2,000 seconds, and the first unit's computing."""
    outcome = simulate(replace(SMALL, row_bytes=1_000, store=1e4))
    assert outcome.makespan == pytest.approx(2_002)


def test_the_finish_is_one_process() -> None:
    """Its time is added whole."""
    outcome = simulate(replace(SMALL, finish_rate=10.0))
    assert outcome.total == outcome.makespan + 2_000
