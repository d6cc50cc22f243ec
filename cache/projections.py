"""Rows already reduced by a basis, kept beside the shards; named by what made them and by their own digest."""

from pathlib import Path

import xxhash

from cache.files import write_atomically
from cache.layout import PROJECTION_FOLDER

_SUFFIX = ".safetensors"


def save_projection(cache: Path, source: str, data: bytes) -> None:
    """Keep `data` under `source`, the SHA-256 (hex) of everything it was made from."""
    (cache / PROJECTION_FOLDER).mkdir(exist_ok=True)  # it may be deleted at any time
    write_atomically(cache / PROJECTION_FOLDER / f"{source}-{xxhash.xxh3_128_hexdigest(data)}{_SUFFIX}", data)


def load_projection(cache: Path, source: str) -> bytes | None:
    """What is kept under `source`; a file whose bytes lost their digest is removed and counts as absent."""
    for path in sorted((cache / PROJECTION_FOLDER).glob(f"{source}-*{_SUFFIX}")):
        data = path.read_bytes()
        if path.name == f"{source}-{xxhash.xxh3_128_hexdigest(data)}{_SUFFIX}":
            return data
        path.unlink()
    return None


def intact(path: Path) -> bool:
    """Whether a kept projection has the bytes that its name promises."""
    return path.name.endswith(f"-{xxhash.xxh3_128_hexdigest(path.read_bytes())}{_SUFFIX}")
