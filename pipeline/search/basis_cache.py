"""The rows of a set in several bases, for a sweep: as many of them in memory as fit."""

import time
from dataclasses import dataclass, field

from pipeline.bases.basis import Basis
from pipeline.bases.data import TrainingData
from pipeline.bases.fit import Memo
from pipeline.bases.projection import load_data
from pipeline.bases.trainset import TrainingSet


@dataclass
class BasisCache:
    """Rows of `trainset` in each basis that is asked for; `memory` bytes may be held. `seconds` is what they took."""

    trainset: TrainingSet
    memory: int
    seconds: float = 0.0
    _held: dict[str, tuple[Basis, TrainingData]] = field(default_factory=dict, repr=False)
    _memo: Memo = field(default_factory=Memo, repr=False)

    def data(self, name: str) -> TrainingData:
        """Rows in basis `name`."""
        return self._loaded(name)[1]

    def basis(self, name: str) -> Basis:
        """Basis `name` as it was fitted."""
        return self._loaded(name)[0]

    def _loaded(self, name: str) -> tuple[Basis, TrainingData]:
        if name not in self._held:
            start = time.perf_counter()
            self._make_room()
            self._held[name] = load_data(self.trainset, name, self.memory, self._memo)
            self.seconds += time.perf_counter() - start
        self._held[name] = self._held.pop(name)  # the one used last goes last
        return self._held[name]

    def _make_room(self) -> None:
        """Let go of what can be made again, then of what was used longest ago, until one more of the largest fits."""
        while self._held and self._bytes() + max(data.bytes for _, data in self._held.values()) > self.memory:
            if self._memo.bytes:
                self._memo = Memo()
            else:
                del self._held[next(iter(self._held))]

    def _bytes(self) -> int:
        return self._memo.bytes + sum(data.bytes for _, data in self._held.values())
