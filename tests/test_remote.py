"""Copies of a cache at a URL: push and pull, in memory, in a folder, and in an S3 that a server here plays."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, Extract, key_of, some_base, some_manifest, some_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parts import rows_of

from cache import layout
from cache.check import verify
from cache.errors import CacheBusy, CacheError, DamagedCache, ManifestMismatch
from cache.index import ImageRecord, SetIndex
from cache.keys import pack_keys
from cache.labels import LabelJournal, writing_labels
from cache.lock import writing
from cache.manifest import Augmentation, Manifest
from cache.objects import ObjectStore
from cache.reduction import Reduction, save_basis
from cache.remote import pull, push
from cache.shard import ShardHeader, write_shard
from cache.store import FeatureCache
from cli import main

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")

URL = "memory://bucket/features"
PLAIN = Manifest(some_base())


@pytest.fixture(autouse=True)
def nothing_in_memory() -> Iterator[None]:
    """Each test with an empty memory://."""
    yield
    fsspec.filesystem("memory").store.clear()


def cache_of(path: Path, *images: int, manifest: Manifest = PLAIN, passes: int = 0) -> Path:
    """A cache with a shard for each of `images`, of its clean view and its passes, and an index of them."""
    cache = FeatureCache.create(path, manifest)
    recipe = manifest.augmentation
    header = ShardHeader(manifest.base.digest, (8, 2, 2), recipe.digest if recipe else "")
    for number in images:
        keys = [key_of(number, layout.pass_view(view)) for view in range(passes + 1)]
        write_shard(path / "shards", header, pack_keys(keys), some_rows(len(keys), 32, number))
    records = [ImageRecord(f"train/1/{n}.jpg", key_of(n)[0].hex(), "1", "train", 10, 20) for n in images]
    cache.save_index(SetIndex("flowers", "/data", "/data", 0, ("1",), tuple(records), passes=passes))
    return path


def stored() -> dict[str, bytes]:
    """What lies in memory://, by name."""
    found = fsspec.filesystem("memory").store
    return {name.removeprefix("/bucket/features/"): file.getvalue() for name, file in found.items()}


def damage(name: str, data: bytes) -> None:
    """Put `data` in place of a file in memory://."""
    fsspec.filesystem("memory").pipe_file(f"/bucket/features/{name}", data)


def flipped(data: bytes, place: int) -> bytes:
    """The same with one byte changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture
def shards_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction writes shards of two rows, so that there are many."""
    monkeypatch.setattr("cache.writer.ShardWriter.__init__.__defaults__", (2, 20.0))


def test_a_folder_that_is_named_without_a_protocol_is_told_with_one(tmp_path: Path, monkeypatch: Any) -> None:
    """In full, so that it can be copied; what could not be copied makes no claim of what was."""
    cache = cache_of(tmp_path / "a", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CacheError, match=f"file://{tmp_path / 'copy'}"):
        push(cache, "copy")
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"could not .*file/manifest\.json") as refused:
        push(cache, f"file://{tmp_path / 'file'}")
    assert "before" not in str(refused.value)


def test_what_is_pulled_is_what_was_pushed(tmp_path: Path) -> None:
    """Byte for byte, locks and projections left out; again, nothing is copied."""
    cache = cache_of(tmp_path / "a", 1, 2, 3)
    (cache / "projections" / "x.safetensors").write_bytes(b"made again where it is needed")
    first = push(cache, URL)
    assert (first.shards, first.present, first.sets, first.refused) == (3, 0, ("flowers",), ())
    assert first.bytes == FeatureCache.open(cache).bytes
    assert {name.partition("/")[0] for name in stored()} == {"manifest.json", "shards", "sets"}
    again = push(cache, URL)
    assert (again.shards, again.present, again.bytes, again.sets) == (0, 3, 0, ())
    got = pull(URL, tmp_path / "b")
    assert (got.shards, got.sets, got.bytes) == (3, ("flowers",), first.bytes)
    assert pull(URL, tmp_path / "b").present == 3
    assert rows_of(tmp_path / "b") == rows_of(cache)
    assert all((tmp_path / "b" / name).read_bytes() == data for name, data in stored().items())


