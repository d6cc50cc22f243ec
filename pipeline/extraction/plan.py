"""What an extraction will do: which rows a set needs and the cache lacks, and whether they may go into it."""

import logging
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex, index_path
from cache.keys import PackedKeys, digest_ends, unpack_keys
from cache.manifest import Augmentation, Base, Manifest
from cache.store import FeatureCache
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.spec import backbone_spec, preprocessing_of, row_shape
from pipeline.backbones.weights import tensor_digest
from pipeline.config import ExtractConfig
from pipeline.console import size
from pipeline.extraction.checks import check_places, keep_other_images, keep_other_roots, known_index
from pipeline.inputs import augment
from pipeline.inputs.decode import Decoding
from pipeline.inputs.grey import AUTO, decoding_for, measured_range, narrow_range
from pipeline.inputs.images import ImageSet
from pipeline.inputs.loader import DecodeTask
from pipeline.inputs.preprocessing import Preprocessing

logger = logging.getLogger("headgraft.extraction")


@dataclass(frozen=True)
class ExtractionContext:
    """How rows are computed, whichever: the settings, the backbone's tensors, and the device."""

    config: ExtractConfig
    tensors: dict[str, torch.Tensor]
    device: torch.device
    manifest: Manifest

    @property
    def preprocessing(self) -> Preprocessing:
        """How image files become the input."""
        return Preprocessing.of(self.manifest.base)


@dataclass(frozen=True)
class ExtractionPlan(ExtractionContext):
    """How rows are computed, of which files, and the cache as it was before; None where there was none."""

    images: ImageSet
    name: str
    cache: FeatureCache | None = None


Place = Callable[[ExtractConfig, str | None], tuple[torch.device, str]]  # and the precision of the rows there are


def make_plan(config: ExtractConfig, place: Place) -> ExtractionPlan:
    """What a run will do; `place` says where, and in which precision.

    Refused before images are listed: names, places, settings that the cache does not have, and weights that are not
    there or do not fit. Settings come before weights, which may have to be fetched.
    """
    name, cache = check_places(config)
    known = known_index(cache, name)
    keep_other_roots(config, known)
    stored = cache.manifest if cache else None
    device, precision = place(config, stored.base.precision if stored else None)
    decoding = decoding_for(config.grey_range, stored.base.decoding if stored else None)
    if stored:
        stored.merged_with(_manifest(config, stored.base.weights_digest, precision, decoding), config.cache)
    tensors = load_tensors(config.backbone, config.weights)
    manifest = _manifest(config, tensor_digest(tensors), precision, decoding)
    if stored:
        manifest = stored.merged_with(manifest, config.cache)
    images = ImageSet.scan(config.data, config.split_seed, config.skip_bad, hashed=_hashed(config, name))
    keep_other_images(config, known, images)
    if config.grey_range == AUTO and not stored:
        training = [images.root / image.path for image in images.images if image.split == "train"]
        manifest = replace(manifest, base=replace(manifest.base, decoding=measured_range(training).name))
    return ExtractionPlan(config, tensors, device, manifest, images, name, cache)


def _hashed(config: ExtractConfig, name: str) -> SetIndex | None:
    """What a part need not hash again, since it compares what it decodes: the set's listing, else its index."""
    for folder in (layout.LISTING_FOLDER, layout.SET_FOLDER) if config.part else ():
        try:
            return SetIndex.load(index_path(config.cache / folder, name))
        except CacheError:  # there is none, or it is damaged: all is hashed
            continue
    return None


def _manifest(config: ExtractConfig, weights_digest: str, precision: str, decoding: Decoding) -> Manifest:
    base = Base(
        backbone=config.backbone,
        layer=backbone_spec(config.backbone).layer,
        weights_digest=weights_digest,
        row_shape=row_shape(config.backbone, config.image_size),
        precision=precision,
        **asdict(preprocessing_of(config.backbone, config.image_size, decoding)),
    )
    recipe = Augmentation(augment.RECIPE, augment.RECIPE_VERSION, config.seed) if config.passes else None
    return Manifest(base, recipe)


@dataclass(frozen=True)
class Workload:
    """Rows that an extraction is to provide.

    Attributes:
        tasks: files to decode, each with its views that have no row.
        rows: that are needed.
        reused: rows of these that the cache has.
    """

    tasks: list[DecodeTask]
    rows: int
    reused: int

    @property
    def missing(self) -> int:
        """Rows to compute."""
        return self.rows - self.reused


def workload_of(plan: ExtractionPlan, cache: FeatureCache | None) -> Workload:
    """What the plan needs and `cache` lacks; None stands for an empty one."""
    keys = _part_of(plan.images.index(plan.name).packed_keys(plan.config.passes), plan.config.part)
    missing = cache.without(keys) if cache else keys
    views: dict[bytes, list[str]] = {}
    for digest, view in unpack_keys(missing):
        views.setdefault(digest, []).append(view)
    paths: dict[bytes, Path] = {}
    for image in plan.images.images:
        if (key := image.key) in views and key not in paths:  # of identical files, the first
            paths[key] = plan.images.root / image.path
    # By digest, which is a random order: each shard then holds all classes, and can be trained on by itself.
    tasks = [DecodeTask(paths[digest], digest, tuple(names)) for digest, names in sorted(views.items())]
    return Workload(tasks, len(keys), len(keys) - len(missing))


def _part_of(keys: PackedKeys, part: tuple[int, int] | None) -> PackedKeys:
    """Those of one part, by the contents of their images alone: whoever else computes what, and whatever is there."""
    if part is None:
        return keys
    number, parts = part
    return cast(PackedKeys, keys[digest_ends(keys) % parts == number - 1])


def count_views(tasks: Iterable[DecodeTask]) -> int:
    """Rows that they come to."""
    return sum(len(task.views) for task in tasks)


def announce(plan: ExtractionPlan, work: Workload, cache: FeatureCache | None) -> None:
    """Log what is there and what it will take; refuse what the disk cannot hold."""
    needed = work.missing * 2 * (cache.in_features if cache else math.prod(plan.manifest.base.row_shape))
    logger.info(
        f"{plan.name}: {len(plan.images.images)} images, {len(plan.images.classes)} classes, "
        f"{work.rows} rows: {work.reused} present, {work.missing} missing"
    )
    folder = next(path for path in (plan.config.cache, *plan.config.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    logger.info(f"{size(needed)} to write, {size(free)} free")
    if found := narrow_range([task.path for task in work.tasks], plan.preprocessing.policy):
        logger.warning(f"{found[0]}; use --grey-range {found[1]} or auto, with another --cache")
    if needed > free:
        raise CacheError(
            f"{folder} has {size(free)} free, {size(needed)} are needed: make room, or name another --cache"
        )
