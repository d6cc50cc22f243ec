"""ImageSet: the files of a data set with their digests, labels and splits."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from cache.index import SPLITS, UNLABELLED, ImageRecord, SetIndex, SkippedImage
from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import HEIF, HEIF_EXTENSIONS
from pipeline.inputs.folders import extension, refuse_other_locale, shown, unread_line
from pipeline.inputs.listing import extensions, list_files
from pipeline.inputs.names import difference, look_alikes, resembling
from pipeline.inputs.records import Record, records_of
from pipeline.inputs.splitting import grouped_by, split_by_class
from pipeline.inputs.unlabelled import added_records, lies_in, list_added, list_reachable, out_of_reach, together

logger = logging.getLogger("headgraft.inputs")


@dataclass(frozen=True)
class ImageSet:
    """A scanned data set.

    Attributes:
        data: what was scanned, a folder or a CSV file.
        root: the folder that the paths of `images` start from.
        split_seed: seed of the split, where `data` has none.
        classes: names found in train, sorted, or those that were known before.
        images: the files that can be read.
        has_splits: whether `data` has splits of its own, rather than chosen by `split_seed`.
        faults: entries that cannot be read, with the reason, where those are tolerated.
        unread: how many files of other kinds `data` has, by extension; empty for a CSV.
        outside: how many image files of `data` lie in no class folder, by the folder that they lie in.
        group_by: regular expression that groups were read off paths with; "" for none.
        unlabelled: folders whose images were added without labels.
    """

    data: Path
    root: Path
    split_seed: int
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    has_splits: bool
    faults: tuple[SkippedImage, ...] = ()
    unread: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    group_by: str = ""
    unlabelled: tuple[str, ...] = ()

    @classmethod
    def scan(
        cls,
        data: str | Path,
        split_seed: int = 0,
        skip_bad: bool = False,
        known: Sequence[str] = (),
        hashed: SetIndex | None = None,
        group_by: str = "",
    ) -> "ImageSet":
        """List and hash the images of `data`, and say what of it is not read.

        `data` is a folder with train/, valid/ and test/, under these or the usual other names, each of class folders;
        or one folder of class folders, of which `split_seed` takes a tenth of each class, at least one image, for
        validation and as many for test; or a CSV with path,label,split, and group if it has that. `group_by` reads
        groups off paths instead, see `grouped_by`; a group is never split. Images in a folder `unlabelled`, and rows of
        a CSV without a label, are unlabelled: no class and no split takes them. Hidden files and folders are ignored.
        Links are followed wherever they lead, loops aside.
        Raises ImageSetError where the data cannot be used, and, unless `skip_bad` records them, for entries
        that cannot be read. Where classes are `known`, train may be missing, and unknown ones are the caller's concern.
        Files that were `hashed` before and have kept size and time are not hashed again: for callers who compare the
        digest with the bytes that they decode.
        """
        data = Path(data)
        listing = list_files(data, train_needed=not known)
        if not listing.files:
            unread = unread_line(listing.unread)
            expected = f"expected a folder per class with {extensions()} files"
            raise ImageSetError(f"{data} holds no images, {expected}{unread and '; '}{unread}")
        for line in listing.notes:
            logger.warning(line)
        if not known and not any(item.fault for item in listing.files):
            _refuse_other_classes(data, {(item.label, item.split) for item in listing.files})
        records = together(records_of(listing, hashed))
        faults = tuple(record for record in records if isinstance(record, SkippedImage))
        if not skip_bad:
            _refuse_faults(listing.root, faults)
        images = [record for record in records if isinstance(record, ImageRecord) and record.split != UNLABELLED]
        others = [record for record in records if isinstance(record, ImageRecord) and record.split == UNLABELLED]
        if group_by and images:
            images = grouped_by(images, group_by)
        has_splits = any(image.split for image in images)
        if not has_splits:
            images = split_by_class(images, split_seed)
        classes = tuple(known) or tuple(sorted({image.label for image in images if image.split == "train"}))
        if not known:
            _refuse_other_classes(data, {(image.label, image.split) for image in (*images, *others)})
            _log_summary(images, others, classes, has_splits)
        images += others
        return cls(
            data.absolute(),
            listing.root.absolute(),
            split_seed,
            classes,
            tuple(images),
            has_splits,
            faults,
            dict(listing.unread),
            dict(listing.outside),
            group_by,
        )

    @classmethod
    def known(cls, index: SetIndex, folders: Sequence[str]) -> "ImageSet":
        """The set as `index` has it, without the unlabelled images in `folders`: nothing is listed or hashed."""
        lies = lies_in(index, folders)
        images = (image for image in index.images if image.label or not lies(image.path))
        faults = (image for image in index.skipped if not lies(image.path))
        place = Path(index.data), Path(index.root)
        return cls(*place, index.split_seed, index.classes, tuple(images), True, tuple(faults), group_by=index.group_by)

    def with_unlabelled(
        self, folders: Sequence[str], known: SetIndex | None, skip_bad: bool, hashed: SetIndex | None
    ) -> "ImageSet":
        """The set with the images in `folders` as unlabelled; where a folder is out of reach, as `known` has them.

        ImageSetError for a folder without images that `known` does not have, and, unless `skip_bad` records them, for
        entries that cannot be read.
        """
        listings = list_added(folders, known.unlabelled if known else ())
        added = added_records(listings, self.root, hashed)
        if not skip_bad:
            _refuse_faults(self.root, [record for record in added if isinstance(record, SkippedImage)])
        there = [str(listing.root) for listing in listings]
        away = [folder for folder in folders if folder not in there]
        found = {record.digest for record in (*self.images, *added)}
        kept = out_of_reach(known, away, self.root, found) if known and away else []
        records = together([*self.images, *self.faults, *added, *kept])
        images = tuple(record for record in records if isinstance(record, ImageRecord))
        count = sum(image.split == UNLABELLED for image in images)
        logger.info(f"with added folders: {counted(count, 'unlabelled image')} in the set")
        return replace(
            self,
            images=images,
            faults=tuple(record for record in records if isinstance(record, SkippedImage)),
            unread=dict(sum((listing.unread for listing in listings), Counter(self.unread))),
            unlabelled=tuple(folder for folder in folders if folder in there or kept),
        )

    def index(self, name: str, skipped: Iterable[SkippedImage] = ()) -> SetIndex:
        """The index of this set under `name`, without the files in `skipped`."""
        skipped = (*self.faults, *skipped)
        bad = {image.path for image in skipped}
        kept = tuple(image for image in self.images if image.path not in bad)
        place = str(self.data), str(self.root)
        seed, classes = self.split_seed, self.classes
        return SetIndex(name, *place, seed, classes, kept, skipped, group_by=self.group_by, unlabelled=self.unlabelled)


def _refuse_faults(root: Path, faults: Sequence[SkippedImage]) -> None:
    if faults:
        lines = "\n".join(f"  {named(root / image.path)}: {image.reason}" for image in faults)
        raise ImageSetError(
            f"{counted(len(faults), 'path')} cannot be read:\n{lines}\nFix or remove them, or pass --skip-bad."
        )


def root_now(index: SetIndex, data: Path | None) -> Path:
    """Where the set's images are: in `data`, a folder or a CSV beside them, or None, where they were.

    ImageSetError where `data` does not exist, and where this locale would read their names otherwise.
    """
    if data and not data.exists():
        raise ImageSetError(f"{data} does not exist, expected the folder of the images or their CSV: correct --data")
    root = Path(index.root) if data is None else data if data.is_dir() else data.parent.resolve()
    refuse_other_locale(root / image.path for image in index.images)
    return root


def changed_files(index: SetIndex) -> list[str]:
    """How the set's images differ from `index`, every one of them hashed; that they are out of reach counts."""
    if not Path(index.data).exists():
        return [f"{index.data} is out of reach: its images were not compared"]
    return stale_files(index, trust_times=False)