def test_a_folder_is_a_place_too(tmp_path: Path) -> None:
    """Files are written beside their place and moved there; what is there can be opened as it is."""
    cache, url = cache_of(tmp_path / "a", 1, 2), f"file://{tmp_path}/there"
    push(cache, url)
    assert rows_of(tmp_path / "there") == rows_of(cache)
    assert not list((tmp_path / "there").rglob(".*"))
    assert pull(url, tmp_path / "b").shards == 2


def test_a_copy_into_a_folder_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under a file's name nor under another."""
    cache = cache_of(tmp_path / "a", 1)

    def cut_short(_: object, file: str, place: str) -> None:
        Path(place).write_bytes(Path(file).read_bytes()[:100])
        raise OSError("connection lost")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", cut_short)
    with pytest.raises(CacheError, match="connection lost"):
        push(cache, f"file://{tmp_path}/there")
    assert list((tmp_path / "there" / "shards").iterdir()) == []


@settings(max_examples=12)
@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=4), st.booleans())
def test_pushes_of_several_caches_add_up(
    tmp_path_factory: pytest.TempPathFactory, holdings: list[set[int]], backwards: bool
) -> None:
    """In any order, overlapping or not: what is pulled serves each row once, as one cache of all would."""
    folder = tmp_path_factory.mktemp("caches")
    fsspec.filesystem("memory").store.clear()
    caches = [cache_of(folder / str(number), *images) for number, images in enumerate(holdings)]
    for cache in reversed(caches) if backwards else caches:
        push(cache, URL, overwrite=True)
    every = sorted(set().union(*holdings))
    pull(URL, folder / "all")
    assert rows_of(folder / "all") == rows_of(cache_of(folder / "whole", *every))
    assert len(FeatureCache.open(folder / "all").shards) == len(every)


@given(st.integers(1), st.booleans())
def test_a_damaged_shard_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, place: int, truncated: bool
) -> None:
    """A flipped byte or a cut, anywhere: nothing of it is kept, the rest is, and from a sound store all is."""
    folder = tmp_path_factory.mktemp("caches")
    fsspec.filesystem("memory").store.clear()
    cache = cache_of(folder / "a", 1, 2)
    push(cache, URL)
    name = next(name for name in stored() if name.startswith("shards/"))
    whole = stored()[name]
    place %= len(whole)
    damage(name, whole[:place] if truncated else flipped(whole, place))
    result = pull(URL, folder / "b")
    assert [refused["file"] for refused in result.refused] == [name]
    assert ("its name says" if truncated else "do not have the digest") in result.refused[0]["reason"]
    assert (result.shards, len(FeatureCache.open(folder / "b"))) == (1, 1)
    assert sorted(path.name for path in (folder / "b" / "shards").iterdir()) == sorted(
        path.name for path in (cache / "shards").iterdir() if f"shards/{path.name}" != name
    )
    assert FeatureCache.open(folder / "b").lost(FeatureCache.open(folder / "b").index()) == 1
    if truncated:
        assert push(cache, URL).shards == 1  # of another length: what was cut short is sent anew
    else:
        damage(name, whole)
    assert (pull(URL, folder / "b").refused, rows_of(folder / "b")) == ((), rows_of(cache))


def test_a_damaged_shard_is_never_sent(tmp_path: Path) -> None:
    """Nor are indexes, whose rows would not be there; the other shards are."""
    cache = cache_of(tmp_path / "a", 1, 2)
    bad = min((cache / "shards").iterdir())
    bad.write_bytes(flipped(bad.read_bytes(), 5000))
    result = push(cache, URL)
    assert (result.shards, result.sets) == (1, ())
    assert [refused["file"] for refused in result.refused] == [f"shards/{bad.name}", "sets/flowers.json"]
    assert f"shards/{bad.name}" not in stored()
    assert "sets/flowers.json" not in stored()


def test_a_shard_under_another_name_or_of_another_cache_is_refused(tmp_path: Path) -> None:
    """Its digest may hold, it is still none of this cache's."""
    push(cache_of(tmp_path / "a", 1), URL)
    other = Manifest(replace(some_base(), precision="bfloat16"))
    foreign = next((cache_of(tmp_path / "other", 2, manifest=other) / "shards").iterdir())
    damage(f"shards/{foreign.name}", foreign.read_bytes())
    damage("shards/odd.h5", b"odd")
    damage("shards/notes.txt", b"no business of ours")
    refused = {entry["file"]: entry["reason"] for entry in pull(URL, tmp_path / "b").refused}
    assert refused == {
        f"shards/{foreign.name}": "it was made with other settings than the rest",
        "shards/odd.h5": "it is not named as a shard is",
    }


