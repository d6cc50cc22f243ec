"""Which folders of a data set are its splits, by name; whatever could be one and is not known is asked about."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.console import named
from pipeline.errors import ImageSetError
from pipeline.inputs.folders import folders_in, holds_images, shown

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}
_UNLABELLED_NAMES = ("unlabelled", "unlabeled")
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_RENAME = "rename them to train, valid and test, or name the images in a CSV with path,label,split"


def split_of(name: str) -> str:
    """The split that a folder or a cell of this name stands for, whatever its case; "" for none."""
    return _SPLIT_OF.get(name.strip().lower(), "")


def is_unlabelled(name: str) -> bool:
    """Whether a folder or a cell of this name stands for images without labels, whatever its case."""
    return name.strip().lower() in _UNLABELLED_NAMES


def labelled_folders(folder: Path) -> list[Path]:
    """The folders in `folder` but those of images without labels."""
    return [inner for inner in folders_in(folder) if not is_unlabelled(inner.name)]


@dataclass(frozen=True)
class Splits:
    """The split folders of a data set, in order of their names.

    `folders` have class folders; `loose` hold images alone, and `others` neither: both are not read.
    """

    folders: dict[Path, str]
    loose: tuple[Path, ...]
    others: tuple[Path, ...]


def find_splits(data: Path, train_needed: bool) -> Splits | None:
    """The splits of `data`; None where its folders are classes. ImageSetError where that is not clear."""
    within = {folder: folders_in(inner_of(folder)) for folder in labelled_folders(data)}
    with_classes = [folder for folder, inner in within.items() if any(map(holds_images, inner))]
    deep = [folder for folder in within if within[folder] and (_split_in(folder.name) or folder in with_classes)]
    exact = {folder: split_of(folder.name) for folder in within if split_of(folder.name)}
    chosen = _chosen(exact, deep, train_needed)
    if not chosen:
        if exact and (len(exact) == len(within) or any(folder in deep for folder in exact)):
            raise ImageSetError(
                f"{data} has {_listed(within)} but no train folder: rename the one with the training images to train"
            )
        _refuse_unknown_splits(data, len(within), {folder: within[folder] for folder in deep})
        return None
    _refuse_unread(data, chosen, [folder for folder in with_classes if folder not in chosen])
    loose = tuple(folder for folder in within if not within[folder] and holds_images(inner_of(folder)))
    if train := next((folder for folder in loose if chosen.get(folder) == "train"), None):
        raise ImageSetError(
            f"{train} holds images but no class folders, expected a folder per class; "
            f"if {named(train.name)} is a class, give the folder another name, or name the images in a CSV"
        )
    others = tuple(folder for folder in within if folder not in chosen and folder not in loose)
    return Splits({folder: split for folder, split in chosen.items() if folder not in loose}, loose, others)


def _chosen(exact: dict[Path, str], deep: list[Path], train_needed: bool) -> dict[Path, str]:
    """Folders called as splits are; else those with class folders, where a word of each names one; else none."""
    if "train" in exact.values() or (not train_needed and any(folder in deep for folder in exact)):
        return exact
    words = {folder: _split_in(folder.name) for folder in deep}
    return words if "train" in words.values() and "" not in words.values() and len(words) > 1 else {}


def inner_of(folder: Path) -> Path:
    """The folder of the same name that is all `folder` has, as archives are often unpacked; else `folder`."""
    folders = folders_in(folder)
    same = len(folders) == 1 and folders[0].name.lower() == folder.name.lower()
    return folders[0] if same and not holds_images(folder) else folder


def _split_in(name: str) -> str:
    """The one split that is a word of the name, such as that of seg_train or test_set; "" for none or several."""
    found = {_SPLIT_OF[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else ""


def _listed(folders: Iterable[Path]) -> str:
    return shown([named(folder.name) for folder in folders])


def _refuse_unknown_splits(data: Path, folders: int, within: dict[Path, list[Path]]) -> None:
    """Of all `folders`, those that hold the same folders: splits under unknown names, or several data sets."""
    names = [{folder.name for folder in inner} for inner in within.values()]
    if len(names) < 2 or 2 * len(names) < folders:
        return
    common, union = set.intersection(*names), set.union(*names)
    if len(common) < 2 or 2 * len(common) < len(union):
        return
    found = f"{data}: {_listed(within)} hold the same folders ({_listed(map(Path, sorted(common)))})"
    if all(map(split_of, common)):
        raise ImageSetError(f"{found}, expected splits with a folder per class in each; did you mean one of them?")
    raise ImageSetError(f"{found} and look like splits: {_RENAME}; if they are classes, name the images in a CSV")


def _refuse_unread(data: Path, chosen: dict[Path, str], unread: list[Path]) -> None:
    """Two folders for one split, or class folders beside the splits."""
    for split in SPLIT_NAMES:
        same = [folder for folder, its in chosen.items() if its == split]
        if len(same) > 1:
            raise ImageSetError(f"{data} has {_listed(same)} for the {split} split, expected one: merge or rename them")
    if unread:
        raise ImageSetError(
            f"{data} has splits ({_listed(chosen)}) and also {_listed(unread)}, whose images would not be read: "
            "rename it to train, valid or test, move it out of the data set, or name the images in a CSV"
        )
