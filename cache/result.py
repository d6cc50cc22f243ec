"""What every result of a command is: fields, a sentence for a person, and a table in a notebook."""

import html
from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import Any

_ROWS = 10  # of a table that is shown


class Result(ABC):
    """Base of the result dataclasses."""

    @abstractmethod
    def in_words(self) -> str:
        """What the command prints of it without `--json`."""

    def _repr_html_(self) -> str:
        """Its words, then its fields to unfold: what Jupyter shows."""
        words = f'<pre style="white-space: pre-wrap">{html.escape(self.in_words())}</pre>'
        return f"{words}<details><summary>{type(self).__name__}: all fields</summary>{_table(self)}</details>"


def _table(record: Any) -> str:
    """Fields of a dataclass, or items of a dictionary, one a line."""
    lines = ((name, _cell(value)) for name, value in _items(record).items())
    return (
        "<table>"
        + "".join(f"<tr><th>{html.escape(str(name))}</th><td>{cell}</td></tr>" for name, cell in lines)
        + "</table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple) and value and _is_record(value[0]):
        return _listed(value)
    if _is_record(value):
        return _table(value) if _items(value) else ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= 200 else f"{text[:200]}…")


def _listed(records: Any) -> str:
    """Records of one kind as one table, the first of them."""
    names = list(_items(records[0]))
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in names)
    shown = [_items(record) for record in records[:_ROWS]]
    body = "".join("<tr>" + "".join(f"<td>{_cell(one.get(name))}</td>" for name in names) + "</tr>" for one in shown)
    more = f"<caption>{_ROWS} of {len(records)}</caption>" if len(records) > _ROWS else ""
    return f"<table>{more}<tr>{head}</tr>{body}</table>"


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) or (is_dataclass(value) and not isinstance(value, type))


def _items(record: Any) -> dict[Any, Any]:
    return record if isinstance(record, dict) else {one.name: getattr(record, one.name) for one in fields(record)}
