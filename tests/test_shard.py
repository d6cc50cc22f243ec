"""Immutable shards: what is written is read, and whatever is not what was written is found."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xxhash
from conftest import key_of, some_base, some_rows
from hypothesis import given
from hypothesis import strategies as st

from cache import layout
from cache.errors import CacheError, DamagedCache
from cache.keys import pack_keys, split_keys
from cache.shard import Shard, ShardHeader, write_shard
from cache.writer import ShardWriter


def written(folder: Path, count: int = 5, shape: tuple[int, ...] = (8, 2, 2)) -> Path:
    """A shard of `count` rows in `folder`."""
    rows = some_rows(count, int(np.prod(shape)))
    return write_shard(
        folder, ShardHeader(some_base(shape).digest, shape), pack_keys(key_of(n) for n in range(count)), rows
    )


@given(
    count=st.integers(1, 12),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    view=st.sampled_from(["pass:0", "pass:1", "pass:12", "pass:999999999"]),
    seed=st.integers(0, 99),
)
def test_a_shard_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, count: int, shape: tuple[int, ...], view: str, seed: int
) -> None:
    """Rows of any shape, their keys and the header come back bit for bit."""
    rows = some_rows(count, int(np.prod(shape)), seed)
    header = ShardHeader("b" * 64, shape, "a" * 64, "", {"device": "cpu", "code_path": "eager"})
    keys = [key_of(n, view) for n in range(count)]
    shard = Shard.open(write_shard(tmp_path_factory.mktemp("shards"), header, pack_keys(keys), rows))
    assert shard.header == (replace(header, augmentation_digest="") if view == "pass:0" else header)
    assert list(shard.keys) == keys
    assert shard.rows.dtype == np.dtype("<f2")
    assert np.array_equal(shard.rows, rows)


@pytest.mark.parametrize(("count", "features"), [(1, 7), (3, 32), (200, 4096)])
def test_a_shard_in_pieces_is_what_hdf5_writes(tmp_path: Path, count: int, features: int) -> None:
    """Byte for byte, whether its features lie last in the file or not; a second one is patched into the same head."""
    for seed in range(2):
        rows, keys = some_rows(count, features, seed), pack_keys(key_of(seed + n, "pass:1") for n in range(count))
        header = ShardHeader("b" * 64, (features,), "a" * 64, "", {"device": "cpu"})
        path = write_shard(tmp_path, header, keys, rows[: count // 2], rows[count // 2 :])
        digests, views = split_keys(keys)
        options = {"driver": "core", "backing_store": False, "libver": ("v110", "v110")}
        with h5py.File("whole", "w", **options, alignment_threshold=4096, alignment_interval=4096) as file:
            file.attrs["format"], file.attrs["base_digest"], file.attrs["augmentation_digest"] = 1, "b" * 64, "a" * 64
            file.attrs["row_shape"], file.attrs["basis"] = np.array([features], "<i8"), ""
            file.attrs["provenance"] = '{"device": "cpu"}'
            for name, data in (("digests", digests), ("views", views), ("features", rows)):
                file.create_dataset(name, data=data)
            file.flush()
            assert path.read_bytes() == file.id.get_file_image()


def test_the_name_promises_digest_and_size(tmp_path: Path) -> None:
    """The file name parses to a digest and the file's length, and ends in .h5."""
    path = written(tmp_path)
    promised = layout.parse_shard_name(path.name)
    assert promised is not None
    assert promised[1] == path.stat().st_size
    assert path.suffix == ".h5"


def test_the_same_rows_make_the_same_file(tmp_path: Path) -> None:
    """Writing is deterministic, so that writing twice leaves one file."""
    assert written(tmp_path) == written(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_shard_is_plain_hdf5_with_aligned_contiguous_float16(tmp_path: Path) -> None:
    """Other tools can read it: one contiguous <f2 dataset at an aligned offset, 32-byte digests, named views."""
    with h5py.File(written(tmp_path, 100), "r") as file:
        features = file["features"]
        assert features.chunks is None
        assert features.dtype.str == "<f2"
        assert features.id.get_offset() % 4096 == 0
        assert file["digests"].shape == (100, 32)
        assert bytes(file["views"][0]) == b"pass:0"


def test_a_truncated_shard_is_found(tmp_path: Path) -> None:
    """Every shorter length is refused."""
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCache, match="bytes"):
            Shard.open(path)


