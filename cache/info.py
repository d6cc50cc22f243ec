"""What a cache holds, in numbers and in words."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex
from cache.keys import unpack_keys
from cache.projections import projection_files
from cache.store import FeatureCache


@dataclass
class CacheInfo:
    """The fields of `cache info`'s JSON; `rows` counts those of each view, `sets` says what each index names."""

    cache: str
    format: int
    base: dict[str, Any]
    augmentation: dict[str, Any] | None
    rows: dict[str, int]
    shards: int
    bytes: int
    projections: int
    sets: list[dict[str, Any]]
    reduction: dict[str, Any] | None = None


def info(cache: FeatureCache | Path) -> CacheInfo:
    """What the manifest, the indexes and every shard's keys say; a bad shard raises DamagedCache."""
    cache = FeatureCache.open(cache) if isinstance(cache, Path) else cache
    rows = Counter(view for _, view in unpack_keys(cache.keys))
    manifest = cache.manifest
    return CacheInfo(
        cache=str(cache.path),
        format=manifest.base.format,
        base=asdict(manifest.base),
        augmentation=asdict(manifest.augmentation) if manifest.augmentation else None,
        rows={view: rows[view] for view in sorted(rows, key=layout.pass_number)},
        shards=len(cache.shards),
        bytes=cache.bytes,
        projections=len(projection_files(cache.path)),
        sets=[_set(cache, name, index) for name, index in cache.indexes().items()],
        reduction=asdict(cache.reduction) if cache.reduction else None,
    )


def _set(cache: FeatureCache, name: str, index: SetIndex | CacheError) -> dict[str, Any]:
    if isinstance(index, CacheError):
        return {"set": name, "error": str(index)}
    return {
        "set": name,
        "data": index.data,
        "images": len(index.images),
        "classes": len(index.classes),
        "splits": index.counts(),
        "passes": index.passes,
        "skipped": len(index.skipped),
        "missing": cache.lost(index),
    }


def in_words(found: CacheInfo) -> str:
    """The same for a person."""
    base, recipe = found.base, found.augmentation
    shape = " x ".join(map(str, base["row_shape"]))
    lines = [
        f"{found.cache}: format {found.format}, {sum(found.rows.values())} rows in {found.shards} shards, "
        f"{found.bytes / 1e6:.0f} MB",
        f"backbone       {base['backbone']}, {base['layer']}, rows of {shape}, computed in {base['precision']}",
        f"weights        {base['weights_digest']}",
        f"preprocessing  short side to {base['resize']}, centre crop of {base['input_size']}, "
        f"{base['interpolation']}, mean {base['mean']}, std {base['std']}, decoding {base['decoding']}",
        f"augmentation   {recipe['recipe']}, version {recipe['version']}, seed {recipe['seed']}"
        if recipe
        else "augmentation   none yet",
        *([f"reduced        {_reduced_in_words(found.reduction)}"] if found.reduction else []),
        *(f"rows           {count} of {_view_in_words(view)}" for view, count in found.rows.items()),
        *(f"set            {_set_in_words(entry)}" for entry in found.sets),
        f"projections    {found.projections} kept",
    ]
    return "\n".join(lines)


def _reduced_in_words(reduction: dict[str, Any]) -> str:
    to = f"to {reduction['out_features']} by {reduction['basis']}"
    accuracy = reduction["accuracy"]
    if "low" not in accuracy:
        return f"{to}; what that costs was not measured"
    between = f", 95 % between {100 * accuracy['low']:.2f} and {100 * accuracy['high']:.2f}"
    return f"{to}; that costs {100 * accuracy['lost']:.2f} points of validation accuracy{between}"


def _view_in_words(view: str) -> str:
    return "the clean view" if view == layout.CLEAN_VIEW else f"augmented pass {layout.pass_number(view)}"


def _set_in_words(entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"{entry['set']}: {entry['error']}"
    splits = ", ".join(f"{count} {split}" for split, count in entry["splits"].items())
    lost = f", {entry['missing']} rows lost: run extract again" if entry["missing"] else ""
    skipped = f", {entry['skipped']} skipped" if entry["skipped"] else ""
    return (
        f"{entry['set']}: {entry['images']} images ({splits}) of {entry['classes']} classes, "
        f"{entry['passes']} augmented passes{skipped}{lost}, from {entry['data']}"
    )
