"""Images without a label: folders of them that were added to a set, and copies of images that have one."""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cache.index import UNLABELLED, ImageRecord, SetIndex, SkippedImage
from pipeline.console import counted, named
from pipeline.inputs.listing import Listing
from pipeline.inputs.records import Record, records_of

logger = logging.getLogger("headgraft.inputs")


def together(records: Iterable[Record]) -> list[Record]:
    """`records` without paths that came before, and without unlabelled images whose content has a label: those are
    logged."""
    of_path: dict[str, Record] = {}
    for record in records:
        of_path.setdefault(record.path, record)
    labelled = {r.digest for r in of_path.values() if isinstance(r, ImageRecord) and r.split != UNLABELLED}
    kept = [r for r in of_path.values() if not (_is_unlabelled(r) and r.digest in labelled)]
    if copies := len(of_path) - len(kept):
        logger.info(f"{counted(copies, 'unlabelled image')} left out: the same content has a label in the set")
    return kept


def added_records(listings: Iterable[Listing], root: Path, hashed: SetIndex | None) -> list[Record]:
    """The images of added folders, each of which is a listing, with paths as a set of this `root` has them."""
    return [
        replace(record, path=_path_from(root, listing.root / record.path))
        for listing in listings
        for record in records_of(listing, hashed)
    ]


def out_of_reach(index: SetIndex, folders: Sequence[str], root: Path, found: Collection[str]) -> list[ImageRecord]:
    """The unlabelled images that `index` has in `folders`, with paths as a set of this `root` has them: logged.

    Without those whose digest was `found` elsewhere: their folder was moved.
    """
    kept = [
        replace(image, path=_path_from(root, _place(index, image.path)))
        for image in index.split(UNLABELLED)
        if image.digest not in found and lies_in(index, image.path, folders)
    ]
    if kept:
        logger.warning(
            f"{', '.join(map(named, folders))} cannot be reached: {counted(len(kept), 'unlabelled image')} of it kept "
            f"as before; to drop them, run headgraft cache forget --set {index.name}, then extract"
        )
    return kept


def lies_in(index: SetIndex, path: str, folders: Sequence[str]) -> bool:
    """Whether the file of a record lies in one of `folders`, which are absolute paths without links."""
    return any(_place(index, path).is_relative_to(folder) for folder in folders)


def _place(index: SetIndex, path: str) -> Path:
    return Path(os.path.normpath(Path(index.root).resolve() / path))


def _path_from(root: Path, place: Path) -> str:
    """From `root` where the file lies below it, else absolute."""
    root = root.resolve()
    return str(place.relative_to(root) if place.is_relative_to(root) else place)


def _is_unlabelled(record: Record) -> bool:
    return not isinstance(record, SkippedImage) and record.split == UNLABELLED
