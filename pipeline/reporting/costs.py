"""What a run cost, and when the cache has paid for itself."""

from dataclasses import dataclass

from cache.history import Extraction

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
        """Of complete commands."""
        return float(sum(entry.seconds for entry in self.extractions))

    @property
    def seconds_a_row(self) -> float:
        """Including startup; 0 without rows."""
        return self.seconds / self.computed if self.computed else 0.0

    @property
    def warmup_seconds(self) -> float:
        """Of complete commands, before the first row."""
        return float(sum(entry.warmup_seconds for entry in self.extractions))

    @property
    def devices(self) -> list[str]:
        """Kinds of devices that computed."""
        return sorted({entry.device for entry in self.extractions})

    def phase(self, name: str) -> float:
        """Seconds of a phase; phases overlap."""
        return float(sum(entry.phases.get(name, 0.0) for entry in self.extractions))


@dataclass(frozen=True)
class Payback:
    """What a head costs that runs the frozen backbone in each of `epochs`, counted in views through it.

    Each such epoch computes every training and validation image once: `views_a_head` in all. The cache computed
    `views`, once, for any number of heads; that is what `heads` of them take, or the first `epochs_of_first` epochs of
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
