"""Which files a data set has: folders with splits, one folder of classes, or a CSV."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cache.index import UNLABELLED
from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import EXTENSIONS
from pipeline.inputs.folders import (
    Kind,
    Listed,
    entries_of,
    extension,
    folders_in,
    holds_images,
    refuse_other_locale,
    shown,
    unread_line,
)
from pipeline.inputs.splits import Splits, find_splits, inner_of, is_unlabelled, labelled_folders, split_of
from pipeline.inputs.table import list_csv

_DEEPEST = 100  # folders inside one another


@dataclass
class Listing:
    """The files of a data set, and what of its folders is not read.

    Attributes:
        root: the folder that the paths of records start from.
        files: image files, and with a fault what cannot be read.
        unread: files of other kinds by extension.
        outside: image files that lie in no class folder, by the folder that they lie in, "." for `root`.
        notes: lines for a person, in order.
    """

    root: Path
    files: list[Listed] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def list_files(data: Path, train_needed: bool = True) -> Listing:
    """Every image file of `data` with label and split ("" where it is still to be chosen), and what is not read.

    Those of a folder `unlabelled` beside split or class folders have split `unlabelled` and the label "".
    ImageSetError where `data` is neither a folder of one of these forms nor a CSV with path,label,split.
    """
    if data.is_file():
        root = data.parent.resolve()  # ".." in its paths is then what the system takes it for, also below a link
        files, notes = list_csv(data, root)
        return Listing(root, files, notes=notes)
    if not data.is_dir():
        raise ImageSetError(f"{data} does not exist, expected a folder of images or a CSV file")
    for path, kind in entries_of(data):
        if kind is Kind.BROKEN and split_of(path.name):
            raise ImageSetError(f"{path} is {kind.value}: make {path.readlink()} available, or correct the link")
    splits = find_splits(data, train_needed)
    walk = _Walk(data)
    if splits is None:
        _refuse_wrong_level(data)
        walk.list_split(data, "")
    else:
        walk.list_splits(splits)
        walk.list_unlabelled(data)
    return walk.finished()


def list_images(folder: Path) -> Listing:
    """Every image file of `folder` at any depth, as unlabelled: its folders are not classes."""
    walk = _Walk(folder)
    walk.list_below(folder)
    return walk.finished()


def _refuse_wrong_level(data: Path) -> None:
    """A split given for the whole set, a folder above it, or images without class folders."""
    folders = labelled_folders(data)
    siblings = {split_of(folder.name) for folder in folders_in(data.absolute().parent)} - {""}
    if split_of(data.name) and len(siblings) > 1:
        raise ImageSetError(f"{data} is one split of a data set; did you mean {data.parent}?")
    for folder in folders:
        if any(split_of(inner.name) == "train" for inner in folders_in(folder)):
            raise ImageSetError(f"{data} is not a data set, but holds one; did you mean {folder}?")
    if not folders and holds_images(data):
        raise ImageSetError(
            f"{data} holds images but no class folders, expected a folder per class; "
            f"did you mean {data.absolute().parent}? headgraft extract {data} --unlabelled takes images without labels"
        )


class _Walk(Listing):
    """The listing of a folder while its class folders are read, with what is passed over."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._resolved = root.resolve()
        self._empty: list[str] = []

    def list_splits(self, splits: Splits) -> None:
        """The class folders of each split; folders under other names than a split's own are noted."""
        renamed = [f"{named(path.name)} is read as {its}" for path, its in splits.folders.items() if path.name != its]
        if renamed:
            self.notes.append(", ".join(renamed))
        if splits.others:
            others = shown([path.name for path in splits.others])
            self.notes.append(f"folders that are not a split are not read: {others}")
        for folder in (*map(inner_of, splits.loose), self.root):
            self._count_outside(folder, entries_of(folder))
        for folder, split in splits.folders.items():
            self.list_split(folder, split)

    def list_split(self, folder: Path, split: str) -> None:
        """The class folders of `folder`, or of the folder of the same name that is all it has."""
        here = folder.resolve()
        entries, fault = self._entries(folder, here, ())
        if fault:
            self.files.append(Listed(folder, "", split, fault))
            return
        self._count_outside(folder, entries)
        inner = inner_of(folder)
        if inner != folder and folders_in(inner):
            self.list_split(inner, split)
            return
        if not split:
            self.list_unlabelled(folder)
        for path, kind in entries:
            if kind is Kind.FOLDER and is_unlabelled(path.name) and split:
                raise ImageSetError(
                    f"{path} is in a split, expected beside {named(folder.name)}: move it there, or, if it is a class, "
                    "give the folder another name or name the images in a CSV"
                )
            if kind is Kind.FOLDER and not is_unlabelled(path.name):
                self._list_class(path, split, here)

    def list_unlabelled(self, folder: Path) -> None:
        """The images of the folders in `folder` that hold those without labels."""
        for inner in folders_in(folder):
            if is_unlabelled(inner.name):
                self.list_below(inner)

    def list_below(self, folder: Path) -> None:
        """All images of a folder, as unlabelled."""
        above = () if folder == self.root else (self._resolved,)
        self.files += [Listed(path, "", UNLABELLED, fault) for path, fault in self._below(folder, above, set())]

    def finished(self) -> Listing:
        """The listing, with lines on what was passed over."""
        self.note_what_is_not_read()
        refuse_other_locale(item.path for item in self.files)
        return self

    def note_what_is_not_read(self) -> None:
        """Lines on what was passed over."""
        if passed := unread_line(self.unread):
            self.notes.append(passed)
        if self._empty:
            self.notes.append(f"{counted(len(self._empty), 'class folder')} without an image: {shown(self._empty)}")
        if self.outside:
            root = named(self.root.absolute().name)
            folders = [f"{root if folder == '.' else folder} {count}" for folder, count in self.outside.items()]
            self.notes.append(
                f"{counted(self.outside.total(), 'image')} outside the class folders, so without a label: not read "
                f"({shown(folders)}); headgraft predict can name what is in them"
            )

    def _count_outside(self, folder: Path, entries: list[tuple[Path, Kind]]) -> None:
        """Files of `folder` that lie beside class folders or splits; a link to nothing may have been a class."""
        if images := sum(kind is Kind.IMAGE for _, kind in entries):
            self.outside[self._name(folder)] = images
        self.unread.update(extension(path) for path, kind in entries if kind is Kind.UNREAD)
        self.files += [Listed(path, "", "", kind.value) for path, kind in entries if kind is Kind.BROKEN]

    def _list_class(self, folder: Path, split: str, above: Path) -> None:
        try:
            label = os.fsencode(folder.name).decode("utf-8")  # the same under any locale
        except UnicodeDecodeError as error:
            raise ImageSetError(
                f"{named(folder)} is a class whose name is not UTF-8 text: rename the folder"
            ) from error
        unread = self.unread.total()
        below = self._below(folder, (self._resolved, above), set())
        files = [Listed(path, label, split, fault) for path, fault in below]
        self.files += files
        if not files:
            others = self.unread.total() - unread
            self._empty.append(f"{self._name(folder)} ({f'{others} of other kinds' if others else 'empty'})")

    def _below(self, folder: Path, above: tuple[Path, ...], read: set[Path]) -> Iterator[tuple[Path, str]]:
        """Images in `folder` at any depth with "", and with the reason what cannot be looked into.

        What was `read` of a class is left out: links across one another could lead to the same folder in more ways than
        can be counted.
        """
        here = folder.resolve()
        entries, fault = self._entries(folder, here, above)
        if fault:
            yield folder, fault
            return
        if here in read:
            return
        read.add(here)
        for path, kind in entries:
            if kind is Kind.FOLDER:
                yield from self._below(path, (*above, here), read)
            elif kind is Kind.UNREAD:
                self.unread[extension(path)] += 1
            else:
                yield path, kind.value if kind is Kind.BROKEN else ""

    def _entries(self, folder: Path, here: Path, above: tuple[Path, ...]) -> tuple[list[tuple[Path, Kind]], str]:
        """Entries of the folder that resolves to `here`; or none, and why it is not looked into."""
        if here in above or (folder != self.root and self._resolved.is_relative_to(here)):
            return [], "a link to a folder above it, a loop"
        if len(above) > _DEEPEST:
            return [], f"a folder in {_DEEPEST} others, more than are looked into"
        try:
            return entries_of(folder), ""
        except OSError as error:
            return [], f"cannot be listed: {error.strerror}"

    def _name(self, folder: Path) -> str:
        return named(folder.relative_to(self.root))


def extensions() -> str:
    """The image files that are looked for, in words."""
    return ", ".join(sorted(EXTENSIONS))
