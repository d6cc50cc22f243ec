"""Class names that look alike: which of them do, and how they differ."""

import unicodedata
from collections.abc import Callable, Iterable
from difflib import get_close_matches

_UNDO: dict[str, Callable[[str], str]] = {
    "Unicode form": lambda name: unicodedata.normalize("NFC", name),
    "blanks": lambda name: " ".join(name.split()),
    "case": str.casefold,
}
_CLOSE = 0.8  # of 1, how alike a misspelt name and the right one are


def plain(name: str) -> str:
    """`name` as it is compared: in one Unicode form, without outer and double blanks, in lower case."""
    return _undone(name, _UNDO)


def difference(a: str, b: str) -> str:
    """How two names with the same `plain` form differ, in words, such as "case" or "Unicode form (NFC against NFD)"."""
    ways = [way for way in _UNDO if _undone(a, _UNDO.keys() - {way}) != _undone(b, _UNDO.keys() - {way})]
    return " and ".join(f"{way} ({_form(a)} against {_form(b)})" if way == "Unicode form" else way for way in ways)


def resembling(name: str, others: Iterable[str]) -> str:
    """The one of `others` that `name` looks like, and how it differs, to follow `name` in a sentence; "" for none."""
    others = [other for other in others if other != name]
    if other := next((other for other in others if plain(other) == plain(name)), None):
        return f", which differs from {other!r} in {difference(name, other)}"
    close = get_close_matches(name, others, 1, _CLOSE)
    return f" (did you mean {close[0]!r}?)" if close else ""


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of distinct names that look alike; each name with the first of its kind, in the order of `names`."""
    first: dict[str, str] = {}
    return [(known, name) for name in names if (known := first.setdefault(plain(name), name)) != name]


def _undone(name: str, ways: Iterable[str]) -> str:
    for way, undo in _UNDO.items():
        name = undo(name) if way in ways else name
    return name


def _form(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed")
