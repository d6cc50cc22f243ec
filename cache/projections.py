"""Rows already reduced by a basis, kept beside the shards; named by what made them and by a digest of that and them."""

from contextlib import suppress
from pathlib import Path

import xxhash

from cache.files import write_atomically
from cache.layout import PROJECTION_FOLDER

_SUFFIX = ".safetensors"


def save_projection(cache: Path, source: str, data: bytes) -> None:
    """Keep `data` under `source`, the SHA-256 (hex) of everything it was made from."""
    (cache / PROJECTION_FOLDER).mkdir(exist_ok=True)  # it may be deleted at any time
    write_atomically(cache / PROJECTION_FOLDER / _name(source, data), data)


def load_projection(cache: Path, source: str) -> bytes | None:
    """What is kept under `source`; a file whose bytes lost their digest is removed and counts as absent."""
    for path in projection_files(cache):
        if path.name.startswith(f"{source}-"):
            data = path.read_bytes()
            if path.name == _name(source, data):
                return data
            with suppress(OSError):  # of a read-only cache
                path.unlink()
    return None


def projection_files(cache: Path) -> list[Path]:
    """The files kept, damaged ones among them."""
    return sorted(file for file in (cache / PROJECTION_FOLDER).glob("[!.]*") if file.is_file())


def damaged_projections(cache: Path) -> list[Path]:
    """Those that have not the source and the bytes that their names promise."""
    return [
        path for path in projection_files(cache) if path.name != _name(path.name.partition("-")[0], path.read_bytes())
    ]


def _name(source: str, data: bytes) -> str:
    """The digest is of the source too: under another one, the file is not what its name says."""
    digest = xxhash.xxh3_128(source.encode("utf-8", "surrogateescape"))
    digest.update(data)
    return f"{source}-{digest.hexdigest()}{_SUFFIX}"
