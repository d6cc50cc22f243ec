"""What an extraction will do: which rows a set needs and the cache lacks, and whether they may go into it."""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex, index_path
from cache.keys import PackedKeys, digest_ends, unpack_keys
from cache.manifest import Augmentation, Base, Manifest
from cache.reduction import Reduction
from cache.store import FeatureCache
from pipeline.backbones import backbone
from pipeline.backbones.weights import tensor_digest
from pipeline.config import ExtractConfig
from pipeline.console import Say, size
from pipeline.extraction.checks import (
    check_places,
    keep_other_images,
    keep_other_roots,
    known_index,
    refuse_no_windows,
    refuse_reduced,
    stored_manifest,
)
from pipeline.inputs import augment
from pipeline.inputs.clean import INTERPOLATION
from pipeline.inputs.decode import Decoding
from pipeline.inputs.grey import AUTO, decoding_for, measured_range, narrow_range
from pipeline.inputs.images import ImageSet
from pipeline.inputs.loader import Work
from pipeline.inputs.remarks import Remarks


@dataclass
class ExtractResult:
    """What `extract` did; the fields of its JSON. Seconds are wall-clock, those of `phases` overlap.

    `bound` is the phase that the others waited for: "decode", "compute" or "write"; "" where nothing was computed.
    `remarks` on files that were decoded all the same: by kind, how many and the first.
    `unread` counts files of other kinds by extension, `outside` image files in no class folder by folder.
    """

    set: str
    images: int
    rows: int
    computed: int
    reused: int
    seconds: float = 0.0
    warmup_seconds: float = 0.0
    images_per_second: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "compute": 0.0, "write": 0.0})
    bound: str = ""
    skipped: list[dict[str, str]] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)
    cache: str = ""
    bytes: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Making:
    """How rows are made, whichever: the settings, the backbone's tensors, and where it computes."""

    config: ExtractConfig
    tensors: dict[str, torch.Tensor]
    device: torch.device
    manifest: Manifest

    @property
    def decoding(self) -> Decoding:
        """How image files become pixels."""
        return Decoding.parse(self.manifest.base.decoding)


@dataclass(frozen=True)
class Plan(Making):
    """What a run will do: how it makes rows, and of which files."""

    images: ImageSet
    name: str


Place = Callable[[ExtractConfig, str | None], tuple[torch.device, str]]  # and the precision of the rows there are


def make_plan(config: ExtractConfig, say: Say, place: Place) -> Plan:
    """What a run will do; `place` says where, and in which precision. What cannot be is refused before hashing."""
    name = check_places(config)
    known = known_index(config, name)
    keep_other_roots(config, known)
    stored = stored_manifest(config.cache)
    device, precision = place(config, stored.base.precision if stored else None)
    if config.dense:
        refuse_reduced(config)
        refuse_no_windows(config, backbone.row_shape(config.backbone, config.image_size))
    decoding = decoding_for(config.grey_range, stored.base.decoding if stored else None)
    if stored:  # whatever the weights are: they may have to be fetched first
        stored.merged_with(_manifest(config, stored.base.weights_digest, precision, decoding), config.cache)
    tensors = backbone.load_tensors(config.backbone, config.weights, say)
    manifest = _manifest(config, tensor_digest(tensors), precision, decoding)
    if stored:
        manifest = stored.merged_with(manifest, config.cache)
    images = ImageSet.scan(config.data, config.split_seed, config.skip_bad, hashed=_hashed(config, name), say=say)
    keep_other_images(config, known, images, say)
    if config.grey_range == AUTO and not stored:
        manifest = _with_measured_range(manifest, images)
    return Plan(config, tensors, device, manifest, images, name)


def _hashed(config: ExtractConfig, name: str) -> SetIndex | None:
    """What a part need not hash again, since it compares what it decodes: the set's listing, else its index."""
    for folder in (layout.LISTING_FOLDER, layout.SET_FOLDER) if config.part else ():
        try:
            return SetIndex.load(index_path(config.cache / folder, name))
        except CacheError:  # there is none, or it is damaged: all is hashed
            continue
    return None


def _with_measured_range(manifest: Manifest, images: ImageSet) -> Manifest:
    """For `--grey-range auto` and the first rows of a cache: the range that the training images use."""
    training = [images.root / image.path for image in images.images if image.split == "train"]
    return replace(manifest, base=replace(manifest.base, decoding=measured_range(training).name))


