"""What comparing backbones found, in words."""

from dataclasses import dataclass

from cache.result import Result
from pipeline.console import counted, named


@dataclass(frozen=True)
class ComparedBackbone:
    """What heads reach on one cache, and what its rows cost.

    Attributes:
        cache: folder of the cache.
        backbone: name of the network; of a reduced cache, also the basis of the reduction.
        basis: basis of the heads, the default one for such rows.
        valid_accuracy: mean validation accuracy over the seeds, a fraction.
        low: lower bound of its 95 % interval over images.
        high: upper bound of its 95 % interval over images.
        difference: `valid_accuracy` minus that of the best cache, 0 for the best itself.
        difference_low: lower bound of its 95 % interval over seeds and images, paired by image.
        difference_high: upper bound of its 95 % interval over seeds and images, paired by image.
        images_per_second: rows that extraction computed, by the seconds of computing them; with `--engine ray`, of one
            worker. None without a record of it.
        bytes_per_image: size of one row in the cache.
        gmacs: 10^9 multiply-adds of the backbone per image; None where unknown.
        licence: of the weights; None where unknown.
    """

    cache: str
    backbone: str
    basis: str
    valid_accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    images_per_second: float | None
    bytes_per_image: int
    gmacs: float | None
    licence: str | None


@dataclass(frozen=True)
class CompareResult(Result):
    """What `compare` found.

    Attributes:
        set: name of the image set.
        images: validation images that backbones are compared on.
        passes: augmented passes that heads were trained on.
        epochs: of each head.
        seeds: heads trained on each cache.
        backbones: the most accurate first.
        seconds: of the command.
    """

    set: str
    images: int
    passes: int
    epochs: int
    seeds: int
    backbones: list[ComparedBackbone]
    seconds: float

    def in_words(self) -> str:
        """A table with a line for each cache, and what its numbers are."""
        titles = ("backbone", "cache", "accuracy (95 %)", "difference (95 %)", "images/s", "bytes", "GMACs", "licence")
        rows = [titles, *(_row(one, place == 0) for place, one in enumerate(self.backbones))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        trained = (counted(self.seeds, "seed"), counted(self.passes, "augmented pass"), counted(self.epochs, "epoch"))
        return "\n".join(lines) + (
            f"\nset {self.set}, {counted(self.images, 'validation image')}: accuracy of the default head, mean over "
            f"{', '.join(trained)}; difference in points to the best cache, paired by image; {self.seconds:.1f} s"
        )


def _row(one: ComparedBackbone, best: bool) -> tuple[str, ...]:
    low, value, high = (100 * bound for bound in (one.difference_low, one.difference, one.difference_high))
    return (
        one.backbone,
        named(one.cache),
        f"{one.valid_accuracy:.2%} ({one.low:.2%} to {one.high:.2%})",
        "–" if best else f"{value:+.2f} ({low:+.2f} to {high:+.2f})",
        f"{one.images_per_second:.1f}" if one.images_per_second else "–",
        f"{one.bytes_per_image:,}",
        f"{one.gmacs:.2f}" if one.gmacs else "–",
        one.licence or "–",
    )
