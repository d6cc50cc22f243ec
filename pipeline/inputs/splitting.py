"""The split of a data set that has none, groups read off paths, and what a split that is there cuts apart."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from cache.index import ImageRecord, SetIndex
from pipeline.console import counted
from pipeline.errors import ImageSetError
from pipeline.statistics.groups import join

logger = logging.getLogger("headgraft.inputs")


def split_by_class(images: Sequence[ImageRecord], seed: int) -> list[ImageRecord]:
    """A tenth of each class, at least one image, to valid and as many to test; a class of two has none for test.

    By content, in an order that `seed` draws: identical files stay together, and so do those of a group, which are
    taken whole for as long as more than half of the next one still fits.
    """
    names = join(images).names(images)
    contents: dict[str, dict[str, set[str]]] = {}
    for image, name in zip(images, names, strict=True):
        contents.setdefault(image.label, {}).setdefault(name, set()).add(image.digest)
    split_of: dict[str, str] = {}
    for label in sorted(contents):
        sizes = {name: len(digests) for name, digests in contents[label].items() if name not in split_of}
        order = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        wanted = max(1, round(sum(sizes.values()) / 10))
        for split, least in (("valid", 2), ("test", 3)):
            held = 0
            while len(sizes) >= least and len(order) > 1 and (not held or held + sizes[order[0]] / 2 < wanted):
                held += sizes[order[0]]
                split_of[order.pop(0)] = split
        split_of |= dict.fromkeys(order, "train")
    return [replace(image, split=split_of[name]) for image, name in zip(images, names, strict=True)]


def grouped_by(images: Sequence[ImageRecord], pattern: str) -> list[ImageRecord]:
    """Images with the first capture of `pattern` in their path, its parts separated by /, as their group.

    Those whose path it is not found in have none. ImageSetError where it is found in no path, or groups are given.
    """
    if any(image.group for image in images):
        raise ImageSetError("the images have groups already: leave out --group-by, or the column group of the CSV")
    found = [re.search(pattern, PurePath(image.path).as_posix()) for image in images]
    groups = [(match[1] or "") if match else "" for match in found]
    if not any(groups):
        raise ImageSetError(
            f"--group-by {pattern!r} is found in no path, the first is {PurePath(images[0].path).as_posix()!r}: "
            "correct the expression"
        )
    if left := groups.count(""):
        logger.warning(f"--group-by: {counted(left, 'path')} without a match, each a group of its own")
    return [replace(image, group=group) for image, group in zip(images, groups, strict=True)]


def count_leaks(index: SetIndex) -> dict[str, int]:
    """Distinct contents that stand in more than one split (`across_splits`), or have more than one label.

    Unlabelled images do not count. Where images have groups, also how many of these stand in more than one split
    (`groups`).
    """
    images = index.labelled.images
    splits = Counter(digest for digest, _ in {(image.digest, image.split) for image in images})
    labels = Counter(digest for digest, _ in {(image.digest, image.label) for image in images})
    groups = Counter(group for group, _ in {(image.group, image.split) for image in images if image.group})
    return {
        "across_splits": sum(count > 1 for count in splits.values()),
        "two_labels": sum(count > 1 for count in labels.values()),
        **({"groups": sum(count > 1 for count in groups.values())} if groups else {}),
    }
