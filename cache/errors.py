"""Errors whose message is meant for the person at the keyboard, and whose `code` is meant for a script."""


class HeadgraftError(Exception):
    """One sentence or more: what was found, what was expected, what to do."""

    code = "error"


class CacheError(HeadgraftError):
    """The feature cache cannot do what was asked."""

    code = "cache-error"


class ManifestMismatch(CacheError):
    """The cache was made with settings that give other numbers."""

    code = "manifest-mismatch"


class DamagedCache(CacheError):
    """A file of the cache differs from what was written."""

    code = "damaged-cache"


class MissingRows(CacheError):
    """Rows that an image set needs are not in the cache."""

    code = "missing-rows"


class UnknownSet(CacheError):
    """The image set asked for is not in the cache, or there are several to choose from."""

    code = "unknown-set"


class CacheBusy(CacheError):
    """Another process writes this cache or run."""

    code = "cache-busy"


def install_hint(extra: str) -> str:
    """The command that installs an optional part of this program, for an error's last words."""
    return f"run pip install -e '.[{extra}]' in the folder of headgraft's source"