def test_trailing_junk_is_found(tmp_path: Path) -> None:
    """A byte more than was written is refused."""
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedCache, match="its name says"):
        Shard.open(path)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    """One bit flipped anywhere, in features, keys, header or padding, is refused."""
    path = written(tmp_path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in (0, len(whole) - 1, *generator.integers(0, len(whole), 40).tolist()):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(DamagedCache, match="damaged"):
            Shard.open(path)


def test_a_renamed_shard_is_found(tmp_path: Path) -> None:
    """A file under another shard's name, or under none, is refused."""
    first, second = written(tmp_path, 5), written(tmp_path, 6)
    shutil.copy(first, second)
    with pytest.raises(DamagedCache):
        Shard.open(second)
    with pytest.raises(DamagedCache, match="not named"):
        Shard.open(first.rename(tmp_path / "features.h5"))


def test_junk_under_a_true_name_is_found(tmp_path: Path) -> None:
    """Bytes that carry the right digest and length but are no shard are refused too."""
    junk = b"no HDF5 file at all" * 99
    path = tmp_path / layout.shard_name(xxhash.xxh3_128_hexdigest(junk), len(junk))
    path.write_bytes(junk)
    with pytest.raises(DamagedCache, match="not a shard"):
        Shard.open(path)


def _chunk(file: h5py.File) -> None:
    rows = file["features"][()]
    del file["features"]
    file.create_dataset("features", data=rows, chunks=(1, rows.shape[1]), compression="gzip")


def _link(name: str, kind: type) -> Callable[[h5py.File], None]:
    """Put what `name` holds elsewhere, a link in its place."""

    def change(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = kind("elsewhere") if kind is h5py.SoftLink else kind("other.h5", name)

    return change


def _replace(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if value is None:
            file.create_group(name)
        else:
            file[name] = value

    return change


def _vast(file: h5py.File) -> None:
    del file["digests"]
    file.create_dataset("digests", (1 << 40, 32), np.uint8, chunks=(1024, 32))


def _first_twice(file: h5py.File) -> None:
    file["digests"][1] = file["digests"][0]
    file["views"][1] = file["views"][0]


def _not_finite(file: h5py.File) -> None:
    file["features"][1, 3] = -np.inf


def _augment(file: h5py.File) -> None:
    file["views"][0] = b"pass:1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_chunk, "contiguous"),
        (_not_finite, "not finite"),
        (_first_twice, "two rows of one key"),
        (_augment, "augmented one without its recipe"),
        (_vast, "more keys than the file has room for"),
        (_link("digests", h5py.ExternalLink), "not a dataset of the file itself"),
        (_link("views", h5py.SoftLink), "not a dataset of the file itself"),
        (_link("features", h5py.ExternalLink), "not a dataset of the file itself"),
        (_replace("features", None), "not a dataset of the file itself"),
        (_replace("features", np.dtype("<f2")), "not a dataset of the file itself"),
        (_replace("digests", np.zeros((3, 31), np.uint8)), "digests of shape"),
        (lambda file: file.attrs.update(provenance="[]"), "provenance"),
        (lambda file: file.attrs.update(provenance="[" * 100_000), "not a shard"),
        (lambda file: file.attrs.update(row_shape=32), "not a shard"),
        (lambda file: file.attrs.update(row_shape=np.array([-8, -2, 2])), "without features"),
        (lambda file: file.attrs.update(row_shape=np.zeros(0, "<i8")), "without features"),
        (lambda file: file.attrs.update(format=np.inf), "not a shard"),
    ],
)
def test_a_crafted_shard_is_refused(change: Callable[[h5py.File], None], reason: str, tmp_path: Path) -> None:
    """What no writer writes is refused, also under a name whose digest holds; no other file is opened."""
    old = written(tmp_path)
    with h5py.File(old, "r+") as file:
        change(file)
    whole = old.read_bytes()
    path = old.rename(tmp_path / layout.shard_name(xxhash.xxh3_128_hexdigest(whole), len(whole)))
    with pytest.raises(DamagedCache, match=reason):
        Shard.open(path)


def test_a_full_disk_is_one_error_and_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while a shard is written becomes a CacheError that says so, and nothing half-written stays."""
    (tmp_path / layout.SHARD_FOLDER).mkdir()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cache.files.os.fsync", full)
    with (
        pytest.raises(CacheError, match="No space left"),
        ShardWriter(tmp_path, ShardHeader("b" * 64, (8, 2, 2))) as writer,
    ):
        writer.add([key_of(0)], some_rows(1, 32))
    assert list((tmp_path / layout.SHARD_FOLDER).iterdir()) == []