def stale_files(index: SetIndex, trust_times: bool = True, labelled: bool = False) -> list[str]:
    """How the set's folders differ from `index`, in words; empty where they agree or `index.data` is out of reach.

    With `trust_times` only files whose size or time changed are hashed again. With `labelled`, unlabelled images are
    looked for among those of `index` alone: new ones change no training.
    """
    data = Path(index.data)
    try:
        refuse_other_locale([data])
        if not data.exists():
            return []
        found = {record.path: record for record in _found(index, index if trust_times else None, labelled)}
    except ImageSetError as error:
        return [str(error)]
    known: dict[str, ImageRecord | SkippedImage] = {image.path: image for image in index.images}
    known |= {image.path: image for image in index.skipped}
    changes = [(path, _change(known.get(path), record, bool(index.group_by))) for path, record in found.items()]
    away = lies_in(index, [folder for folder in index.unlabelled if not Path(folder).is_dir()])
    gone = (image.path for image in index.images if image.path not in found and not away(image.path))
    changes += [(path, "is gone") for path in gone if not _unlisted_here(Path(index.root) / path)]
    return [f"{named(path)} {change}" for path, change in changes if change]


def _found(index: SetIndex, hashed: SetIndex | None, labelled: bool) -> list[Record]:
    """What data and added folders hold now; with `labelled` no unlabelled images but those of `index`."""
    records, known = list[Record](), {image.path for image in index.images}
    if index.data not in index.unlabelled:
        listing = list_files(Path(index.data))
        if labelled:
            place = partial(os.path.relpath, start=listing.root)
            listing.files = [one for one in listing.files if one.split != UNLABELLED or place(one.path) in known]
        records = records_of(listing, hashed)
    added = added_records(list_reachable(index.unlabelled), Path(index.root), hashed)
    return together([*records, *(one for one in added if one.path in known or not labelled)])


