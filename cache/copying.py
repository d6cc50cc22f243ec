"""Copying many files, some at once: one that is refused does not stop the others."""

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from cache.errors import CacheError

logger = logging.getLogger("headgraft.cache")

_AT_ONCE = 4  # copies under way
_SECONDS_BETWEEN_LINES = 10.0


class Refused(CacheError):
    """A file that is not copied, and why; others are."""


def copy_all(copy: Callable[[str], bool], names: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Copy files, some at once; returns those of which there is a new copy, and why others were refused."""

    def outcome(name: str) -> bool | str:
        try:
            return copy(name)
        except Refused as error:
            return str(error)

    copied, refused, last = list[str](), dict[str, str](), time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, (name, made) in enumerate(zip(names, pool.map(outcome, names), strict=True), 1):
            if isinstance(made, str):
                refused[name] = made
            elif made:
                copied.append(name)
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                logger.info(f"{done} of {len(names)} files")
    return copied, refused
