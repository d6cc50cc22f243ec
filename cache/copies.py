"""One file of a cache from one place to another: checked on the way, so that its name is not on something else."""

from dataclasses import dataclass
from pathlib import Path

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.files import read_regular, replacing, write_atomically
from cache.index import SetIndex
from cache.manifest import Manifest
from cache.objects import ObjectStore
from cache.shard import Shard


@dataclass(frozen=True)
class Folder:
    """A cache's own folder, whose files are read and written by their names in it, as those of an ObjectStore are."""

    path: Path

    @property
    def url(self) -> str:
        """As it is shown."""
        return str(self.path)

    def named(self, name: str) -> str:
        """A file's own path, for messages."""
        return str(self.path / name)

    def read(self, name: str) -> bytes | None:
        """All bytes of a file; None where there is none."""
        file = self.path / name
        return read_regular(file) if file.exists() else None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of a folder, by name; one that a writer removes meanwhile counts none."""
        files = sorted((self.path / folder).glob("[!.]*"))
        return {f"{folder}/{file.name}": file.stat().st_size if file.exists() else 0 for file in files}

    def write(self, name: str, data: bytes) -> None:
        """Put a file there whole, in place of one of its name."""
        write_atomically(self.path / name, data)


Place = Folder | ObjectStore


class Refused(CacheError):
    """A file that is not copied, and why; others are."""


def send_shard(folder: Folder, store: ObjectStore, manifest: Manifest, name: str) -> bool:
    """Send one shard, checked as a reader checks it; `name` is its place in the cache."""
    file = folder.path / name
    _check_shard(file, file.name, manifest)
    store.send(file, name)
    return True


def receive_shard(folder: Folder, store: ObjectStore, manifest: Manifest, size: int, name: str) -> bool:
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


def copy_index(target: Place, data: bytes, overwrite: bool, name: str) -> bool:
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
