"""What a run cost, and when the cache has paid for itself."""

from dataclasses import dataclass

from cache.history import Extraction, read_history
from cache.index import SetIndex
from cache.store import FeatureCache

PHASES = ("decode", "compute", "write")


@dataclass(frozen=True)
class StageOne:
    """What computing rows took, over the extractions that the cache recorded; `unread` lines of its record are none."""

    extractions: list[Extraction]
    unread: int

    @property
    def computed(self) -> int:
        """Rows."""
        return sum(entry.computed for entry in self.extractions)

    @property
    def seconds(self) -> float:
        """Of whole commands."""
        return float(sum(entry.seconds for entry in self.extractions))

    @property
    def warmup_seconds(self) -> float:
        """Of them before the first row."""
        return float(sum(entry.warmup_seconds for entry in self.extractions))

    def phase(self, name: str) -> float:
        """Seconds of a phase; phases overlap."""
        return float(sum(entry.phases.get(name, 0.0) for entry in self.extractions))


@dataclass(frozen=True)
class Payback:
    """What a head costs that runs the frozen backbone anew in each of `epochs`, counted in views through it.

    Each such epoch computes every training and validation image once: `views_a_head` in all. The cache computed
    `views`, once, for any number of heads; that is what `heads` of them take, or the first `epoch_of_first` epochs of
    one. What trains the head itself is the same for both and left out.
    """

    views: int
    epochs: int
    views_an_epoch: int

    @property
    def views_a_head(self) -> int:
        """Of all its epochs."""
        return self.epochs * self.views_an_epoch

    @property
    def heads(self) -> int:
        """Heads after which the cache has cost less."""
        return -(-self.views // self.views_a_head)

    @property
    def epochs_of_first(self) -> int:
        """Epochs of heads after which it has."""
        return -(-self.views // self.views_an_epoch)


def stage_one(cache: FeatureCache) -> StageOne:
    """As the cache recorded it."""
    return StageOne(*read_history(cache.path))


def payback(index: SetIndex, passes: int, epochs: int) -> Payback:
    """Of a set with `passes` augmented passes."""
    train, valid = len(index.split("train")), len(index.split("valid"))
    return Payback(len(index.row_keys(passes)), epochs, train + valid)
