"""Ray: a cluster that is there or one started on this machine, and units of work handed to its workers.

Workers are actors: each is made once, takes one unit at a time, and is restarted by Ray where its process or its
machine goes; the unit it had is then done again.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Generic, TypeVar

from cache.errors import install_hint
from pipeline.config.options import ClusterConfig
from pipeline.console import counted, first_line
from pipeline.errors import ConfigError, PipelineError
from pipeline.machine.device import available_cpus

logger = logging.getLogger("headgraft.machine")

U = TypeVar("U")
T = TypeVar("T")

RETRIES = 3  # of a unit whose worker went
SECONDS_TO_KNOCK = 10.0  # at a cluster's address
_SECONDS_TO_WAIT = 10.0  # for a unit, before it is looked whether to stop


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[Any]:
    """The package `ray`, connected to `cluster`; one that was started here ends here.

    A connection that the process has already is used as it is. ConfigError without the package, PipelineError where the
    cluster cannot be reached or its workers would import other packages of our names.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(f"--engine ray needs Ray: {install_hint('ray')}") from error
    _refuse_other_packages(Path.cwd())
    with redirect_stdout(sys.stderr):  # where Ray prints what it has to say, and results are to stand alone
        if ray.is_initialized():
            yield ray
            return
        _connect(ray, cluster)
        try:
            yield ray
        finally:
            ray.shutdown()


def _refuse_other_packages(folder: Path) -> None:
    """PipelineError where workers would import another `cache` or `pipeline`: Ray has them look in `folder` first."""
    for name in ("cache", "pipeline"):
        found = PathFinder.find_spec(name, [str(folder)])
        if found and found.origin and Path(found.origin).resolve().parents[1] != Path(__file__).resolve().parents[2]:
            raise PipelineError(
                f"{found.origin} would hide headgraft's own package {name} from the workers of Ray: rename it, or run "
                "this in another folder"
            )


def _connect(ray: Any, cluster: ClusterConfig) -> None:
    """Join the cluster that is asked for, or start one."""
    address = cluster.ray_address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_terminate = signal.getsignal(signal.SIGTERM)
    given: dict[str, Any] = {"include_dashboard": False, "num_cpus": available_cpus(), "address": "local"}
    try:
        if address:
            given = {"address": address}
            _knock(address)
        ray.init(**given, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray could not be started here"
        # Where none is found, Ray tells of options of its own.
        reason = "" if address and type(error) is ConnectionError else f" ({first_line(error)})"
        raise PipelineError(f"{where}{reason}: check --ray-address and that Ray runs there") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place
    found = ray.cluster_resources()
    logger.info(f"Ray: {found.get('CPU', 0):g} processors, {counted(int(found.get('GPU', 0)), 'GPU')}")


def _knock(address: str) -> None:
    """OSError where nobody listens at host:port, which Ray itself takes minutes to say."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_KNOCK).close()


def workers_of(ray: Any, cluster: ClusterConfig) -> int:
    """How many: as asked for, else all that the cluster has room for; PipelineError where that is none."""
    if cluster.ray_workers is not None:
        return cluster.ray_workers  # a cluster may grow
    found, needs = ray.cluster_resources(), {"CPU": cluster.cpus, "GPU": cluster.gpus_per_worker}
    room = min(found.get(kind, 0) // need for kind, need in needs.items() if need)
    if room < 1:
        raise PipelineError(
            f"the Ray cluster has {found.get('CPU', 0):g} processors and {found.get('GPU', 0):g} GPUs, a worker takes "
            f"{needs['CPU']:g} and {needs['GPU']:g}: ask for less, or name --ray-workers if it will grow"
        )
    return int(room)


@dataclass
class Workers(Generic[U, T]):
    """Actors of `kind`, made with `given`, whose method `run` does a unit. A context manager: leaving it ends them.

    `kind` also has a method `ready`, which returns when it can begin. Both are handed `shared` as well, references to
    what is too large to be sent each time.
    """

    ray: Any
    kind: type
    given: Sequence[Any]
    cluster: ClusterConfig
    name_of: Callable[[U], str] = str
    shared: Sequence[Any] = ()
    count: int = 0
    _coming: dict[Any, Any] = field(default_factory=dict)  # actors by the reference to `ready`
    _up: list[Any] = field(default_factory=list)
    _idle: deque[Any] = field(default_factory=deque)

    def __enter__(self) -> "Workers[U, T]":
        needs = {"num_cpus": self.cluster.cpus, "num_gpus": self.cluster.gpus_per_worker}
        kind = self.ray.remote(**needs, max_restarts=-1, max_task_retries=RETRIES)(self.kind)
        self.count = workers_of(self.ray, self.cluster)
        actors = [kind.remote(*self.given) for _ in range(self.count)]
        self._coming = {actor.ready.remote(*self.shared): actor for actor in actors}
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        # Killed at work, Ray would announce that it tries again. After an interrupt they end with the connection, and
        # those that have not come up when nothing refers to them any more.
        if not (kind and issubclass(kind, KeyboardInterrupt)):
            for actor in self._up:
                self.ray.kill(actor)
        for held in (self._coming, self._up, self._idle):
            held.clear()

    def first_ready(self) -> None:
        """Wait until one worker can begin."""
        done, _ = self.ray.wait(list(self._coming), num_returns=1)
        self._come(done[0])

    def run(self, units: Sequence[U], stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[U, T]]:
        """Each unit with what `run` made of it, as they are done. After `stop`, no more are started.

        What `run` raises is raised here; PipelineError for a unit that brings down one worker after another.
        """
        waiting, busy = deque(units), dict[Any, tuple[Any, U]]()
        while busy or (waiting and not stop()):
            while waiting and self._idle and not stop():
                actor, unit = self._idle.popleft(), waiting.popleft()
                busy[actor.run.remote(unit, *self.shared)] = actor, unit
            asked = [*busy, *(self._coming if waiting else ())]
            done, _ = self.ray.wait(asked, num_returns=1, timeout=_SECONDS_TO_WAIT)
            for reference in done:
                if reference in self._coming:
                    self._come(reference)
                    continue
                actor, unit = busy.pop(reference)
                self._idle.append(actor)
                crashed = f"{self.name_of(unit)} crashed its worker, and {RETRIES} retries too"
                yield unit, self._result(reference, crashed)

    def _come(self, reference: Any) -> None:
        """Give work to a worker that is there now."""
        self._up.append(actor := self._coming.pop(reference))
        self._result(reference, "a worker could not start")
        self._idle.append(actor)

    def _result(self, reference: Any, crashed: str) -> Any:
        """What the worker returned; what it raised is raised here, PipelineError where it went."""
        known = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except known.RayTaskError as error:
            raise error.cause from None
        except known.RayError as error:
            reason = first_line(error)[:300]
            raise PipelineError(f"{crashed} ({reason}): fix that, then rerun the command to resume") from error