def _unlisted_here(path: Path) -> bool:
    """Whether an image is there, and not listed only for want of an extra that another installation has."""
    return not HEIF and path.suffix.lower() in HEIF_EXTENSIONS and path.is_file()


def _change(before: ImageRecord | SkippedImage | None, now: ImageRecord | SkippedImage, by_path: bool) -> str:
    """What became of a file, in words; "" where it is as it was. Groups read off paths are not compared."""
    if isinstance(before, SkippedImage):
        if now.digest == before.digest:
            return ""
        return f"is {now.reason if isinstance(now, SkippedImage) else 'new'} since it was skipped"
    if isinstance(now, SkippedImage):
        return now.reason if now.reason.startswith("cannot") else f"is {now.reason}"
    if before is None:
        return "is new"
    if now.group != before.group and not by_path:
        return f"is now of group {now.group!r}, was of {before.group!r}"
    if before.label != now.label or (now.split and before.split != now.split):
        return f"is now {f'{now.split} {now.label!r}'.lstrip()}, was {before.split} {before.label!r}"
    return "" if now.digest == before.digest else "has other contents"


def _refuse_other_classes(data: Path, found: set[tuple[str, str]]) -> None:
    """Labels and splits as `found`, where a split has classes that train does not; `data` without splits has none."""
    classes = {label for label, split in found if split in ("train", "")}
    if not classes and any(split != UNLABELLED for _, split in found):
        raise ImageSetError(f"{data} has no images in train, expected at least one class there")
    for split in SPLITS[1:]:
        unknown = sorted({label for label, its in found if its == split} - classes)
        if unknown:
            names = [f"{name!r}{resembling(name, sorted(classes))}" for name in unknown]
            raise ImageSetError(
                f"{data}: {split} has classes that train does not: {shown(names)}; "
                "rename them, or add images of them to train"
            )


def _log_summary(
    images: Sequence[ImageRecord], unlabelled: Sequence[ImageRecord], classes: Sequence[str], has_splits: bool
) -> None:
    """Counts, classes that look alike, and what validation images cannot tell."""
    count = Counter(image.split for image in (*images, *unlabelled))
    shown_splits = (*(SPLITS if images else ()), *([UNLABELLED] if unlabelled else []))
    counts = ", ".join(f"{split} {count[split]}" for split in shown_splits)
    kinds = Counter(extension(Path(image.path)) for image in (*images, *unlabelled)).most_common()
    shown_kinds = f" ({', '.join(f'{kind} {number}' for kind, number in kinds)})" if len(kinds) > 1 else ""
    rule = ", split by --split-seed: a tenth of each class, at least one image, to valid, and as many to test"
    logger.info(f"images read: {counts}{shown_kinds}{'' if has_splits or not images else rule}")
    if not images:
        return
    for one, other in look_alikes(classes):
        logger.warning(f"classes {one!r} and {other!r} differ only in {difference(one, other)}")
    if len(classes) == 1:
        logger.warning(f"one class only, {classes[0]!r}: train-head and sweep need two")
    valid = Counter(image.label for image in images if image.split == "valid")
    lacking = [repr(name) for name in classes if name not in valid]
    if not valid:
        logger.warning("no validation images: train-head needs some, sweep --folds and cv do not")
    elif len(valid) == 1 and lacking:
        only = f"{next(iter(valid))!r} ({counted(valid.total(), 'image')})"
        logger.warning(f"validation images of one class only: {only}")
    elif lacking:
        logger.warning(f"{len(lacking)} of {len(classes)} classes without validation images: {shown(lacking)}")
