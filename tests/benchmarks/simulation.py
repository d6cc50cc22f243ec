"""Stage one on many workers as a discrete-event simulation: what slow workers, failures and a shared store cost.

Workers take units of rows from one queue, or each from a share of its own, compute them and write them to one store. A
worker that fails loses its unit, which is done again; nothing that was written is. Near the end an idle worker may take
a second copy of a unit in progress: backup tasks, as in MapReduce (Dean and Ghemawat, OSDI 2004, section 3.6).
"""

import math
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from random import Random

import simpy

Steps = Generator[simpy.Event, None, None]


@dataclass(frozen=True)
class Setting:
    """What is simulated; times in seconds, of each worker.

    `rate` is in images a second; a unit of `unit` rows takes unit / rate, times a factor of mean 1 whose logarithm has
    the deviation `noise`. A share `slow_share` of the workers takes `slow_factor` as long for all units; each worker,
    every `phase_every` on average, as long for the units begun in a phase of `phase_length` on average. Failures come
    `mtbf` apart on average, and cost the unit in progress and `restart`. The store takes `store` bytes a second, one
    unit at a time; indexing and merging take `finish_rate` images a second, at the end.
    """

    images: int = 10**9
    workers: int = 512
    unit: int = 10_000
    rate: float = 2000.0
    noise: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 3.0
    phase_every: float = math.inf
    phase_length: float = 600.0
    mtbf: float = math.inf
    restart: float = 120.0
    row_bytes: int = 1072
    store: float = math.inf
    finish_rate: float = math.inf
    static: bool = False  # a share for each worker, as with --shard-of, in place of one queue
    backups: bool = False
    seed: int = 0

    @property
    def units(self) -> int:
        """The last one is taken for a whole one."""
        return math.ceil(self.images / self.unit)

    @property
    def unit_seconds(self) -> float:
        """Of a worker that is not slow."""
        return self.unit / self.rate

    @property
    def ideal(self) -> float:
        """Seconds of all units, shared evenly by workers that neither fail nor wait."""
        return self.units * self.unit_seconds / self.workers


@dataclass(frozen=True)
class Outcome:
    """What came of it; times in seconds.

    `makespan` until the last unit is written, `tail` of it after 99 % of them, `total` with the finish. `efficiency` is
    the ideal makespan over this one. `rows_again` were computed more than once: in units that failures cut off, and as
    copies, which count whole. Of `worker_hours` each worker has those until there is no more for it to do.
    """

    makespan: float
    total: float
    tail: float
    efficiency: float
    units: int  # each counted once
    copies: int  # of units, begun
    failures: int
    rows_again: float
    worker_hours: float


def simulate(setting: Setting) -> Outcome:
    """Run it; the same setting always gives the same outcome."""
    return _Simulation(setting).run()


class _Pool:
    """Units that some workers share: those waiting, and those in progress."""

    def __init__(self, env: simpy.Environment, units: Iterable[int], backups: bool) -> None:
        self.waiting = deque(units)
        self.left = len(self.waiting)  # not yet written
        self.ended = math.inf  # when none was left
        self.copies = 0  # begun
        self.changed = env.event()
        self._env = env
        self._backups = backups
        self._workers_on: dict[int, int] = {}
        self._without_copy: dict[int, None] = {}  # in progress once, the longest first

    def take(self) -> int | None:
        """A unit to compute; None where there is none now."""
        if self.waiting:
            unit = self.waiting.popleft()
            self._without_copy[unit] = None
        elif self._backups and self._without_copy:
            unit = next(iter(self._without_copy))
            del self._without_copy[unit]
            self.copies += 1
        else:
            return None
        self._workers_on[unit] = self._workers_on.get(unit, 0) + 1
        return unit

    def give_back(self, unit: int) -> None:
        """A worker lost it; unless another has it in progress or has done it, it waits again."""
        if unit in self._workers_on:
            self._workers_on[unit] -= 1
            self._without_copy.pop(unit, None)
            if self._workers_on[unit]:
                self._without_copy[unit] = None
            else:
                del self._workers_on[unit]
                self.waiting.append(unit)
            self._wake()

    def done(self, unit: int) -> bool:
        """A worker wrote it; False where another one had."""
        if unit not in self._workers_on:
            return False
        del self._workers_on[unit]
        self._without_copy.pop(unit, None)
        self.left -= 1
        if not self.left:
            self.ended = self._env.now
            self._wake()
        return True

    def _wake(self) -> None:
        """Idle workers look again."""
        self.changed.succeed()
        self.changed = self._env.event()