@pytest.mark.parametrize("stop_after", range(1, 7))
def test_a_push_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
    """At any of its writes: what is there then is a cache without an index, or nothing; run again, it is whole."""
    cache = cache_of(tmp_path / "a", 1, 2, 3, 4)
    put = ObjectStore._put
    done: list[str] = []

    def stopping(store: ObjectStore, name: str, how: Any) -> None:
        if len(done) == stop_after - 1:
            raise KeyboardInterrupt
        done.append(name)
        put(store, name, how)

    monkeypatch.setattr(ObjectStore, "_put", stopping)
    with pytest.raises(KeyboardInterrupt):
        push(cache, URL)
    monkeypatch.undo()
    if stop_after > 1:
        assert pull(URL, tmp_path / "early").sets == ()
        assert verify(tmp_path / "early").bad == []
    push(cache, URL)
    pull(URL, tmp_path / "b")
    assert rows_of(tmp_path / "b") == rows_of(cache)


def test_a_pull_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept then verifies; the index comes last."""
    push(cache_of(tmp_path / "a", 1, 2, 3, 4), URL)
    fetch = ObjectStore.fetch
    done: list[str] = []

    def stopping(store: ObjectStore, name: str, file: Path) -> None:
        if len(done) == 2:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(name)
        fetch(store, name, file)

    monkeypatch.setattr(ObjectStore, "fetch", stopping)
    with pytest.raises(KeyboardInterrupt):
        pull(URL, tmp_path / "b")
    monkeypatch.undo()
    assert FeatureCache.open(tmp_path / "b").sets() == []
    assert verify(tmp_path / "b").bad == []
    assert not list((tmp_path / "b").rglob("*.tmp"))
    pull(URL, tmp_path / "b")
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")


def test_other_settings_are_refused_field_by_field(tmp_path: Path) -> None:
    """There before anything is sent, here before anything is received; nothing changes."""
    push(cache_of(tmp_path / "a", 1), URL)
    before = stored()
    other = cache_of(tmp_path / "other", 2, manifest=Manifest(replace(some_base(), precision="bfloat16")))
    with pytest.raises(ManifestMismatch, match=f"{URL} .*\n  precision: .*'float32'"):
        push(other, URL)
    with pytest.raises(ManifestMismatch, match=r"precision: .*'bfloat16'.*'float32'"):
        pull(URL, other)
    assert stored() == before
    assert len(FeatureCache.open(other)) == 1


def test_augmentation_is_added_and_never_taken_away(tmp_path: Path) -> None:
    """Neither there nor here; another seed is refused."""
    clean = cache_of(tmp_path / "clean", 1)
    push(clean, URL)
    augmented = cache_of(tmp_path / "augmented", 2, manifest=some_manifest(), passes=1)
    push(augmented, URL, overwrite=True)
    push(clean, URL, overwrite=True)
    assert Manifest.from_json(stored()["manifest.json"], URL) == some_manifest()
    pull(URL, clean)
    assert FeatureCache.open(clean).manifest == some_manifest()
    assert len(FeatureCache.open(clean)) == 3
    seeded = Manifest(some_base(), Augmentation("crop-flip-rotate", 1, 7))
    with pytest.raises(ManifestMismatch, match=r"seed: .*0.*7"):
        push(cache_of(tmp_path / "seeded", 3, manifest=seeded, passes=1), URL)


def test_two_that_begin_at_once_with_other_settings_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is looked at again before the indexes: one of them is refused then."""
    other = Manifest(replace(some_base(), precision="bfloat16"))
    send = ObjectStore.send

    def overtaken(store: ObjectStore, file: Path, name: str) -> None:
        store.write("manifest.json", other.as_json())
        send(store, file, name)

    monkeypatch.setattr(ObjectStore, "send", overtaken)
    with pytest.raises(ManifestMismatch, match="precision"):
        push(cache_of(tmp_path / "a", 1), URL)
    assert "sets/flowers.json" not in stored()