def _manifest(config: ExtractConfig, weights_digest: str, precision: str, decoding: Decoding) -> Manifest:
    base = Base(
        backbone=config.backbone,
        layer=backbone.LAYER,
        weights_digest=weights_digest,
        row_shape=backbone.row_shape(config.backbone, config.image_size),
        input_size=config.image_size,
        resize=augment.resize_for(config.image_size),
        interpolation=INTERPOLATION,
        mean=backbone.MEAN,
        std=backbone.STD,
        decoding=decoding.name,
        precision=precision,
    )
    recipe = Augmentation(augment.RECIPE, augment.RECIPE_VERSION, config.seed) if config.passes else None
    return Manifest(base, recipe)


def missing_work(plan: Plan, cache: FeatureCache | None) -> tuple[list[Work], ExtractResult]:
    """Files to decode, and the counts before the run; `cache` None stands for an empty one."""
    index = plan.images.index(plan.name)
    keys = _part_of(index.packed_keys(plan.config.passes, plan.config.dense), plan.config.part)
    missing = cache.without(keys) if cache else keys
    views: dict[bytes, list[str]] = {}
    for digest, view in unpack_keys(missing):
        views.setdefault(digest, []).append(view)
    paths: dict[bytes, Path] = {}
    for image in index.images:
        if (key := image.key) in views and key not in paths:  # of identical files, the first
            paths[key] = plan.images.root / image.path
    # By digest, which is a random order: each shard then holds all classes, and can be trained on by itself.
    work = [Work(paths[digest], digest, tuple(names)) for digest, names in sorted(views.items())]
    reused = len(keys) - len(missing)
    return work, ExtractResult(
        plan.name,
        len(index.images),
        len(keys),
        0,
        reused,
        cache=str(plan.config.cache),
        unread=plan.images.unread,
        outside=plan.images.outside,
    )


def _part_of(keys: PackedKeys, part: tuple[int, int] | None) -> PackedKeys:
    """Those of one part, by the contents of their images alone: whoever else computes what, and whatever is there."""
    if part is None:
        return keys
    number, parts = part
    chosen: PackedKeys = keys[digest_ends(keys) % parts == number - 1]
    return chosen


@dataclass(frozen=True)
class Share:
    """Views of one size, in pixels, which one network computes: the clean and augmented ones, or the dense ones."""

    work: list[Work]
    size: int
    row_shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Views."""
        return sum(len(item.views) for item in self.work)


def shares_of(making: Making, work: list[Work]) -> list[Share]:
    """`work` by the size of its views, where there is any."""
    base, dense = making.manifest.base, making.config.dense
    plain = Share(_only(work, dense=False), base.input_size, base.row_shape)
    shares = [plain]
    if dense:
        shares.append(Share(_only(work, dense=True), dense, backbone.map_shape(base.backbone, dense)))
    return [share for share in shares if share.work]


def _only(work: list[Work], dense: bool) -> list[Work]:
    """Files with those views that are dense, or are not."""
    parts = [replace(item, views=tuple(v for v in item.views if layout.is_dense(v) == dense)) for item in work]
    return [item for item in parts if item.views]


def announce(plan: Plan, result: ExtractResult, work: list[Work], say: Say) -> None:
    """Say what is there and what it will take; refuse what the disk cannot hold."""
    shares = shares_of(plan, work)
    missing = sum(share.rows for share in shares)
    reduction = Reduction.load(plan.config.cache)
    needed = sum(
        share.rows * 2 * (reduction.out_features if reduction else math.prod(share.row_shape)) for share in shares
    )
    say(
        f"{plan.name}: {result.images} images, {len(plan.images.classes)} classes, "
        f"{result.rows} rows: {result.reused} present, {missing} missing"
    )
    folder = next(path for path in (plan.config.cache, *plan.config.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    say(f"{size(needed)} to write, {size(free)} free")
    if found := narrow_range([item.path for item in work], plan.decoding):
        say(f"{found[0]}; use --grey-range {found[1]} or auto, with another --cache")
    if needed > free:
        raise CacheError(
            f"{folder} has {size(free)} free, {size(needed)} are needed: make room, or name another --cache"
        )
