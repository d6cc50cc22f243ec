"""Row keys in bulk."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache.keys import KeyTable, RowKey, join_keys, pack_keys, unpack_keys
from cache.layout import VIEW_DTYPE

DIGESTS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([b"\0" * 32, b"\0" * 31 + b"a", b"a" + b"\0" * 31, b"\xff" * 32]),
)
VIEWS = st.sampled_from(["pass:0", "pass:1", "pass:10", "pass:999999999"])
KEYS = st.lists(st.tuples(DIGESTS, VIEWS), max_size=20)


@given(KEYS)
def test_packed_keys_come_back(keys: list[RowKey]) -> None:
    """Whatever bytes a digest has, zeros at its ends included; from a shard's two arrays just the same."""
    assert unpack_keys(pack_keys(keys)) == keys
    digests = np.frombuffer(b"".join(digest for digest, _ in keys), np.uint8).reshape(len(keys), 32)
    views = np.array([view.encode() for _, view in keys], VIEW_DTYPE)
    assert unpack_keys(join_keys(digests, views)) == keys


@given(st.lists(KEYS, max_size=4), KEYS)
def test_a_key_is_found_where_it_stands_first(parts: list[list[RowKey]], asked: list[RowKey]) -> None:
    """As in a dictionary that keeps the first; -1 for what is nowhere."""
    places: dict[RowKey, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for row, key in enumerate(part):
            places.setdefault(key, (number, row))
    table = KeyTable([(number, pack_keys(part)) for number, part in enumerate(parts)])
    everything = [*asked, *places]
    found = zip(*table.find(pack_keys(everything)), strict=True)
    assert [(int(part), int(row)) for part, row in found] == [places.get(key, (-1, -1)) for key in everything]
    assert len(table) == len(places)