def test_an_index_that_differs_is_kept_unless_told(tmp_path: Path) -> None:
    """Both ways; one that says no more than what is there is no difference, wherever its images lie."""
    more, less = cache_of(tmp_path / "more", 1, 2), cache_of(tmp_path / "less", 1)
    push(more, URL)
    elsewhere = replace(FeatureCache.open(more).index(), data="/mnt", root="/mnt")
    FeatureCache.open(more).save_index(elsewhere)
    assert push(more, URL).refused == pull(URL, more).refused == ()
    assert FeatureCache.open(more).index() == elsewhere
    for result in (push(less, URL), pull(URL, less)):
        assert [refused["file"] for refused in result.refused] == ["sets/flowers.json"]
        assert "--overwrite" in result.refused[0]["reason"]
    assert len(FeatureCache.open(less).index().images) == 1
    assert pull(URL, less, overwrite=True).sets == ("flowers",)
    assert len(FeatureCache.open(less).index().images) == 2


def test_labels_given_by_hand_are_copied_and_never_lost(tmp_path: Path) -> None:
    """Later ones follow earlier ones; others there stay, unless told."""
    cache = cache_of(tmp_path / "a", 1, 2)
    index = FeatureCache.open(cache).index()
    journal = LabelJournal.load(cache, index.name)
    journal.record([index.images[0]], "bad", "", "fix", 0)
    assert push(cache, URL).labels == ("flowers",)
    journal.record([index.images[1]], "class", "new", "fix", 0)
    assert (push(cache, URL).labels, push(cache, URL).labels) == (("flowers",), ())
    assert pull(URL, tmp_path / "b").labels == ("flowers",)
    assert FeatureCache.open(tmp_path / "b").index() == FeatureCache.open(cache).index() != index
    LabelJournal.load(tmp_path / "b", index.name).undo({index.images[0].digest, index.images[1].digest})
    assert push(tmp_path / "b", URL).labels == ("flowers",)
    journal.record([index.images[1]], "none", "", "fix", 0)
    (refused,) = push(cache, URL).refused
    assert refused["file"] == "labels/flowers.jsonl" and "--overwrite" in refused["reason"]
    assert push(cache, URL, overwrite=True).refused == ()
    journal.undo({index.images[1].digest})
    push(cache, URL)
    with writing_labels(tmp_path / "b"):
        (refused,) = pull(URL, tmp_path / "b", overwrite=True).refused
    assert "is writing" in refused["reason"]
    damage("labels/flowers.jsonl", b"no verdict\n")
    (refused,) = pull(URL, tmp_path / "c").refused
    assert "line 1" in refused["reason"] and FeatureCache.open(tmp_path / "c").index() == index


def test_an_index_with_more_passes_differs(tmp_path: Path) -> None:
    """It is not replaced by the one of before, nor replaces that unasked."""
    path = cache_of(tmp_path / "a", 1, manifest=some_manifest())
    push(path, URL)
    cache_of(path, 1, manifest=some_manifest(), passes=1)
    assert pull(URL, path).refused == ()
    assert FeatureCache.open(path).index().passes == 1
    assert len(push(path, URL).refused) == 1
    assert push(path, URL, overwrite=True).sets == ("flowers",)


def test_a_damaged_index_is_refused_there_and_replaced_here(tmp_path: Path) -> None:
    """A sound one takes the place of one that nobody can use."""
    cache = cache_of(tmp_path / "a", 1)
    push(cache, URL)
    whole = stored()["sets/flowers.json"]
    damage("sets/flowers.json", whole.replace(b"train/1/1.jpg", b"train/1/2.jpg"))
    damage("sets/a:b.json", b"{}")
    reasons = [refused["reason"] for refused in pull(URL, tmp_path / "b").refused]
    assert len(reasons) == 2
    assert "was changed after it was written" in reasons[1]
    assert FeatureCache.open(tmp_path / "b").sets() == []
    assert push(cache, URL).sets == ("flowers",)
    assert stored()["sets/flowers.json"] == whole
    (cache / "sets" / "flowers.json").write_bytes(b"{}")
    assert [refused["file"] for refused in push(cache, URL).refused] == ["sets/flowers.json"]
    assert pull(URL, cache).sets == ("flowers",)


def test_a_shard_that_is_cut_here_is_received_anew(tmp_path: Path) -> None:
    """Its length tells."""
    cache = cache_of(tmp_path / "a", 1, 2)
    push(cache, URL)
    whole = rows_of(cache)
    shard = min((cache / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:100])
    assert pull(URL, cache).shards == 1
    assert rows_of(cache) == whole


