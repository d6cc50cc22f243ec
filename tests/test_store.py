"""The store: sets, rows in key order, merging, one writer at a time, projections."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import key_of, some_base, some_manifest, some_rows

from cache import layout
from cache.check import repair, verify
from cache.errors import CacheBusy, CacheError, DamagedCache, ManifestMismatch, MissingRows, UnknownSet
from cache.files import temporary_name
from cache.index import ImageRecord, SetIndex, SkippedImage
from cache.keys import RowKey, pack_keys, unpack_keys
from cache.lock import writing
from cache.projections import damaged_projections, load_projection, save_projection
from cache.prune import prune
from cache.shard import Float16Array, Shard, ShardHeader, write_shard
from cache.store import FeatureCache
from cache.writer import ShardWriter, merge_small_shards, spare_copies

HEADER = ShardHeader(
    some_base().digest, (8, 2, 2), some_manifest().recipes[-1], provenance={"device": "cpu", "weights": "NONE"}
)


def image(number: int, split: str = "train", label: str = "1") -> ImageRecord:
    """A record whose key is `key_of(number)`."""
    return ImageRecord(f"{split}/{label}/{number}.jpg", key_of(number)[0].hex(), label, split, 10, 20)


def index(*images: ImageRecord, name: str = "flowers") -> SetIndex:
    """A set of `images`."""
    return SetIndex(
        name,
        "/data/flowers",
        "/data/flowers",
        0,
        ("1", "10"),
        images,
        (SkippedImage("train/1/bad.jpg", "0" * 64, "empty"),),
    )


def filled(path: Path, *shards: tuple[list[RowKey], Float16Array]) -> FeatureCache:
    """A cache holding each of `shards` as one file."""
    cache = FeatureCache.create(path, some_manifest())
    for keys, rows in shards:
        write_shard(path / "shards", HEADER, pack_keys(keys), rows)
    return cache


def opened(path: Path) -> FeatureCache:
    """The cache as another process would see it."""
    return FeatureCache.open(path)


def test_an_index_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Images, skipped files and class order survive, also with a name that is no ASCII and a surrogate in a path."""
    known = index(image(1), replace(image(2, "valid"), path="valid/1/\udcff.jpg"), name="Blüten 1.0")
    cache = FeatureCache.create(tmp_path / "c", some_manifest())
    cache.save_index(known)
    assert cache.sets() == ["Blüten 1.0"]
    assert cache.index() == known
    assert cache.index().digest == known.digest


def test_an_edited_index_is_refused(tmp_path: Path) -> None:
    """A label changed by hand is not served."""
    cache = FeatureCache.create(tmp_path / "c", some_manifest())
    cache.save_index(index(image(1)))
    path = tmp_path / "c" / "sets" / "flowers.json"
    stored = json.loads(path.read_text())
    stored["images"]["label"][0] = "10"
    path.write_text(json.dumps(stored))
    with pytest.raises(DamagedCache, match=r"flowers\.json"):
        cache.index()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "../x", "a\nb", "x" * 101])
def test_a_name_that_is_a_path_or_hidden_cannot_name_a_set(tmp_path: Path, name: str) -> None:
    """Slashes, leading dots, control characters and over-long names are refused before anything is written."""
    cache = FeatureCache.create(tmp_path / "c", some_manifest())
    with pytest.raises(CacheError, match="--set"):
        cache.save_index(index(image(1), name=name))
    assert cache.sets() == []


def test_the_set_digest_covers_labels_and_splits_but_not_place_or_time() -> None:
    """Moving a folder or touching a file is no other set; relabelling, moving to another split or reordering is."""
    known = index(image(1), image(2, "valid"))
    moved = replace(
        known,
        name="x",
        data="/elsewhere",
        root="/elsewhere",
        images=(image(2, "valid"), replace(image(1), mtime_ns=99)),
    )
    assert moved.digest == known.digest
    for other in (
        replace(known, images=(replace(image(1), label="10"), image(2, "valid"))),
        replace(known, images=(replace(image(1), split="test"), image(2, "valid"))),
        replace(known, images=(replace(image(1), digest="f" * 64), image(2, "valid"))),
        replace(known, classes=("10", "1")),
    ):
        assert other.digest != known.digest


