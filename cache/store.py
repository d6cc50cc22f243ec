"""FeatureCache: which rows exist, which are missing, and reading them; every shard is checked before it is read."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache import layout
from cache.errors import CacheError, DamagedCache, ManifestMismatch, MissingRows, UnknownSet, counted
from cache.files import is_temporary
from cache.index import SetIndex, index_path
from cache.keys import KeyTable, PackedKeys, RowKey, keys_of, pack_digests, pack_keys
from cache.labels import LabelJournal
from cache.manifest import Manifest
from cache.reduction import Reduction
from cache.shard import Float16Array, Part, Positions, Shard, ShardHeader

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureCache:
    """A cache folder opened for reading: `manifest` says what its numbers are made from.

    `reduction` says by what its rows were reduced, None where they are whole. Shards and indexes are read once, when
    they are needed first; `reopened` sees what was written since.
    """

    path: Path
    manifest: Manifest
    reduction: Reduction | None = None

    @classmethod
    def open(cls, path: str | Path) -> "FeatureCache":
        """Open an existing cache; CacheError if there is none at `path`."""
        cache = cls.find(Path(path))
        if cache is None:
            found = "has no manifest" if Path(path).exists() else "does not exist"
            raise CacheError(f"{path} {found}, expected a feature cache: make it with extract, or name another folder")
        return cache

    @classmethod
    def find(cls, path: Path) -> "FeatureCache | None":
        """The cache at `path`, None where there is none yet; DamagedCache where it is not what was written."""
        file = path / layout.MANIFEST_FILE
        return cls._with(path, Manifest.load(file)) if file.is_file() else None

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> "FeatureCache":
        """Open the cache at `path` for rows of `manifest`, made if it is not there; other settings are refused."""
        file = path / layout.MANIFEST_FILE
        stored = Manifest.load(file) if file.is_file() else None
        merged = stored.merged_with(manifest, path) if stored else manifest
        check_place(path)
        path.mkdir(parents=True, exist_ok=True)
        if merged != stored:
            merged.save(file)  # before the folders: at no moment is there something that is neither empty nor a cache
        for folder in layout.FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        return cls._with(path, merged)

    @classmethod
    def _with(cls, path: Path, manifest: Manifest) -> "FeatureCache":
        reduction = Reduction.load(path)
        if reduction and reduction.in_features != math.prod(manifest.base.row_shape):
            raise DamagedCache(f"{path} was reduced from rows of another length than its manifest's: reduce it again")
        return cls(path, manifest, reduction)

    def reopened(self) -> "FeatureCache":
        """The same cache with the shards and indexes that it has now; manifest and basis are not read again."""
        return replace(self)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row as it is served: of the layer, such as (512, 7, 7), or of what it was reduced to, (512,)."""
        return self.reduction.row_shape if self.reduction else self.manifest.base.row_shape

    @property
    def basis_digest(self) -> str:
        """What its shards name as their basis; "" where rows are whole."""
        return self.reduction.digest if self.reduction else ""

    @property
    def in_features(self) -> int:
        """D, the length of one row."""
        return int(np.prod(self.row_shape))

    def header(self, provenance: Mapping[str, Any]) -> ShardHeader:
        """What its shards of rows that `provenance` computed say."""
        manifest = self.manifest
        return ShardHeader(manifest.base.digest, self.row_shape, manifest.recipes[-1], self.basis_digest, provenance)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(path.stat().st_size for path in self._shard_paths())

    def _shard_paths(self) -> list[Path]:
        return sorted((self.path / layout.SHARD_FOLDER).glob("[!.]*.h5"))

    @cached_property
    def examined(self) -> tuple[tuple[Shard, ...], dict[Path, CacheError]]:
        """The sound shards, and the others with what is wrong with each: the one place where shards are opened."""
        with ThreadPoolExecutor(4) as pool:
            opening = {path: pool.submit(Shard.open, path) for path in self._shard_paths()}
        sound, bad, recipes = [], dict[Path, CacheError](), self.manifest.recipes
        named = {one.result().header.augmentation_digest for one in opening.values() if not one.exception()}
        if not named <= set(recipes):
            # A writer may have added the recipe of its augmented rows since this was opened, always before the rows.
            recipes = Manifest.load(self.path / layout.MANIFEST_FILE).recipes
        for path, opened in opening.items():
            try:
                self._refuse_foreign(opened.result(), recipes)
            except CacheError as error:
                bad[path] = error
            else:
                sound.append(opened.result())
        return tuple(sound), bad

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Every shard, checked; DamagedCache, or ManifestMismatch, names the ones that are not what was written."""
        sound, bad = self.examined
        if bad:
            damaged = any(isinstance(error, DamagedCache) for error in bad.values())
            raise (DamagedCache if damaged else ManifestMismatch)(
                "\n".join(map(str, bad.values()))
                + f"\nNothing was read from it. Quarantine it with `headgraft cache repair {self.path}`, "
                "then run extract again: only its rows are recomputed."
            )
        return sound

    def _refuse_foreign(self, shard: Shard, recipes: Sequence[str]) -> None:
        """ManifestMismatch or DamagedCache for a sound shard that is none of this cache."""
        header = shard.header
        if header.base_digest != self.manifest.base.digest or header.augmentation_digest not in recipes:
            raise ManifestMismatch(f"{shard.path} was made with other settings than {self.path}")
        if header.basis == self.basis_digest and header.row_shape != self.row_shape:
            raise DamagedCache(f"{shard.path} holds rows of {header.row_shape}, expected {self.row_shape}")

    def _served(self, shards: Sequence[Shard]) -> KeyTable:
        """Where each key is served from; a spare copy of a row is never looked at, nor one of another basis."""
        parts = enumerate(shards)
        return KeyTable([(n, shard.packed_keys) for n, shard in parts if shard.header.basis == self.basis_digest])

    @cached_property
    def _places(self) -> KeyTable:
        return self._served(self.shards)

    def lost(self, index: SetIndex) -> int:
        """Rows that the set had when it was extracted and that no sound shard has."""
        shards, _ = self._served(self.examined[0]).find(index.packed_keys(index.passes))
        return int((shards < 0).sum())

    def __len__(self) -> int:
        """Rows that can be served."""
        return len(self._places)

    @property
    def keys(self) -> PackedKeys:
        """The key of every row that can be served, sorted."""
        return self._places.keys

    def without(self, keys: PackedKeys) -> PackedKeys:
        """Those of `keys` that have no row, in their order."""
        return keys[self._places.find(keys)[0] < 0]

    def parts(self, keys: PackedKeys) -> list[Part]:
        """Where `keys` are, shard by shard. MissingRows if one is nowhere.

        Rows in the order of the file, so that a cold disk is read forwards.
        """
        shards, rows = self._places.find(keys)
        if absent := int((shards < 0).sum()):
            raise MissingRows(f"{absent} of {len(keys)} rows are not in {self.path}: extract the same data again")
        order = np.lexsort((rows, shards))
        cuts = np.flatnonzero(np.diff(shards[order])) + 1
        parts = np.split(order, cuts) if len(keys) else []
        return [Part(self.shards[shards[p[0]]], p, rows[p]) for p in parts]

    def blocks(self, keys: Sequence[RowKey], size: int = 1024) -> Iterator[tuple[Positions, Float16Array]]:
        """Rows of `keys` shard by shard: (positions in `keys`, rows (n, D) float16), n at most `size`."""
        for part in self.parts(pack_keys(keys)):
            yield from part.blocks(part.shard.rows, size)

    def read(self, keys: Sequence[RowKey]) -> Float16Array:
        """Rows of `keys` in their order, (N, D) float16."""
        rows = np.empty((len(keys), self.in_features), dtype=np.float16)
        for positions, block in self.blocks(keys):
            rows[positions] = block
        return rows

    def provenance(self, keys: Iterable[RowKey]) -> list[Mapping[str, Any]]:
        """What computed the rows of `keys`: device, processor capability, versions, code path, place of the weights."""
        shards, _ = self._places.find(pack_keys(keys))
        return [self.shards[number].header.provenance for number in np.unique(shards[shards >= 0])]

    def sets(self) -> list[str]:
        """Names of the image sets."""
        return sorted(file.stem for file in (self.path / layout.SET_FOLDER).glob("[!.]*.json"))

    def index(self, name: str | None = None) -> SetIndex:
        """Set `name`, or the only set, as it is now: with the labels given by hand. UnknownSet lists the choice."""
        name = self.set_name(name)
        if name not in self._labelled:
            self._labelled[name] = LabelJournal.load(self.path, name).applied(self.extracted(name))
        return self._labelled[name]

    def extracted(self, name: str | None = None) -> SetIndex:
        """The same as it was extracted, without labels given by hand: what its files are compared with."""
        name = self.set_name(name)
        if name not in self._indexes:
            self._indexes[name] = SetIndex.load(index_path(self.path / layout.SET_FOLDER, name))
        return self._indexes[name]

    def set_name(self, name: str | None) -> str:
        """`name`, or that of the only set; UnknownSet lists the choice."""
        names = self.sets()
        if name is None and len(names) == 1:
            name = names[0]
        if name is None or name not in names:
            found = ", ".join(names) or "none yet: run extract"
            asked = "more than one set" if name is None else f"no set {name!r}"
            raise UnknownSet(f"{self.path} has {asked if names else 'no set'}; name one with --set (sets: {found})")
        return name

    @cached_property
    def _indexes(self) -> dict[str, SetIndex]:
        """Those read so far: of a million images, one takes seconds to read."""
        return {}

    @cached_property
    def _labelled(self) -> dict[str, SetIndex]:
        return {}

    def indexes(self) -> dict[str, SetIndex | CacheError]:
        """Every set as it was extracted, or why it cannot be used."""
        found: dict[str, SetIndex | CacheError] = {}
        for name in self.sets():
            try:
                found[name] = self.extracted(name)
            except CacheError as error:
                found[name] = error
        return found

    def save_index(self, index: SetIndex) -> None:
        """Write or replace the index of one set."""
        self._indexes.pop(index.name, None)
        self._labelled.pop(index.name, None)
        index.save(self.path / layout.SET_FOLDER)

    def complete_passes(self, index: SetIndex) -> int:
        """The largest K for which all passes 1..K of the set's training images have rows."""
        train = pack_digests(image.digest for image in index.split("train"))
        passes = 0
        while len(train) and (self._places.find(keys_of(train, layout.pass_view(passes + 1)))[0] >= 0).all():
            passes += 1
        return passes

    def passes(self, index: SetIndex, asked: int | None) -> int:
        """As many augmented passes as were asked for; else all there are, or were: one that is lost is an error."""
        known = index.passes
        if asked is None or asked > known:
            known = max(known, self.complete_passes(index))
        if asked is not None and asked > known:
            raise MissingRows(
                f"set {index.name!r} of {self.path} has {counted(known, 'augmented pass')}, {asked} asked "
                f"for: run extract with --passes {asked}, or ask for --passes {known}"
            )
        return known if asked is None else asked


def check_place(path: Path) -> None:
    """CacheError where `path` is neither a cache, nor one that a writer is beginning, nor empty, nor absent."""
    if not path.exists():
        return
    # By the list of files: clients of shared folders remember that a name was not there. Twice: the manifest may land
    # while they are listed, and what is written after it never lies there without it.
    for _ in range(2 if path.is_dir() else 0):
        files = list(path.iterdir())
        begun = all(layout.precedes_manifest(file.name) or is_temporary(file) for file in files)
        if begun or path / layout.MANIFEST_FILE in files:
            return
    raise CacheError(f"{path} is not a feature cache and not empty: name another folder")
