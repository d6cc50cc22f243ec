"""The manifest: its digest covers every field, and differences are refused field by field."""

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import some_base, some_manifest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import CacheError, DamagedCache, ManifestMismatch
from cache.layout import MANIFEST_FILE
from cache.lock import writing
from cache.manifest import Augmentation, Base, Manifest, canonical_json
from cache.store import FeatureCache, check_place

OTHER: dict[type, st.SearchStrategy[object]] = {
    str: st.text(min_size=1, max_size=9),
    int: st.integers(0, 9999),
    tuple: st.lists(st.integers(1, 999), min_size=1, max_size=3).map(tuple),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Base)])
@given(draw=st.data())
def test_changing_any_base_field_changes_the_digest(name: str, draw: st.DataObject) -> None:
    """No field of the base part is left out of its digest."""
    base = some_base()
    known = getattr(base, name)
    value = draw.draw(OTHER[type(known)].filter(lambda value: value != known))
    assert replace(base, **{name: value}).digest != base.digest  # type: ignore[arg-type]


@given(recipe=st.text(max_size=9), version=st.integers(0, 99), seed=st.integers(-99, 99))
def test_changing_any_augmentation_field_changes_the_digest(recipe: str, version: int, seed: int) -> None:
    """Recipe, version and seed each decide the digest of augmented passes."""
    known = Augmentation("crop-flip-rotate", 1, 0)
    asked = Augmentation(recipe, version, seed)
    assert (asked.digest == known.digest) == (asked == known)


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    """Canonical JSON has one spelling, tuples written as lists."""
    assert canonical_json({"b": (1, 2), "a": "é"}) == canonical_json({"a": "é", "b": [1, 2]})


def test_a_manifest_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """With and without an augmentation part."""
    for manifest in (some_manifest(), Manifest(some_base())):
        manifest.save(tmp_path / "manifest.json")
        assert Manifest.load(tmp_path / "manifest.json") == manifest


def test_a_mismatch_lists_every_field_with_both_values(tmp_path: Path) -> None:
    """The message names each field that differs, what the cache has and what was asked for, and no other field."""
    FeatureCache.create(tmp_path / "features", some_manifest())
    asked = Manifest(replace(some_base(), input_size=64, precision="bfloat16"), Augmentation("crop-flip-rotate", 1, 5))
    with pytest.raises(ManifestMismatch) as caught:
        FeatureCache.create(tmp_path / "features", asked)
    message = str(caught.value)
    assert "input_size: the cache has 32, asked for 64" in message
    assert "precision: the cache has 'float32', asked for 'bfloat16'" in message
    assert "seed: the cache has 0, asked for 5" in message
    assert "backbone" not in message
    assert "--cache" in message


def test_augmentation_joins_a_cache_of_clean_rows(tmp_path: Path) -> None:
    """The first augmented pass settles recipe and seed; asking for none later changes nothing."""
    FeatureCache.create(tmp_path / "features", Manifest(some_base()))
    FeatureCache.create(tmp_path / "features", some_manifest())
    FeatureCache.create(tmp_path / "features", Manifest(some_base()))
    assert FeatureCache.open(tmp_path / "features").manifest == some_manifest()


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    """A value changed by hand no longer has the digest beside it."""
    path = tmp_path / "manifest.json"
    some_manifest().save(path)
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    with pytest.raises(DamagedCache, match=r"manifest\.json"):
        Manifest.load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"digest": "x"}', '{"digest": "x", "base": []}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    """Anything but a manifest's JSON is one clear error."""
    path = tmp_path / "manifest.json"
    path.write_text(content)
    with pytest.raises(DamagedCache, match=r"manifest\.json"):
        Manifest.load(path)


def test_another_format_version_is_refused_by_name(tmp_path: Path) -> None:
    """A cache of a later format is not called damaged: the message names both versions."""
    path = tmp_path / "manifest.json"
    some_manifest().save(path)
    stored = json.loads(path.read_text())
    stored["base"]["format"] = 2
    path.write_text(json.dumps(stored))
    with pytest.raises(CacheError, match=r"\b2\b.*\b1\b") as caught:
        Manifest.load(path)
    assert not isinstance(caught.value, DamagedCache)


def test_a_cache_is_not_made_in_a_folder_of_other_things(tmp_path: Path) -> None:
    """A folder with files in it, or a file, is refused and left as it was."""
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(CacheError, match="not a feature cache"):
            FeatureCache.create(place, some_manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_cache_that_another_machine_just_made_is_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a client remembers that there was no manifest, and where it landed while the files were listed."""
    FeatureCache.create(tmp_path / "features", some_manifest())
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    check_place(tmp_path / "features")
    files = list((tmp_path / "features").iterdir())
    lists = [[file for file in files if file.name != MANIFEST_FILE], files]
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(lists.pop(0)))
    check_place(tmp_path / "features")
    assert not lists


def test_a_cache_being_made_is_a_cache_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process that looks while the first makes it, or after that one was killed, is not turned away."""
    place = tmp_path / "features"
    seen: list[list[str]] = []
    for module, name in ((os, "mkdir"), (os, "fsync"), (os, "replace"), (Path, "write_text")):
        step = getattr(module, name)

        def watched(*given: object, step: Callable[..., object] = step, **named: object) -> object:
            check_place(place)
            result = step(*given, **named)
            seen.append(sorted(file.name for file in place.iterdir()))
            check_place(place)
            return result

        monkeypatch.setattr(module, name, watched)
    with writing(place):
        FeatureCache.create(place, some_manifest())
    assert len(seen) >= 5
    assert any(name.endswith(".tmp") for names in seen for name in names)
    assert len(FeatureCache.open(place)) == 0


def test_opening_what_is_no_cache_says_what_is_there(tmp_path: Path) -> None:
    """Opening never makes a cache."""
    with pytest.raises(CacheError, match="none"):
        FeatureCache.open(tmp_path / "none")
    with pytest.raises(CacheError, match=tmp_path.name):
        FeatureCache.open(tmp_path)