def test_the_choice_of_a_set_is_listed_where_it_is_open(tmp_path: Path) -> None:
    """The only set is taken; of several, or of none, the message lists what there is."""
    cache = FeatureCache.create(tmp_path / "c", some_manifest())
    with pytest.raises(UnknownSet, match="none yet"):
        cache.index()
    cache.save_index(index(image(1), name="a"))
    assert cache.index().name == "a"
    cache.save_index(index(image(1), name="b"))
    for asked in (None, "z"):
        with pytest.raises(UnknownSet, match="a, b"):
            cache.index(asked)


def test_row_keys_are_distinct_and_augmented_only_in_train() -> None:
    """Identical files share rows; a file of valid needs no augmented pass."""
    known = index(image(1), replace(image(1), path="copy.jpg"), image(2, "valid"))
    assert known.row_keys(2) == [key_of(1), key_of(1, "pass:1"), key_of(1, "pass:2"), key_of(2)]


@pytest.mark.parametrize("passes", [0, 2])
def test_keys_in_bulk_are_those_one_by_one(passes: int) -> None:
    """In another order, as one array."""
    known = index(image(1), replace(image(1), path="copy.jpg"), image(2, "valid"), image(3))
    assert sorted(unpack_keys(known.packed_keys(passes))) == sorted(known.row_keys(passes))


def test_a_shard_is_spare_only_beside_rows_of_its_kind(tmp_path: Path) -> None:
    """The same keys in another basis, or of another shape, are other rows; of copies the first by name is kept."""
    keys = pack_keys([key_of(1), key_of(2)])
    whole = ShardHeader(some_base().digest, (2,))
    headers = [whole, replace(whole, provenance={"device": "cuda"}), replace(whole, basis="b")]
    paths = [write_shard(tmp_path, header, keys, some_rows(2, 2)) for header in headers]
    part = write_shard(tmp_path, whole, keys[:1], some_rows(1, 2))
    spare = spare_copies([Shard.open(path) for path in (*paths, part)])
    assert {shard.path for shard in spare} == {max(paths[:2]), part}


def test_rows_are_read_in_the_order_of_their_keys(tmp_path: Path) -> None:
    """Whatever shard they lie in, and also where a key is asked for twice."""
    rows = some_rows(7, 32)
    keys = [key_of(n) for n in range(7)]
    cache = filled(tmp_path / "c", (keys[:3], rows[:3]), (keys[3:], rows[3:]))
    order = [6, 0, 3, 3, 1, 5]
    assert len(cache) == 7
    assert np.array_equal(cache.read([keys[n] for n in order]), rows[order])


def test_blocks_cover_every_position_once_and_keep_to_their_size(tmp_path: Path) -> None:
    """The positions of all blocks are a permutation, each with its own row."""
    rows = some_rows(9, 32)
    keys = [key_of(n) for n in range(9)]
    cache = filled(tmp_path / "c", (keys[:4], rows[:4]), (keys[4:], rows[4:]))
    order = [8, 2, 4, 0, 1, 7, 3, 5, 6]
    seen: list[int] = []
    for positions, block in cache.blocks([keys[n] for n in order], size=2):
        assert len(positions) <= 2
        assert np.array_equal(block, rows[np.array(order)[positions]])
        seen += positions.tolist()
    assert sorted(seen) == list(range(9))


def test_no_keys_give_no_rows(tmp_path: Path) -> None:
    """An empty request is an empty answer."""
    assert filled(tmp_path / "c", ([key_of(0)], some_rows(1, 32))).read([]).shape == (0, 32)


def test_missing_rows_are_listed_in_order_and_refused_when_read(tmp_path: Path) -> None:
    """`without` keeps the order asked; reading says how many are not there."""
    cache = filled(tmp_path / "c", ([key_of(1)], some_rows(1, 32)))
    asked = [key_of(3), key_of(1), key_of(1, "pass:1")]
    assert unpack_keys(cache.without(pack_keys(asked))) == [key_of(3), key_of(1, "pass:1")]
    with pytest.raises(MissingRows, match="2 of 3 rows"):
        cache.read(asked)


