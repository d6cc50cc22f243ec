"""push and pull: copies of a cache at a URL, so that machines without a folder in common can fill and read one."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cache import layout
from cache.copies import index_place, receive_index, receive_shard, send_index, send_shard, shard_place
from cache.errors import CacheError, DamagedCache, ManifestMismatch
from cache.files import read_regular, write_atomically
from cache.index import index_path
from cache.lock import check_writable, writing
from cache.manifest import Manifest
from cache.objects import ObjectStore
from cache.reduction import Reduction, what_decides
from cache.store import FeatureCache, check_place

logger = logging.getLogger("headgraft.cache")

_AT_ONCE = 4  # copies under way
_SECONDS_BETWEEN_LINES = 10.0

Sizes = Mapping[str, int]  # bytes of shards, by name


@dataclass(frozen=True)
class CopyResult:
    """What `push` sent or `pull` received.

    Attributes:
        url: where to or from, without a password.
        cache: folder of the cache.
        shards: number that was copied.
        present: number of shards that were there already.
        bytes: of the shards that were copied.
        sets: names of the sets whose indexes were copied.
        refused: `[{file, reason}]` of what was not copied; `file` is a place in the cache. The exit status is 1 then.
        seconds: of the command.
    """

    url: str
    cache: str
    shards: int
    present: int
    bytes: int
    sets: tuple[str, ...]
    refused: tuple[dict[str, str], ...]
    seconds: float

    def in_words(self) -> str:
        """One line, and one for each file that was refused."""
        shards = "1 shard" if self.shards == 1 else f"{self.shards} shards"
        lines = [
            f"{shards} copied, {self.bytes / 1e6:.1f} MB, {self.present} there already ({self.url}); "
            f"{len(self.sets)} of the sets, {self.seconds:.1f} s"
        ]
        lines += [f"refused {refused['file']}: {refused['reason']}" for refused in self.refused]
        return "\n".join(lines)


def push(path: Path, url: str, overwrite: bool = False) -> CopyResult:
    """Copy to `url` what the cache has and it lacks; run again to go on. Nothing there is deleted.

    ManifestMismatch for a cache of other settings there. Indexes go last, and only where every shard could be sent;
    one that differs there is replaced only with `overwrite`.
    """
    start = time.perf_counter()
    cache, store = FeatureCache.open(path), ObjectStore.open(url)
    # Indexes, then shards, then the manifest: a writer goes the other way, so that what each rests on is seen too.
    indexes = [(cache.index(name), read_regular(index_path(path / layout.SET_FOLDER, name))) for name in cache.sets()]
    files = {name: _promised(name) for name in _shards_here(path)}
    manifest = Manifest.load(path / layout.MANIFEST_FILE)
    _settle(path, manifest, store)
    there = store.sizes(layout.SHARD_FOLDER)
    missing = {name: size for name, size in files.items() if there.get(name) != size}
    _announce("send", files, missing)
    refused = _each(partial(send_shard, path, manifest, store), missing)
    _settle(path, manifest, store)  # again: another push, of other settings, may have begun there at the same moment
    if refused:
        outcomes: dict[str, str | None] = {i.name: "rows that it names could not be sent" for i, _ in indexes}
    else:
        outcomes = {index.name: send_index(path, store, index, data, overwrite) for index, data in indexes}
    return _result(path, store, files, missing, refused, outcomes, start)


def pull(url: str, path: Path, overwrite: bool = False) -> CopyResult:
    """Copy to the cache at `path`, made if need be, what it lacks of the one at `url`; run again to go on.

    Every file is checked before it gets its name; one that fails is refused, the others are copied. ManifestMismatch
    for a cache of other settings at `path`. An index that differs there is replaced only with `overwrite`.
    """
    start = time.perf_counter()
    check_writable(path)
    check_place(path)
    store = ObjectStore.open(url)
    manifest = _manifest_at(store)
    if manifest is None:
        raise CacheError(f"{store.url} holds no feature cache: push one there first, or name another URL")
    with writing(path):
        sets = store.sizes(layout.SET_FOLDER)  # before the shards: those only grow
        there = {name: size for name, size in store.sizes(layout.SHARD_FOLDER).items() if name.endswith(".h5")}
        manifest = _settle_here(path, manifest, store)
        here = _shards_here(path)
        missing = {name: size for name, size in there.items() if here.get(name) != size}
        _announce("receive", there, missing)
        refused = _each(lambda name: receive_shard(path, manifest, store, name, missing[name]), missing)
        names = [file.removesuffix(".json") for file in sets if file.endswith(".json")]
        outcomes = {name: receive_index(path, store, name, overwrite) for name in names}
    return _result(path, store, there, missing, refused, outcomes, start)


def _settle(path: Path, manifest: Manifest, store: ObjectStore) -> None:
    """Have the store's manifest allow rows of this one; a cache of other settings, or of other files, is refused.

    It is written before any shard, so that nobody sends gigabytes to be refused at the end.
    """
    stored = _manifest_at(store)
    if stored is None:
        for name, data in _copied_files(path).items():
            if data is not None:
                store.write(name, data)
        store.write(layout.MANIFEST_FILE, manifest.as_json())
        return
    merged = stored.merged_with(manifest, store.url, "Push to another URL.")
    _refuse_other_files(path, store)
    if merged != stored:
        store.write(layout.MANIFEST_FILE, merged.as_json())


def _settle_here(path: Path, manifest: Manifest, store: ObjectStore) -> Manifest:
    """The same for the cache at `path`; returns its manifest."""
    file = path / layout.MANIFEST_FILE
    if file.is_file():
        Manifest.load(file).merged_with(manifest, path, "Pull into another folder.")
        _refuse_other_files(path, store)
    else:
        _receive_files(path, store)
    return FeatureCache.create(path, manifest).manifest


def _receive_files(path: Path, store: ObjectStore) -> None:
    """What a new cache has beside its manifest; nothing of it is kept where it is damaged."""
    for name in layout.COPIED_FILES:
        (path / name).unlink(missing_ok=True)  # of a pull that was stopped
        if (data := store.read(name)) is not None:
            write_atomically(path / name, data)
    try:
        if reduction := Reduction.load(path):
            reduction.read_basis(path)
    except DamagedCache as error:
        for name in layout.COPIED_FILES:
            (path / name).unlink(missing_ok=True)
        raise DamagedCache(f"{store.url} is damaged, and nothing of it was kept: {error}") from error


def _refuse_other_files(path: Path, store: ObjectStore) -> None:
    here = _copied_files(path)
    differ = [name for name, data in here.items() if what_decides(data) != what_decides(store.read(name))]
    if differ:
        raise ManifestMismatch(
            f"{path} and {store.url} differ in {', '.join(differ)}, so their rows are not of one kind: "
            "name another folder or another URL"
        )


def _copied_files(path: Path) -> dict[str, bytes | None]:
    files = {name: path / name for name in layout.COPIED_FILES}
    return {name: read_regular(file) if file.exists() else None for name, file in files.items()}


def _manifest_at(store: ObjectStore) -> Manifest | None:
    data = store.read(layout.MANIFEST_FILE)
    return None if data is None else Manifest.from_json(data, store.named(layout.MANIFEST_FILE))


def _shards_here(path: Path) -> dict[str, int]:
    """Bytes that each has; one that a writer removes meanwhile counts none."""
    files = sorted((path / layout.SHARD_FOLDER).glob("[!.]*.h5"))
    return {file.name: file.stat().st_size if file.exists() else 0 for file in files}


def _promised(name: str) -> int:
    promised = layout.parse_shard_name(name)
    return promised[1] if promised else 0


def _each(copy: Callable[[str], str], names: Iterable[str]) -> dict[str, str]:
    """Copy all shards, some at once; returns those that were refused, by their place in the cache, with why."""
    names = list(names)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        reasons = list(_counted(pool.map(copy, names), len(names)))
    return {shard_place(name): reason for name, reason in zip(names, reasons, strict=True) if reason}


def _counted(outcomes: Iterable[str], total: int) -> Iterator[str]:
    """The same outcomes; how many there were is said now and then."""
    last = time.monotonic()
    for done, outcome in enumerate(outcomes, 1):
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info(f"{done} of {total} shards")
        yield outcome


def _announce(what: str, every: Sizes, missing: Sizes) -> None:
    logger.info(
        f"shards to {what}: {len(missing)}, {sum(missing.values()) / 1e6:.1f} MB; there: {len(every) - len(missing)}"
    )


def _result(
    path: Path,
    store: ObjectStore,
    every: Sizes,
    missing: Sizes,
    refused: Mapping[str, str],
    outcomes: Mapping[str, str | None],
    start: float,
) -> CopyResult:
    copied = [size for name, size in missing.items() if shard_place(name) not in refused]
    reasons = {**refused, **{index_place(name): reason for name, reason in outcomes.items() if reason}}
    return CopyResult(
        url=store.url,
        cache=str(path),
        shards=len(copied),
        present=len(every) - len(missing),
        bytes=sum(copied),
        sets=tuple(name for name, reason in outcomes.items() if reason == ""),
        refused=tuple({"file": file, "reason": reason} for file, reason in reasons.items()),
        seconds=time.perf_counter() - start,
    )