class _Worker:
    """Draws of one worker, the same whatever the others do."""

    def __init__(self, setting: Setting, number: int, slow: bool) -> None:
        self._setting = setting
        self._random = Random(f"{setting.seed}:{number}")
        self._factor = setting.slow_factor if slow else 1.0
        self._phase = (0.0, 0.0)  # the latest one, or the next
        self.fails_at = 0.0
        self.renew(0.0)

    def renew(self, now: float) -> None:
        """Draw when it fails next."""
        self.fails_at = now + self._after(self._setting.mtbf)

    def back_from_idling(self, now: float) -> None:
        """A failure meanwhile cost nothing."""
        if self.fails_at < now:
            self.renew(now)

    def seconds(self, now: float) -> float:
        """Of a unit begun now."""
        noise, slow = self._setting.noise, self._factor
        if math.isfinite(self._setting.phase_every) and self._in_phase(now):
            slow *= self._setting.slow_factor
        if noise:
            slow *= self._random.lognormvariate(-noise * noise / 2, noise)
        return self._setting.unit_seconds * slow

    def _in_phase(self, now: float) -> bool:
        while now >= self._phase[1]:
            start = self._phase[1] + self._after(self._setting.phase_every)
            self._phase = start, start + self._after(self._setting.phase_length)
        return now >= self._phase[0]

    def _after(self, mean: float) -> float:
        return self._random.expovariate(1 / mean) if math.isfinite(mean) else math.inf


class _Simulation:
    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._env = simpy.Environment()
        self._store = simpy.Resource(self._env)
        self._writing = setting.unit * setting.row_bytes / setting.store
        self._done = self._failures = 0
        self._cut_off = 0.0  # units
        self._held = 0.0
        self._makespan = self._at_99 = 0.0

    def run(self) -> Outcome:
        """All workers, to the end."""
        setting, env, pools = self._setting, self._env, self._pools()
        slow = set(Random(setting.seed).sample(range(setting.workers), round(setting.slow_share * setting.workers)))
        processes = [
            env.process(self._work(pool, _Worker(setting, number, number in slow))) for number, pool in enumerate(pools)
        ]
        env.run(env.all_of(processes))
        copies = sum(pool.copies for pool in set(pools))
        return Outcome(
            makespan=self._makespan,
            total=self._makespan + setting.images / setting.finish_rate,
            tail=self._makespan - self._at_99,
            efficiency=setting.ideal / self._makespan,
            units=self._done,
            copies=copies,
            failures=self._failures,
            rows_again=(copies + self._cut_off) * setting.unit,
            worker_hours=self._held / 3600,
        )

    def _pools(self) -> list[_Pool]:
        """Each worker's."""
        setting = self._setting
        if setting.static:
            shares = (range(number, setting.units, setting.workers) for number in range(setting.workers))
            return [_Pool(self._env, share, False) for share in shares]
        return [_Pool(self._env, range(setting.units), setting.backups)] * setting.workers

    def _work(self, pool: _Pool, worker: _Worker) -> Steps:
        env = self._env
        while pool.left:
            unit = pool.take()
            if unit is None:
                yield pool.changed
                worker.back_from_idling(env.now)
                continue
            seconds = worker.seconds(env.now)
            if env.now + seconds > worker.fails_at:
                yield from self._fail(pool, worker, unit, seconds)
                continue
            yield env.timeout(seconds)
            if self._writing:
                with self._store.request() as turn:
                    yield turn
                    yield env.timeout(self._writing)
            self._written(pool, unit)
        self._held += min(env.now, pool.ended)

    def _written(self, pool: _Pool, unit: int) -> None:
        if not pool.done(unit):
            return
        self._done += 1
        self._makespan = self._env.now
        if self._done == math.ceil(0.99 * self._setting.units):
            self._at_99 = self._env.now

    def _fail(self, pool: _Pool, worker: _Worker, unit: int, seconds: float) -> Steps:
        lasted = max(0.0, worker.fails_at - self._env.now)
        yield self._env.timeout(lasted)
        self._failures += 1
        self._cut_off += lasted / seconds
        pool.give_back(unit)
        yield self._env.timeout(self._setting.restart)
        worker.renew(self._env.now)