def reduced(path: Path, basis: bytes = b"the arrays of a basis") -> Path:
    """A cache that says that its rows are reduced."""
    path.mkdir()
    Reduction("pool", save_basis(path, basis), 32, 8, "0" * 64).save(path)
    return cache_of(path)


def test_what_rows_were_reduced_by_is_copied_and_must_agree(tmp_path: Path) -> None:
    """Before the manifest; a cache of full features, or of another basis, is of another kind, both ways."""
    cache, whole = reduced(tmp_path / "a"), cache_of(tmp_path / "whole", 2)
    push(cache, URL)
    assert list(stored())[:3] == ["basis.safetensors", "reduction.json", "manifest.json"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "basis.safetensors").write_bytes(b"of a pull that was stopped")
    pull(URL, tmp_path / "b")
    known = FeatureCache.open(cache).reduction
    assert known is not None
    assert FeatureCache.open(tmp_path / "b").reduction == known
    replace(known, accuracy={"seeds": 1}).save(cache)  # measured later, which changes no row
    assert push(cache, URL).refused == ()
    for other in (whole, reduced(tmp_path / "other", b"another")):
        with pytest.raises(ManifestMismatch, match="not reduced alike"):
            push(other, URL)
        with pytest.raises(ManifestMismatch, match="not reduced alike"):
            pull(URL, other)


