"""Errors whose message is meant for the person at the keyboard, and whose `code` is meant for a script."""


class HeadgraftError(Exception):
    """One sentence or more: what was found, what was expected, what to do. Every class has a `code` of its own."""

    code = "error"

    def __init_subclass__(cls, code: str | None = None) -> None:
        cls.code = code or cls.code  # Ray derives classes of its own from these


class CacheError(HeadgraftError, code="cache-error"):
    """The feature cache cannot do what was asked."""


class ManifestMismatch(CacheError, code="manifest-mismatch"):
    """The cache was made with settings that give other numbers."""


class DamagedCache(CacheError, code="damaged-cache"):
    """A file of the cache differs from what was written."""


class MissingRows(CacheError, code="missing-rows"):
    """Rows that an image set needs are not in the cache."""


class UnknownSet(CacheError, code="unknown-set"):
    """The image set asked for is not in the cache, or there are several to choose from."""


class CacheBusy(CacheError, code="cache-busy"):
    """Another process writes this cache or run."""


def counted(count: int, word: str) -> str:
    """1 head, 2 heads; 1 pass, 2 passes."""
    return f"{count} {word}" if count == 1 else f"{count} {word}{'es' if word.endswith('s') else 's'}"


def install_hint(extra: str) -> str:
    """The command that installs an optional part of this program, for an error's last words."""
    return f"run pip install -e '.[{extra}]' in the folder of headgraft's source"
