"""What `headgraft extract` is asked."""

import re
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from cache.layout import LARGEST_SIDE, MOST_PASSES
from pipeline.config.options import (
    DEVICES,
    LARGEST_SEED,
    PRECISIONS,
    ClusterConfig,
    argument,
    check_capture,
    option,
    require,
    required,
)


@dataclass(frozen=True)
class ExtractConfig(ClusterConfig):
    """Stage one, of images in `data`.

    Parts of it (`shard_of`) compute beside one another; `hash_only` comes before them, so that each need not hash all
    images, and `finish` after them. Workers of a cluster are handed `unit_rows` at once, which are lost with them.
    """

    data: Path = field(metadata=argument("Images: a folder of splits, a folder of class folders, or a CSV file."))
    cache: Path = field(metadata=required("Folder of the feature cache."))
    set: str | None = option(None, "Name of the image set.  [default: last component of DATA]")
    passes: int = option(0, "Number of augmented passes over the training images.", least=0, most=MOST_PASSES)
    backbone: str = option("vgg16", "Network of torchvision, such as resnet50, or timm/ and one of timm.")
    layer: str | None = option(
        None,
        "Layer of the rows: avgpool, pooled, map, cls, mean, cls+mean, cls4+mean, tokens.  [default: by backbone]",
    )
    weights: str | None = option(
        None, "Name of the weights, their file, or the folder of a timm model.  [default: ImageNet]"
    )
    image_size: int | None = option(
        None, "Input size of the backbone in pixels.  [default: that of its weights]", least=32, most=LARGEST_SIDE
    )
    seed: int = option(0, "Random seed of the augmented passes.", least=0, most=LARGEST_SEED)
    split_seed: int = option(0, "Random seed of the split, where DATA has none.", least=0, most=LARGEST_SEED)
    group_by: str | None = option(
        None, "Regular expression on paths: images of the same first capture are one group.", metavar="REGEX"
    )
    unlabelled: bool = option(False, "Add the images of the folder DATA, at any depth, to the set without labels.")
    precision: str = option("auto", "Compute precision of the backbone.", choices=PRECISIONS)
    device: str = option("auto", "Device of the backbone.", choices=DEVICES)
    batch_size: int | None = option(None, "Images per batch.  [default: 8; 256 on a GPU]", least=1, most=4096)
    workers: int | None = option(
        None,
        "Decoding threads; 0 = decode in the main thread.  [default: half of the CPUs]",
        least=0,
        most=256,
    )
    threads: int | None = option(None, "Compute threads.  [default: all CPUs]", least=1, most=1024)
    grey_range: str | None = option(
        None,
        "White level of 16-bit grey images, or auto; 4095 for 12-bit data.  [default: 65535]",
        metavar="MAX|auto",
    )
    skip_bad: bool = option(False, "Skip undecodable files (they are recorded) instead of failing.")
    dry_run: bool = option(False, "Print the plan and the time of a pass, and exit; weights are fetched.")
    shard_of: str | None = option(None, "i/n: compute part i of n; other processes compute the others.")
    hash_only: bool = option(False, "Hash the images once, before the parts; compute nothing.")
    finish: bool = option(False, "Write the index after all parts are computed; compute nothing.")
    _: KW_ONLY
    unit_rows: int | None = option(
        None, "Rows per unit of work (Ray).  [default: up to 128; 1000 with a GPU]", least=1, most=1_000_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        grey = self.grey_range
        known = grey in (None, "auto") or (str(grey).isdecimal() and 255 <= int(str(grey)) <= 65535)
        require(
            known, f"--grey-range is {grey!r}, expected auto or a value from 255 to 65535, such as 4095 for 12 bits"
        )
        if self.group_by is not None:
            check_capture("--group-by", self.group_by)
        grouped = self.unlabelled and self.group_by is not None
        require(not grouped, "--group-by is for images with labels: leave out --unlabelled or --group-by")
        _ = self.part  # which checks it
        require(self.unit_rows is None or self.engine == "ray", "--unit-rows is for --engine ray: add that")
        alone = self.hash_only and (self.finish or self.shard_of or self.dry_run)
        require(not alone, "--hash-only goes before all others: leave out --shard-of, --finish and --dry-run")
        require(not (self.finish and self.shard_of), "--finish and --shard-of: parts first, then --finish without them")

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n): the i-th of n parts, from 1; None for all of it."""
        if self.shard_of is None:
            return None
        found = re.fullmatch(r"([1-9][0-9]{0,6})/([1-9][0-9]{0,6})", self.shard_of)
        number, parts = (int(found[1]), int(found[2])) if found else (1, 0)
        require(number <= parts, f"--shard-of is {self.shard_of!r}, expected i/n with i from 1 to n, such as 3/8")
        return number, parts