@pytest.mark.parametrize("name", layout.COPIED_FILES)
def test_what_rows_were_reduced_by_is_checked(tmp_path: Path, name: str) -> None:
    """Where it is damaged there, nothing is kept here."""
    push(reduced(tmp_path / "a"), URL)
    damage(name, flipped(stored()[name], 10))
    with pytest.raises(DamagedCache, match=f"{URL}/{name} is not "):
        pull(URL, tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["writer.lock"]


def test_pull_is_a_writer(tmp_path: Path) -> None:
    """Beside another it writes nothing; and it takes no folder that is something else."""
    push(cache_of(tmp_path / "a", 1), URL)
    with writing(tmp_path / "b"), pytest.raises(CacheBusy):
        pull(URL, tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="/c "):
        pull(URL, tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["thesis.txt"]


def test_a_damaged_manifest_there_is_refused(tmp_path: Path) -> None:
    """By both; nothing is made here."""
    cache = cache_of(tmp_path / "a", 1)
    push(cache, URL)
    damage("manifest.json", stored()["manifest.json"].replace(b"float32", b"float64"))
    with pytest.raises(DamagedCache, match=rf"{URL}/manifest\.json"):
        push(cache, URL)
    with pytest.raises(DamagedCache, match=rf"{URL}/manifest\.json"):
        pull(URL, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("features", "^features "),
        ("nosuch://a/b", "nosuch://a/b "),
        ("memory://nothing/here", "memory://nothing/here "),
        ("nosuch://me:secret@host/b", r"nosuch://me:\*\*\*@host/b "),
    ],
)
def test_what_is_no_place_is_one_sentence(tmp_path: Path, url: str, said: str) -> None:
    """With what was expected; passwords are not repeated."""
    with pytest.raises(CacheError, match=said):
        pull(url, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_without_the_package_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is typed."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # imported before
    with pytest.raises(CacheError, match=r"'\.\[s3\]'"):
        pull("s3://bucket/features", tmp_path / "b")


def test_the_commands_say_what_was_done(tmp_path: Path) -> None:
    """Exit status 1 where a file was refused, with its name."""
    cache = cache_of(tmp_path / "a", 1, 2)
    run = CliRunner().invoke
    done = run(main, ["cache", "push", str(cache), URL])
    assert done.exit_code == 0
    assert "2 shards copied" in done.stdout
    name = next(name for name in stored() if name.startswith("shards/"))
    damage(name, b"short")
    done = run(main, ["cache", "pull", URL, str(tmp_path / "b")])
    assert done.exit_code == 1
    assert f"refused {name}: it has 5 bytes there, its name says" in done.stdout
    found = json.loads(run(main, ["cache", "push", str(cache), URL, "--json"]).stdout)
    assert found.keys() == {"url", "cache", "shards", "present", "bytes", "sets", "labels", "refused", "seconds"}
    assert (found["url"], found["shards"], found["sets"], found["refused"]) == (URL, 1, [], [])
    done = run(main, ["cache", "pull", "memory://no", str(tmp_path / "c"), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["code"]) == (1, CacheError.code)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 on this machine; its address."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto with its server is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    played = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    played.start()
    host, port = played.get_host_and_port()
    yield f"http://{host}:{port}"
    played.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3://photographs on that server, empty, and the environment that leads there."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    there = s3fs.S3FileSystem(use_listings_cache=False)
    there.mkdir("photographs")
    yield "s3://photographs"
    there.rm("photographs", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def test_parts_of_two_machines_meet_in_a_bucket(
    run_extract: Extract, tmp_path: Path, bucket: str, shards_of_two: None
) -> None:
    """Each pushes its part from its own disk; pulled and finished, they are the rows of one process, none twice."""
    run_extract(cache=tmp_path / "whole", passes=1)
    url = f"{bucket}/flowers/features"
    for number in (1, 2):
        run_extract(cache=tmp_path / f"machine_{number}", passes=1, shard_of=f"{number}/2")
        assert push(tmp_path / f"machine_{number}", url).shards > 1
    received = pull(url, tmp_path / "features")
    assert (received.sets, received.refused) == ((), ())
    assert run_extract(passes=1, finish=True).computed == 0
    assert rows_of(tmp_path / "features") == rows_of(tmp_path / "whole")
    assert sum(len(shard) for shard in FeatureCache.open(tmp_path / "features").shards) == 36
    push(tmp_path / "features", url)
    pull(url, tmp_path / "trainer")
    assert rows_of(tmp_path / "trainer") == rows_of(tmp_path / "whole")
    assert FeatureCache.open(tmp_path / "trainer").index().passes == 1


def test_a_damaged_object_is_refused_by_name(tmp_path: Path, bucket: str) -> None:
    """A byte that is another, an upload cut short; the rest is there, and nothing of those is."""
    import s3fs

    cache = cache_of(tmp_path / "a", 1, 2, 3)
    push(cache, f"{bucket}/features")
    system = s3fs.S3FileSystem()
    first, second, _ = sorted(system.ls("photographs/features/shards"))
    system.pipe_file(first, flipped(system.cat_file(first), 5000))
    system.pipe_file(second, system.cat_file(second)[:5000])
    result = pull(f"{bucket}/features", tmp_path / "b")
    assert [f"photographs/features/{refused['file']}" for refused in result.refused] == [first, second]
    assert ["digest" in result.refused[0]["reason"], "its name says" in result.refused[1]["reason"]] == [True, True]
    assert (result.shards, len(FeatureCache.open(tmp_path / "b"))) == (1, 1)
    assert verify(tmp_path / "b").missing == {"flowers": 2}


def test_a_push_to_a_bucket_that_was_stopped_goes_on(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails in the middle: one sentence; run again, only the rest is sent."""
    import s3fs

    cache = cache_of(tmp_path / "a", *range(9))
    put, done = s3fs.S3FileSystem._put_file, []

    async def failing(system: Any, *given: Any, **options: Any) -> None:
        done.append(given)
        if len(done) > 4:
            raise OSError("Connection reset by peer")
        await put(system, *given, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", failing)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CacheError, match=r"s3://photographs/features/shards/.*Connection reset"):
        push(cache, f"{bucket}/features")
    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", put)
    s3fs.S3FileSystem.clear_instance_cache()
    again = push(cache, f"{bucket}/features")
    assert (again.present, again.shards, again.sets) == (4, 5, ("flowers",))


def test_stores_that_cannot_be_used_are_one_sentence(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such bucket, no credentials, nobody there; no bucket is made."""
    import s3fs

    cache = cache_of(tmp_path / "a", 1)
    with pytest.raises(CacheError, match=r"s3://nobody/x/manifest.json: .*bucket does not exist"):
        push(cache, "s3://nobody/x")
    with pytest.raises(CacheError, match="s3://nobody/x "):
        pull("s3://nobody/x", tmp_path / "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(CacheError, match=r"s3://photographs/x/manifest.json: .*credentials"):
        push(cache, "s3://photographs/x")


def test_the_command_reaches_a_bucket(tmp_path: Path, bucket: str) -> None:
    """In a process of its own, without a warning of the libraries."""
    cache_of(tmp_path / "a", 1)
    command = [sys.executable, "-W", "error", "cli.py", "cache", "push", str(tmp_path / "a"), f"{bucket}/features"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 shard copied")
    assert done.stderr.splitlines() == ["shards to send: 1, 0.0 MB; there: 0"]
