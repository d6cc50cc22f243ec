"""Images without a label: folders of them that were added to a set, and copies of images that have one."""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cache.index import UNLABELLED, ImageRecord, SetIndex, SkippedImage
from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.listing import Listing, extensions, list_images
from pipeline.inputs.records import Record, records_of

logger = logging.getLogger("headgraft.inputs")


def together(records: Iterable[Record]) -> list[Record]:
    """Without paths that came before, and without unlabelled images whose content has a label, which are counted."""
    of_path: dict[str, Record] = {}
    for record in records:
        of_path.setdefault(record.path, record)
    labelled = {r.digest for r in of_path.values() if isinstance(r, ImageRecord) and r.split != UNLABELLED}
    kept = [r for r in of_path.values() if not (_is_unlabelled(r) and r.digest in labelled)]
    if copies := len(of_path) - len(kept):
        logger.info(f"{counted(copies, 'unlabelled image')} left out: the same content has a label in the set")
    return kept


def list_added(folders: Iterable[str], known: Collection[str]) -> list[Listing]:
    """The images of each added folder that can be reached, with lines on what is not read.

    ImageSetError for one without images, unless it is `known` and may have become empty.
    """
    listings = list_reachable(folders)
    for listing in listings:
        if not listing.files and str(listing.root) not in known:
            raise ImageSetError(f"{listing.root} holds no images, expected {extensions()} files at any depth")
        for line in listing.notes:
            logger.warning(line)
    return listings


def list_reachable(folders: Iterable[str]) -> list[Listing]:
    """The images of each folder that can be reached."""
    return [list_images(Path(folder)) for folder in folders if Path(folder).is_dir()]


def added_records(listings: Iterable[Listing], root: Path, hashed: SetIndex | None) -> list[Record]:
    """The images of added folders, each of which is a listing, with paths as a set of this `root` has them."""
    root = root.resolve()
    return [
        replace(record, path=_path_from(root, listing.root / record.path))
        for listing in listings
        for record in records_of(listing, hashed)
    ]


def out_of_reach(index: SetIndex, folders: Sequence[str], root: Path, found: Collection[str]) -> list[ImageRecord]:
    """The unlabelled images that `index` has in `folders`, with paths as a set of this `root` has them: logged.

    Without those whose digest was `found` elsewhere: their folder was moved.
    """
    before, root, lies = Path(index.root).resolve(), root.resolve(), lies_in(index, folders)
    kept = [
        replace(image, path=_path_from(root, _place(before, image.path)))
        for image in index.split(UNLABELLED)
        if image.digest not in found and lies(image.path)
    ]
    if kept:
        logger.warning(
            f"{', '.join(map(named, folders))} cannot be reached: {counted(len(kept), 'unlabelled image')} of it kept "
            f"as before; to drop them, run headgraft cache forget --set {index.name}, then extract"
        )
    return kept


def lies_in(index: SetIndex, folders: Sequence[str]) -> Callable[[str], bool]:
    """Whether the file of a record, by its path, lies in one of `folders`, which are absolute paths without links."""
    root = Path(index.root).resolve()
    return lambda path: any(_place(root, path).is_relative_to(folder) for folder in folders)


def _place(root: Path, path: str) -> Path:
    return Path(os.path.normpath(root / path))


def _path_from(root: Path, place: Path) -> str:
    """From `root` where the file lies below it, else absolute."""
    return str(place.relative_to(root) if place.is_relative_to(root) else place)


def _is_unlabelled(record: Record) -> bool:
    return not isinstance(record, SkippedImage) and record.split == UNLABELLED