def test_complete_passes_counts_only_passes_that_every_training_image_has(tmp_path: Path) -> None:
    """A pass with a hole does not count, nor does one after it; valid images need none."""
    keys = [key_of(n, f"pass:{k}") for n, k in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3), (3, 0))]
    cache = filled(tmp_path / "c", (keys, some_rows(8, 32)))
    assert cache.complete_passes(index(image(1), image(2), image(3, "valid"))) == 1
    assert cache.complete_passes(index(image(1), image(3, "valid"))) == 3
    assert cache.complete_passes(index(image(3, "valid"))) == 0


def test_a_shard_of_other_settings_is_refused(tmp_path: Path) -> None:
    """A true shard copied in from another cache is not served."""
    cache = filled(tmp_path / "c")
    write_shard(
        tmp_path / "c" / "shards", replace(HEADER, base_digest="f" * 64), pack_keys([key_of(0)]), some_rows(1, 32)
    )
    with pytest.raises(ManifestMismatch, match="other settings"):
        len(cache)


def test_every_damaged_shard_is_named_at_once(tmp_path: Path) -> None:
    """One error lists all of them, and says what to do."""
    cache = filled(tmp_path / "c", *(([key_of(n)], some_rows(1, 32, n)) for n in range(3)))
    damaged = sorted((tmp_path / "c" / "shards").iterdir())[:2]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedCache) as caught:
        len(cache)
    assert all(path.name in str(caught.value) for path in damaged)
    assert "run extract again" in str(caught.value)


