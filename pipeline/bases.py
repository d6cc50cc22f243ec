"""The rows of a set in several bases, for a sweep: as many of them in memory as fit."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from pipeline.basis import Basis
from pipeline.console import Say, silent
from pipeline.rows import HeadData, load_data
from pipeline.stream import StreamedData
from pipeline.trainset import TrainingSet

Data = HeadData | StreamedData


@dataclass
class Bases:
    """Those of `rows` in each basis that is asked for; `memory` bytes may be held. `seconds` is what they took."""

    rows: TrainingSet
    memory: int
    say: Say = silent
    seconds: float = 0.0
    _held: dict[str, tuple[Basis, Data]] = field(default_factory=dict, repr=False)
    _regions: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def data(self, name: str) -> Data:
        """Rows in basis `name`."""
        return self._loaded(name)[1]

    def basis(self, name: str) -> Basis:
        """Basis `name` as it was fitted."""
        return self._loaded(name)[0]

    def _loaded(self, name: str) -> tuple[Basis, Data]:
        if name not in self._held:
            start = time.perf_counter()
            self._make_room()
            self._held[name] = load_data(
                self.rows.cache, self.rows.index, self.rows.passes, name, self.memory, self.say, self._regions
            )
            self.seconds += time.perf_counter() - start
        self._held[name] = self._held.pop(name)  # the one used last goes last
        return self._held[name]

    def _make_room(self) -> None:
        """Let go of what was used longest ago, until one more of the largest fits."""
        sizes = {name: data.bytes for name, (_, data) in self._held.items()}
        for name in list(self._held):
            if sum(sizes.values()) + max(sizes.values()) + sum(t.nbytes for t in self._regions.values()) <= self.memory:
                return
            if self._regions:
                self._regions.clear()
            else:
                del self._held[name], sizes[name]
