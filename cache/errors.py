"""Errors whose message is meant for the person at the keyboard.

HeadgraftError
└── CacheError
    ├── ManifestMismatch   the cache was made with other settings
    ├── DamagedCache       a file of the cache is not what was written
    ├── MissingRows        rows that a set needs are not there
    ├── UnknownSet         no such image set, or more than one to choose from
    └── CacheBusy          another process writes this cache
"""


class HeadgraftError(Exception):
    """One sentence or more: what was found, what was expected, what to do."""


class CacheError(HeadgraftError):
    """The feature cache cannot serve what was asked."""


class ManifestMismatch(CacheError):
    """The cache was made with settings that give other numbers."""


class DamagedCache(CacheError):
    """A file of the cache differs from what was written."""


class MissingRows(CacheError):
    """Rows that an image set needs are not in the cache."""


class UnknownSet(CacheError):
    """The image set asked for is not in the cache, or the choice is open."""


class CacheBusy(CacheError):
    """Another process holds the cache for writing."""


def install_hint(extra: str) -> str:
    """The command that installs an optional part of this program, for an error's last words."""
    return f"run pip install -e '.[{extra}]' in the folder of headgraft's source"
