"""push and pull: copies of a cache at a URL, so that machines without a folder in common can fill and read one."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cache import layout
from cache.copying import Refused, copy_all
from cache.errors import CacheBusy, CacheError, DamagedCache, ManifestMismatch, counted
from cache.files import replacing
from cache.index import SetIndex
from cache.labels import LabelJournal, writing_labels
from cache.lock import check_writable, writing
from cache.manifest import Manifest
from cache.objects import Folder, ObjectStore, Place
from cache.reduction import Reduction
from cache.result import Result
from cache.shard import Shard
from cache.store import FeatureCache, check_place

logger = logging.getLogger("headgraft.cache")

Sizes = Mapping[str, int]  # bytes of files, by their place in the cache


@dataclass(frozen=True)
class CopyResult(Result):
    """What `push` sent or `pull` received.

    Attributes:
        url: where to or from, without a password.
        cache: folder of the cache.
        shards: number that was copied.
        present: number of shards that were there already.
        bytes: of the shards that were copied.
        sets: names of the sets whose indexes were copied.
        labels: names of the sets whose labels given by hand were copied.
        refused: `[{file, reason}]` of what was not copied; `file` is a place in the cache. The exit status is 1 then.
        seconds: of the command.
    """

    url: str
    cache: str
    shards: int
    present: int
    bytes: int
    sets: tuple[str, ...]
    labels: tuple[str, ...]
    refused: tuple[dict[str, str], ...]
    seconds: float

    def in_words(self) -> str:
        """One line, and one for each file that was refused."""
        lines = [
            f"{counted(self.shards, 'shard')} copied, {self.bytes / 1e6:.1f} MB, {self.present} there already "
            f"({self.url}); {counted(len(self.sets), 'set')} copied, {self.seconds:.1f} s"
        ]
        lines += [f"refused {refused['file']}: {refused['reason']}" for refused in self.refused]
        return "\n".join(lines)


def push(path: Path, url: str, overwrite: bool = False) -> CopyResult:
    """Copy to `url` what the cache has and it lacks; run again to resume. Nothing there is deleted.

    ManifestMismatch for a cache of other settings there. Indexes go last, and only where every shard could be sent;
    one that differs there is replaced only with `overwrite`.
    """
    start = time.perf_counter()
    folder, store = Folder(path), ObjectStore.open(url)
    # Indexes, then shards, then the manifest: a writer goes the other way, so that what each rests on is seen too.
    indexes, journals = _indexes(folder), _journals(folder)
    shards = {name: _promised(name) for name in _shards(folder)}
    manifest = FeatureCache.open(path).manifest
    _settle(folder, store, manifest, "Push to another URL.")
    missing = _missing("send", shards, _shards(store))
    copied, refused = copy_all(partial(_send_shard, folder, store, manifest), missing)
    _settle(folder, store, manifest, "Push to another URL.")  # another push may have started there at the same moment
    if refused:
        sets, kept = list[str](), dict.fromkeys(indexes, "rows that it names could not be sent")
    else:
        sets, kept = copy_all(lambda name: _copy_index(store, indexes[name], overwrite, name), indexes)
    labels, others = copy_all(lambda name: _copy_labels(store, journals[name], overwrite, name), journals)
    return _result(path, store, shards, missing, copied, sets, labels, refused | kept | others, start)


def pull(url: str, path: Path, overwrite: bool = False) -> CopyResult:
    """Copy to the cache at `path`, made if need be, what it lacks of the one at `url`; run again to resume.

    Every file is checked before it gets its name; one that fails is refused, the others are copied. ManifestMismatch
    for a cache of other settings at `path`. An index that differs there is replaced only with `overwrite`.
    """
    start = time.perf_counter()
    check_writable(path)
    check_place(path)
    folder, store = Folder(path), ObjectStore.open(url)
    indexes, journals = _indexes(store), _journals(store)
    shards, manifest = _shards(store), _manifest_at(store)  # in this order, as in push
    if manifest is None:
        raise CacheError(f"{store.url} holds no feature cache: push one there first, or name another URL")
    with writing(path):
        if not (path / layout.MANIFEST_FILE).exists():
            for name in layout.COPIED_FILES:
                (path / name).unlink(missing_ok=True)  # of a pull that was stopped
        ours = FeatureCache.create(path, _settle(store, folder, manifest, "Pull into another folder.")).manifest
        missing = _missing("receive", shards, _shards(folder))
        copied, refused = copy_all(lambda name: _receive_shard(folder, store, ours, missing[name], name), missing)
        sets, kept = copy_all(lambda name: _copy_index(folder, indexes[name], overwrite, name), indexes)
        labels, others = _received_labels(folder, journals, overwrite)
    return _result(path, store, shards, missing, copied, sets, labels, refused | kept | others, start)


def _indexes(place: Place) -> dict[str, bytes]:
    names = [name for name in place.sizes(layout.SET_FOLDER) if name.endswith(".json")]
    return {name: place.read(name) or b"" for name in names}


def _journals(place: Place) -> dict[str, bytes]:
    names = [name for name in place.sizes(layout.LABEL_FOLDER) if name.endswith(".jsonl")]
    return {name: place.read(name) or b"" for name in names}


def _shards(place: Place) -> dict[str, int]:
    return {name: size for name, size in place.sizes(layout.SHARD_FOLDER).items() if name.endswith(".h5")}


def _promised(name: str) -> int:
    promised = layout.parse_shard_name(Path(name).name)
    return promised[1] if promised else 0


def _manifest_at(place: Place) -> Manifest | None:
    data = place.read(layout.MANIFEST_FILE)
    return None if data is None else Manifest.from_json(data, place.named(layout.MANIFEST_FILE))


def _settle(source: Place, target: Place, manifest: Manifest, advice: str) -> Manifest:
    """Have the target's manifest allow rows of the source's and return it; a cache of another kind is refused.

    It is written before any shard, so that nobody copies gigabytes to be refused at the end.
    """
    stored, reduction = _manifest_at(target), _reduction_at(source)
    merged = stored.merged_with(manifest, target.url, advice) if stored else manifest
    if stored is None and reduction:
        for name in layout.COPIED_FILES:
            target.write(name, source.read(name) or b"")
    elif stored and reduction != _reduction_at(target):
        raise ManifestMismatch(
            f"{source.url} and {target.url} are not reduced alike, so their rows are not of one kind: "
            "name another folder or another URL"
        )
    if merged != stored:
        target.write(layout.MANIFEST_FILE, merged.as_json())
    return merged


def _reduction_at(place: Place) -> Reduction | None:
    """What rows there were reduced by, checked, without what that cost: it may be measured later."""
    record = place.read(layout.REDUCTION_FILE)
    if record is None:
        return None
    reduction = Reduction.from_json(record, place.named(layout.REDUCTION_FILE))
    reduction.check_basis(place.read(layout.BASIS_FILE) or b"", place.named(layout.BASIS_FILE))
    return replace(reduction, accuracy={})


def _missing(what: str, shards: Sizes, there: Sizes) -> Sizes:
    """The shards of which there is none of that size."""
    missing = {name: size for name, size in shards.items() if there.get(name) != size}
    size, present = sum(missing.values()) / 1e6, len(shards) - len(missing)
    logger.info(f"shards to {what}: {len(missing)}, {size:.1f} MB; there: {present}")
    return missing


def _send_shard(folder: Folder, store: ObjectStore, manifest: Manifest, name: str) -> bool:
    """Send one shard, checked as a reader checks it; `name` is its place in the cache."""
    file = folder.path / name
    _check_shard(file, file.name, manifest)
    store.send(file, name)
    return True


def _receive_shard(folder: Folder, store: ObjectStore, manifest: Manifest, size: int, name: str) -> bool:
    """Fetch one shard, of `size` bytes there; it gets its name when it is on the disk and checked."""
    file = folder.path / name
    promised = layout.parse_shard_name(file.name)
    if promised is None:
        raise Refused("it is not named as a shard is")
    if promised[1] != size:
        raise Refused(f"it has {size} bytes there, its name says {promised[1]}")
    with replacing(file) as temporary:
        store.fetch(name, temporary)
        _check_shard(temporary, file.name, manifest)
    return True


def _check_shard(file: Path, name: str, manifest: Manifest) -> None:
    """Refused where a file is not the shard of this name, or none of this cache."""
    try:
        header = Shard.open(file, name).header
    except DamagedCache as error:
        raise Refused(str(error).replace(str(file), "it", 1)) from error
    if header.base_digest != manifest.base.digest or header.augmentation_digest not in manifest.recipes:
        raise Refused("it was made with other settings than the rest")


def _copy_index(target: Place, data: bytes, overwrite: bool, name: str) -> bool:
    """Copy an index, `data` its bytes and `name` its place in the cache; False where the target's says all of it."""
    try:
        set_name = layout.check_set_name(Path(name).stem)
        index = SetIndex.from_json(data, set_name, "it")
    except CacheError as error:
        raise Refused(str(error)) from error
    try:
        found = SetIndex.from_json(target.read(name) or b"", set_name, target.named(name))
    except DamagedCache:  # there is none, or it is of no use to anyone
        found = None
    if found and found.says_all_of(index):
        return False
    if found and not overwrite:
        raise Refused(f"{target.url} has another index of this set, which stays: replace it with --overwrite")
    target.write(name, data)
    return True


