"""Names, attributes and the version of the format: the one file that knows them (see FORMAT.md)."""

import re
from typing import Final

from cache.errors import CacheError

FORMAT_VERSION: Final = 1

MANIFEST_FILE = "manifest.json"
LOCK_FILE = "writer.lock"
HISTORY_FILE = "extractions.jsonl"  # what filling the cache took
REDUCTION_FILE = "reduction.json"  # of a cache whose rows are reduced by a basis: which, and what that cost
BASIS_FILE = "basis.safetensors"  # the arrays of that basis
HOLDER_FILE = "writer.json"  # who holds the lock, for the message that another process gets
SHARD_FOLDER = "shards"
SET_FOLDER = "sets"
LABEL_FOLDER = "labels"  # what was labelled by hand in each set: not to be deleted, since nothing can make it again
LISTING_FOLDER = "listings"  # what a set's images hash to, for parts to come: as an index, which it is not yet
PROJECTION_FOLDER = "projections"
PREDICTION_FOLDER = "cv"  # out-of-fold predictions and a learning curve of each set
DAMAGED_FOLDER = "damaged"  # what repair set aside; never read
COPIED_FILES = (BASIS_FILE, REDUCTION_FILE)  # older than the manifest: without them the rows would say nothing
FOLDERS = (SHARD_FOLDER, SET_FOLDER, PROJECTION_FOLDER)
TEMPORARY_SUFFIX = ".tmp"

FEATURES = "features"  # (N, D) <f2, contiguous
DIGESTS = "digests"  # (N, 32) uint8: SHA-256 of each image file
VIEWS = "views"  # (N,) S16: "pass:0", "pass:1", ...

ATTR_FORMAT = "format"
ATTR_BASE = "base_digest"
ATTR_AUGMENTATION = "augmentation_digest"  # "" where every row is a clean view
ATTR_ROW_SHAPE = "row_shape"  # D is its product: (512, 7, 7)
ATTR_BASIS = "basis"  # "" for whole rows, else the digest of the basis that reduced them
ATTR_PROVENANCE = "provenance"  # JSON; not part of any identity

FEATURE_DTYPE: Final = "<f2"
VIEW_DTYPE = "S16"
ALIGNMENT = 4096

CLEAN_VIEW = "pass:0"
LARGEST_SIDE = 1024  # of the backbone's input, in pixels
MOST_PASSES = 1000  # of a set: what an index may say before it is taken for a forgery

_VIEW = re.compile(r"pass:(0|[1-9][0-9]{0,8})")
_SHARD = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,15})\.h5")
_PART_LOCK = re.compile(r"writer-[1-9][0-9]*-of-[1-9][0-9]*\.lock")
_SET = re.compile(r"[^\x00-\x1f\x7f-\x9f/\\.][^\x00-\x1f\x7f-\x9f/\\]{0,99}")


def part_lock(number: int, parts: int) -> str:
    """The lock of one of several writers, each of a part of the rows."""
    return f"writer-{number}-of-{parts}.lock"


def is_lock(name: str) -> bool:
    """Whether a file of this name is a lock, or says who holds one."""
    return name in (LOCK_FILE, HOLDER_FILE) or _PART_LOCK.fullmatch(name) is not None


def precedes_manifest(name: str) -> bool:
    """Whether a file of this name may be in a folder that has no manifest yet, as where a writer was stopped."""
    return is_lock(name) or name in COPIED_FILES


def pass_view(number: int) -> str:
    """The name of augmented pass `number`; 0 is the clean view."""
    return f"pass:{number}"


def pass_number(view: str) -> int:
    """The number of the pass that `view` is of; 0 for the clean view."""
    return int(view.removeprefix("pass:"))


def is_view(name: str) -> bool:
    """Whether `name` is a view that shards of this format hold."""
    return _VIEW.fullmatch(name) is not None


def is_augmented(view: str) -> bool:
    """Whether the augmentation recipe decided the pixels of `view`."""
    return view != CLEAN_VIEW


def shard_name(digest: str, size: int) -> str:
    """File name of a shard of `size` bytes whose xxh3-128 is `digest` (32 hex digits)."""
    return f"{digest}-{size}.h5"


def parse_shard_name(name: str) -> tuple[str, int] | None:
    """Digest and size in bytes that a shard's name promises; None for any other name."""
    match = _SHARD.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def check_set_name(name: str) -> str:
    """Return `name` if it can name an image set, which is also a file name."""
    if not _SET.fullmatch(name) or len(name.encode("utf-8", "surrogateescape")) > 200:
        raise CacheError(
            f"{name!r} cannot name an image set: expected 1 to 100 characters without slashes, "
            "not starting with a dot; choose one with --set NAME"
        )
    return name