def test_the_writer_cuts_shards_by_rows_and_keeps_each_row_once(tmp_path: Path) -> None:
    """Ten rows at three a shard: every row is there once, clean and augmented."""
    cache = filled(tmp_path / "c")
    rows = some_rows(10, 32)
    keys = [key_of(n // 2, f"pass:{n % 2}") for n in range(10)]
    with ShardWriter(cache.path, HEADER, rows_per_shard=3) as writer:
        for n in range(10):
            writer.add([keys[n]], rows[n : n + 1])
    cache = FeatureCache.open(cache.path)
    assert [len(shard.keys) for shard in cache.shards].count(3) == 3
    assert sum(len(shard.keys) for shard in cache.shards) == 10
    assert np.array_equal(cache.read(keys), rows)


def test_the_writer_keeps_what_was_collected_when_its_block_fails(tmp_path: Path) -> None:
    """An exception in the middle costs no row that was handed over."""
    cache = filled(tmp_path / "c")
    with pytest.raises(ZeroDivisionError), ShardWriter(cache.path, HEADER) as writer:
        writer.add([key_of(0)], some_rows(1, 32))
        raise ZeroDivisionError
    assert len(FeatureCache.open(cache.path)) == 1


def test_a_shard_is_written_when_its_time_is_up(tmp_path: Path) -> None:
    """With no seconds to wait, every addition becomes a shard."""
    cache = filled(tmp_path / "c")
    with ShardWriter(cache.path, HEADER, seconds_per_shard=0) as writer:
        for n in range(3):
            writer.add([key_of(n)], some_rows(1, 32, n))
    assert len(cache.shards) == 3


def test_merging_keeps_every_row_exactly_once(tmp_path: Path) -> None:
    """Small shards, clean and augmented, become one with the same rows."""
    rows = some_rows(6, 32)
    keys = [key_of(n // 2, f"pass:{n % 2}") for n in range(6)]
    cache = filled(tmp_path / "c", *((keys[n : n + 2], rows[n : n + 2]) for n in (0, 2, 4)))
    assert merge_small_shards(cache.shards) == 3
    cache = FeatureCache.open(cache.path)
    assert len(cache.shards) == 1
    assert sorted(cache.shards[0].keys) == sorted(keys)
    assert np.array_equal(cache.read(keys), rows)


def test_merging_removesspare_copies(tmp_path: Path) -> None:
    """What a kill in the middle of a merge leaves, small shards beside the merged one, goes."""
    rows = some_rows(4, 32)
    keys = [key_of(n) for n in range(4)]
    cache = filled(tmp_path / "c", (keys, rows), (keys[:2], rows[:2]), (keys[2:], rows[2:]))
    merge_small_shards(cache.shards)
    cache = FeatureCache.open(cache.path)
    assert sum(len(shard.keys) for shard in cache.shards) == 4
    assert np.array_equal(cache.read(keys), rows)


def test_merging_shards_that_overlap_stores_no_row_twice(tmp_path: Path) -> None:
    """Two writers whose shards share a row, neither within the other, leave each row once."""
    rows = some_rows(3, 32)
    keys = [key_of(n) for n in range(3)]
    cache = filled(tmp_path / "c", (keys[:2], rows[:2]), (keys[1:], rows[1:]))
    merge_small_shards(cache.shards)
    cache = FeatureCache.open(cache.path)
    assert np.array_equal(cache.read(keys), rows)
    assert sum(len(shard.keys) for shard in cache.shards) == 3


def test_merging_leaves_large_shards_and_other_provenance_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard over the limit stays as it is; rows of another machine are not mixed in."""
    monkeypatch.setattr("cache.writer.MERGE_BELOW", 3)
    cache = filled(tmp_path / "c", ([key_of(n) for n in range(4)], some_rows(4, 32)), ([key_of(9)], some_rows(1, 32)))
    other = replace(HEADER, provenance={"device": "cuda"})
    write_shard(cache.path / "shards", other, pack_keys([key_of(10)]), some_rows(1, 32))
    assert merge_small_shards(cache.shards) == 0
    assert len(FeatureCache.open(cache.path).shards) == 3


def test_a_full_disk_while_merging_is_one_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC during a merge is a CacheError, and the small shards stay."""
    keys = [key_of(n) for n in range(2)]
    cache = filled(tmp_path / "c", (keys[:1], some_rows(1, 32)), (keys[1:], some_rows(1, 32)))
    assert len(cache.shards) == 2

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cache.files.os.fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        merge_small_shards(cache.shards)
    assert len(FeatureCache.open(cache.path)) == 2


def test_a_second_writing_process_is_refused(tmp_path: Path) -> None:
    """While another process holds the cache, writing raises CacheBusy; when it ends, the cache is free."""
    cache = filled(tmp_path / "c")
    hold = (
        "import sys; from pathlib import Path; from cache.lock import writing\n"
        "with writing(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(cache.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(CacheBusy, match=str(child.pid)), writing(cache.path):
            pass
        child.communicate("")
    with writing(cache.path):
        pass


def test_a_writer_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    """Temporary files of dead processes go when the next writer starts; those of living ones stay."""
    cache = filled(tmp_path / "c", ([key_of(0)], some_rows(1, 32)))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as other:
        name = temporary_name().replace(f"-{os.getpid()}-", f"-{other.pid}-")
        left = cache.path / "shards" / name
        left.write_bytes(b"half a shard")
        with writing(cache.path):
            assert left.exists()
        other.communicate("\n")
    with writing(cache.path):
        assert not left.exists()
    assert len(FeatureCache.open(cache.path)) == 1


def test_temporary_files_of_other_machines_live_a_day(tmp_path: Path) -> None:
    """Whether their process lives cannot be asked from here."""
    cache = filled(tmp_path / "c")
    young, old = (cache.path / "sets" / f".{number}-1-{'0' * 32}.tmp" for number in ("00000000", "00000001"))
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    with writing(cache.path):
        assert young.exists()
        assert not old.exists()


def test_a_damaged_projection_counts_as_absent(tmp_path: Path) -> None:
    """Kept under what it was made from, removed when its bytes lost their digest."""
    cache = filled(tmp_path / "c")
    projections = cache.path / layout.PROJECTION_FOLDER
    save_projection(cache.path, "a" * 64, b"numbers")
    assert load_projection(cache.path, "a" * 64) == b"numbers"
    assert load_projection(cache.path, "b" * 64) is None
    (path,) = projections.iterdir()
    path.write_bytes(b"numberz")
    assert load_projection(cache.path, "a" * 64) is None
    assert list(projections.iterdir()) == []


def test_a_projection_under_another_source_counts_as_absent(tmp_path: Path) -> None:
    """Its digest is of its source too: renamed, it is not what its name says. Folders there are nobody's business."""
    cache = filled(tmp_path / "c")
    projections = cache.path / layout.PROJECTION_FOLDER
    save_projection(cache.path, "a" * 64, b"numbers")
    (path,) = projections.iterdir()
    renamed = path.rename(path.with_name(path.name.replace("a" * 64, "b" * 64)))
    (projections / f"{'b' * 64}-folder.safetensors").mkdir()
    assert damaged_projections(cache.path) == [renamed]
    assert load_projection(cache.path, "b" * 64) is None
    assert not renamed.exists()
    assert verify(cache.path).bad == []
    assert repair(cache.path).set_aside == []
    assert prune(cache.path).rows == 0


def test_what_verify_finds_names_a_file_once_and_in_our_own_words(tmp_path: Path) -> None:
    """A damaged shard, and indexes that are no JSON, an empty object, or another kind of JSON."""
    cache = filled(tmp_path / "c", ([key_of(1)], some_rows(1, 32)))
    (shard,) = cache._shard_paths()
    shard.write_bytes(shard.read_bytes()[:-1])
    for name, text in (("text", "text"), ("empty", "{}"), ("list", "[]")):
        (cache.path / layout.SET_FOLDER / f"{name}.json").write_text(text)
    found = verify(cache.path)
    assert len(found.bad) >= 4
    assert found.in_words().startswith("1 shard, 0 rows, ")
    for bad in found.bad:
        assert str(cache.path) not in bad["reason"]
        assert not re.search(r"Error|Expecting|attribute|indices", bad["reason"])


def test_the_note_of_who_writes_is_not_written_through_a_link(tmp_path: Path) -> None:
    """What a planted link points to stays as it is."""
    cache = filled(tmp_path / "c")
    (tmp_path / "victim").write_text("precious")
    (cache.path / layout.HOLDER_FILE).symlink_to(tmp_path / "victim")
    with writing(cache.path):
        assert json.loads((cache.path / layout.HOLDER_FILE).read_text())["process"] == os.getpid()
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("how", [merge_small_shards, lambda shards: prune(shards[0].path.parents[1])])
def test_rows_damaged_after_they_were_opened_are_not_copied(
    how: Callable[[Sequence[Shard]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge or prune gives what it copies a new digest: it reads each shard whole, and checks it once more."""
    cache = filled(tmp_path / "c", ([key_of(0), key_of(1)], some_rows(2, 32)), ([key_of(2)], some_rows(1, 32)))
    cache.save_index(index(image(0)))
    shards = FeatureCache.open(cache.path).shards
    victim = max(shards, key=len).path
    monkeypatch.setattr(FeatureCache, "examined", (shards, {}))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DamagedCache, match=victim.name):
        how(shards)
    assert victim.exists()


def test_what_repair_set_aside_before_is_kept(tmp_path: Path) -> None:
    """Another damaged file of the same name goes beside it."""
    cache = filled(tmp_path / "c")
    for content in ("one", "two", "three"):
        (cache.path / "sets" / "flowers.json").write_text(content)
        repair(cache.path)
    kept = sorted((cache.path / layout.DAMAGED_FOLDER).iterdir())
    assert {file.name: file.read_text() for file in kept} == {
        "flowers.json": "one",
        "flowers-2.json": "two",
        "flowers-3.json": "three",
    }


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("work", [lambda path: prune(path), lambda path: merge_small_shards(opened(path).shards)])
def test_prune_or_merge_killed_at_any_step_loses_no_row_in_use(
    work: Callable[[Path], object], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it wrote or removed before, the same again finds every row in use, and ends with nothing else."""
    used, other = [key_of(n) for n in range(4)], [key_of(n) for n in range(4, 7)]
    cache = filled(tmp_path / "c", (used[:2] + other, some_rows(5, 32)), (used[2:], some_rows(2, 32, seed=1)))
    cache.save_index(index(*map(image, range(4))))
    expected = cache.read(used)
    with monkeypatch.context() as patch:
        left = step
        for kind, name in ((Path, "unlink"), (os, "replace"), (os, "fsync")):
            real = getattr(kind, name)

            def killed(*given: object, real: Callable[..., object] = real, **named: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return real(*given, **named)

            patch.setattr(kind, name, killed)
        with suppress(KeyboardInterrupt):
            work(cache.path)
    for _ in range(2):
        work(cache.path)
        assert np.array_equal(opened(cache.path).read(used), expected)
    prune(cache.path)
    assert len(opened(cache.path)) == len(used)