def _received_labels(
    folder: Folder, journals: Mapping[str, bytes], overwrite: bool
) -> tuple[list[str], dict[str, str]]:
    """As of `copy_all`; none while somebody labels here, whose next line would follow another."""
    try:
        with writing_labels(folder.path) if journals else nullcontext():
            return copy_all(lambda name: _copy_labels(folder, journals[name], overwrite, name), journals)
    except CacheBusy as error:
        return [], dict.fromkeys(journals, str(error))


def _copy_labels(target: Place, data: bytes, overwrite: bool, name: str) -> bool:
    """Copy the verdicts on a set; False where the target has them all, perhaps with later ones."""
    try:
        layout.check_set_name(Path(name).stem)
        LabelJournal.from_bytes(data, Path(name))
    except CacheError as error:
        raise Refused(str(error)) from error
    there, data = target.read(name) or b"", data[: data.rfind(b"\n") + 1]
    if there.startswith(data):
        return False
    if not (data.startswith(there) or overwrite):
        raise Refused(f"{target.url} has other labels given by hand, which stay: replace them with --overwrite")
    target.write(name, data)
    return True


def _result(
    path: Path,
    store: ObjectStore,
    shards: Sizes,
    missing: Sizes,
    copied: Sequence[str],
    sets: Sequence[str],
    labels: Sequence[str],
    refused: Mapping[str, str],
    start: float,
) -> CopyResult:
    return CopyResult(
        url=store.url,
        cache=str(path),
        shards=len(copied),
        present=len(shards) - len(missing),
        bytes=sum(missing[name] for name in copied),
        sets=tuple(Path(name).stem for name in sets),
        labels=tuple(Path(name).stem for name in labels),
        refused=tuple({"file": file, "reason": reason} for file, reason in refused.items()),
        seconds=time.perf_counter() - start,
    )
