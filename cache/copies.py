"""One file of a cache to a URL or from there: checked on the way, so that its name is not on something else."""

from pathlib import Path

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.files import keep, temporary_name, write_atomically
from cache.index import SetIndex, index_path
from cache.manifest import Manifest
from cache.objects import ObjectStore
from cache.shard import Shard

# Each copy returns why it was refused, "" where it was made; one of an index None where it was not needed.


def send_shard(path: Path, manifest: Manifest, store: ObjectStore, name: str) -> str:
    """Send one shard of the cache at `path`, checked as a reader checks it."""
    file = path / layout.SHARD_FOLDER / name
    try:
        if fault := _fault(file, name, manifest):
            return fault
    except FileNotFoundError:
        return "it went while it was being read, as when a writer merges shards: push again"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    store.send(file, shard_place(name))
    return ""


def receive_shard(path: Path, manifest: Manifest, store: ObjectStore, name: str, size: int) -> str:
    """Fetch one shard, of `size` bytes there; it gets its name when it is on the disk and checked."""
    promised = layout.parse_shard_name(name)
    if promised is None:
        return "it is not named as a shard is"
    if promised[1] != size:
        return f"it has {size} bytes there, its name says {promised[1]}"
    temporary = path / layout.SHARD_FOLDER / temporary_name()
    try:
        store.fetch(shard_place(name), temporary)
        if fault := _fault(temporary, name, manifest):
            return fault
        keep(temporary, path / layout.SHARD_FOLDER / name)
    finally:
        temporary.unlink(missing_ok=True)
    return ""


def _fault(file: Path, name: str, manifest: Manifest) -> str:
    """Why a file is not the shard of this name, or none of this cache; "" where it is."""
    try:
        header = Shard.open(file, name).header
    except DamagedCache as error:
        return str(error).replace(str(file), "it", 1)
    recipes = {"", manifest.augmentation.digest} if manifest.augmentation else {""}
    ours = header.base_digest == manifest.base.digest and header.augmentation_digest in recipes
    return "" if ours else "it was made with other settings than the rest"


def send_index(path: Path, store: ObjectStore, index: SetIndex, data: bytes, overwrite: bool) -> str | None:
    """Send one index of the cache at `path`, `data` its bytes."""
    place = index_place(index.name)
    there = store.read(place)
    found = None
    if there is not None:
        try:
            found = SetIndex.from_json(there, index.name, store.named(place))
        except DamagedCache:  # of no use to anyone
            found = None
    if found and found.says_all_of(index):
        return None
    if found and not overwrite:
        return f"{store.url} has another index of this set, which stays: push {path} with --overwrite to replace it"
    store.write(place, data)
    return ""


def receive_index(path: Path, store: ObjectStore, name: str, overwrite: bool) -> str | None:
    """Fetch one index into the cache at `path`."""
    try:
        file = index_path(path / layout.SET_FOLDER, name)
        data = store.read(index_place(name)) or b""
        index = SetIndex.from_json(data, name, store.named(index_place(name)))
    except CacheError as error:
        return str(error)
    try:
        found = SetIndex.load(file) if file.exists() else None
    except DamagedCache:
        found = None
    if found and found.says_all_of(index):
        return None
    if found and not overwrite:
        return f"{path} has another index of this set, which stays: pull with --overwrite to replace it"
    write_atomically(file, data)
    return ""


def shard_place(name: str) -> str:
    """Where a shard lies in a cache."""
    return f"{layout.SHARD_FOLDER}/{name}"


def index_place(name: str) -> str:
    """Where the index of a set lies in a cache."""
    return f"{layout.SET_FOLDER}/{name}.json"
