"""What a cache holds, in numbers and in words."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache import layout
from cache.errors import CacheError, counted
from cache.keys import unpack_keys
from cache.labels import LabelJournal
from cache.projections import projection_files
from cache.result import Result
from cache.store import FeatureCache


@dataclass
class CacheInfo(Result):
    """What a cache holds.

    Attributes:
        cache: folder of the cache.
        format: version of the format.
        base: settings that decide the numbers of every row.
        weights: where the weights came from, a name or a file, as the shards say.
        augmentation: recipe of the augmented passes; None without any.
        rows: `{view: count}`.
        shards: files of rows.
        bytes: size of the shards.
        projections: number of projections that are kept.
        sets: `[{set, data, images, classes, splits, passes, skipped, missing, labels}]`, `labels` given by hand as of
            `cache labels`, or `{set, error}` of a bad index.
        reduction: of a reduced cache, the fields of its `reduction.json`; else None.
        duplicates: with `--duplicates`, `[{a, b, cosine, identical, labels, splits}]`, an unlabelled image having the
            label "" and the split `unlabelled`; else None.
        near_duplicates: with `--duplicates`, `{threshold, false_alarm_rate, expected_false, detection_rate}`: minimum
            cosine, null where only identical files were looked for; probability that a pair of images of different
            classes reaches it; such pairs expected among all pairs of the set; fraction of augmented views that reach
            it with their own image, null without augmented passes. Else None.
    """

    cache: str
    format: int
    base: dict[str, Any]
    weights: list[str]
    augmentation: dict[str, Any] | None
    rows: dict[str, int]
    shards: int
    bytes: int
    projections: int
    sets: list[dict[str, Any]]
    reduction: dict[str, Any] | None = None
    duplicates: list[dict[str, Any]] | None = None
    near_duplicates: dict[str, Any] | None = None

    def in_words(self) -> str:
        """A line for each thing that it holds."""
        base, recipe = self.base, self.augmentation
        shape = " x ".join(map(str, base["row_shape"]))
        lines = [
            f"{self.cache}: format {self.format}, {counted(sum(self.rows.values()), 'row')} in "
            f"{counted(self.shards, 'shard')}, {self.bytes / 1e6:.0f} MB",
            f"backbone       {base['backbone']}, {base['layer']}, rows of {shape}, computed in {base['precision']}",
            f"weights        {', '.join(self.weights)}, digest {base['weights_digest']}",
            f"preprocessing  short side to {base['resize']}, centre crop of {base['input_size']}, "
            f"{base['interpolation']}, mean {base['mean']}, std {base['std']}, decoding {base['decoding']}",
            f"augmentation   {recipe['recipe']}, version {recipe['version']}, seed {recipe['seed']}"
            if recipe
            else "augmentation   none yet",
            *([f"reduced        {_reduced_in_words(self.reduction)}"] if self.reduction else []),
            *(f"rows           {count} of {_view_in_words(view)}" for view, count in self.rows.items()),
            *(f"set            {_set_in_words(entry)}" for entry in self.sets),
            f"projections    {self.projections} kept",
        ]
        return "\n".join(lines)


def info(cache: FeatureCache | Path) -> CacheInfo:
    """What the manifest, the indexes and every shard's keys say; a bad shard raises DamagedCache."""
    cache = FeatureCache.open(cache) if isinstance(cache, Path) else cache
    rows = Counter(view for _, view in unpack_keys(cache.keys))
    manifest = cache.manifest
    return CacheInfo(
        cache=str(cache.path),
        format=manifest.base.format,
        base=asdict(manifest.base),
        weights=sorted({str(shard.header.provenance.get("weights") or "named") for shard in cache.shards}),
        augmentation=asdict(manifest.augmentation) if manifest.augmentation else None,
        rows={view: rows[view] for view in sorted(rows, key=layout.pass_number)},
        shards=len(cache.shards),
        bytes=cache.bytes,
        projections=len(projection_files(cache.path)),
        sets=[_set(cache, name) for name in cache.sets()],
        reduction=asdict(cache.reduction) if cache.reduction else None,
    )


def _set(cache: FeatureCache, name: str) -> dict[str, Any]:
    try:
        index, journal = cache.index(name), LabelJournal.load(cache.path, name)
    except CacheError as error:
        return {"set": name, "error": str(error)}
    return {
        "set": name,
        "data": index.data,
        "images": len(index.images),
        "classes": len(index.classes),
        "splits": index.counts(),
        "passes": index.passes,
        "skipped": len(index.skipped),
        "missing": cache.lost(cache.extracted(name)),
        "labels": dict(journal.counts(cache.extracted(name))),
    }


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
    lost = f", {counted(entry['missing'], 'row')} lost: run extract again" if entry["missing"] else ""
    skipped = f", {entry['skipped']} skipped" if entry["skipped"] else ""
    labels = f", {counted(sum(entry['labels'].values()), 'label')} given by hand" if entry["labels"] else ""
    return (
        f"{entry['set']}: {counted(entry['images'], 'image')} ({splits}) of {counted(entry['classes'], 'class')}, "
        f"{counted(entry['passes'], 'augmented pass')}{skipped}{labels}{lost}, from {entry['data']}"
    )
