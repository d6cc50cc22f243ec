"""Places of a cache's files: its folder, or a URL that fsspec can reach, an object store such as S3 or a folder there.

Whatever goes wrong there is one sentence. Nothing is deleted, and a file is under its name whole or not at all.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import CacheError, install_hint
from cache.files import read_undamaged, temporary_name, write_atomically

# Where a file being written can be seen, so that it is written beside its place and moved there. An object store shows
# an object when all of it has arrived; to move one there is to copy it.
_FOLDERS = frozenset({"file", "local", "sftp", "ssh", "smb", "hdfs", "arrow_hdfs"})


@dataclass(frozen=True)
class ObjectStore:
    """A place for a cache's files; their names are relative to it, such as shards/<name>.h5."""

    url: str  # as it may be shown: without a password
    root: str
    system: Any  # an fsspec.AbstractFileSystem

    @classmethod
    def open(cls, url: str) -> "ObjectStore":
        """The place at `url`; CacheError where it is none, or what it takes is not installed."""
        shown = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)
        if "://" not in url:
            raise CacheError(
                f"{shown} is not a URL: for that folder write file://{Path(url).absolute()}, else s3://bucket/name"
            )
        try:
            from fsspec.core import url_to_fs

            # Listings are not kept: others push at the same time.
            system, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise CacheError(
                f"{shown} needs a package that is not installed ({error}): for S3, {install_hint('s3')}"
            ) from error
        except Exception as error:  # a kind of URL that is not known, or settings of its file system
            raise CacheError(f"{shown} cannot be used: {_reason(error)}") from error
        return cls(shown.rstrip("/"), root.rstrip("/"), system)

    def named(self, name: str) -> str:
        """A file's own URL, for messages."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """All bytes of a file; None where there is none."""
        with self._asked(f"read {self.named(name)}"):
            try:
                return bytes(self.system.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of a folder, by name; those that start with a dot are left out."""
        with self._asked(f"list {self.named(folder)}"):
            try:
                entries = self.system.ls(f"{self.root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
            files = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {f"{folder}/{name}": size for name, size in sorted(files.items()) if name and not name.startswith(".")}

    def write(self, name: str, data: bytes) -> None:
        """Put a file there whole, in place of one of its name."""
        self._put(name, lambda place: self.system.pipe_file(place, data))

    def send(self, file: Path, name: str) -> None:
        """Put a local file there whole, in place of one of its name."""
        self._put(name, lambda place: self.system.put_file(str(file), place))

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from there to `file`, which is then no more than what arrived."""
        with self._asked(f"copy {self.named(name)} to {file.parent}"):
            self.system.get_file(f"{self.root}/{name}", str(file))

    def _put(self, name: str, put: Callable[[str], None]) -> None:
        place = f"{self.root}/{name}"
        with self._asked(f"write {self.named(name)}"):
            protocol = self.system.protocol
            if _FOLDERS.isdisjoint((protocol,) if isinstance(protocol, str) else protocol):
                put(place)
                return
            folder = place.rpartition("/")[0]
            self.system.makedirs(folder, exist_ok=True)
            beside = f"{folder}/{temporary_name()}"
            try:
                put(beside)
                self.system.mv(beside, place)
            except BaseException:
                with suppress(Exception):  # it may not be there, and what went wrong is said already
                    self.system.rm_file(beside)
                raise

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Only calls of fsspec go in here: each library behind it has errors of its own, of no common kind."""
        try:
            yield
        except Exception as error:  # botocore's, paramiko's, OSError and others
            raise CacheError(
                f"could not {what}: {_reason(error)}; fix that, then rerun the command to copy what is missing"
            ) from error


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
        return read_undamaged(file, "restore it") if file.exists() else None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of a folder, by name; one that a writer removes meanwhile counts none."""
        files = sorted((self.path / folder).glob("[!.]*"))
        return {f"{folder}/{file.name}": file.stat().st_size if file.exists() else 0 for file in files}

    def write(self, name: str, data: bytes) -> None:
        """Put a file there whole, in place of one of its name."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / name, data)


Place = Folder | ObjectStore


def _reason(error: BaseException) -> str:
    """What a library says first, without a full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next((line.strip().rstrip(".") for line in said.splitlines() if line.strip()), type(error).__name__)
