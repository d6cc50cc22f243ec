"""What an extraction will do: which rows a set needs and the cache lacks, and whether they may go into it."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex, index_path
from cache.keys import PackedKeys, digest_ends, unpack_keys
from cache.labels import LabelJournal
from cache.lock import check_free, check_writable
from cache.manifest import Augmentation, Base, Manifest
from cache.store import FeatureCache, check_place
from pipeline.backbones.catalog import backbone_spec, preprocessing_of
from pipeline.backbones.fastest import bears_bfloat16, golden_at
from pipeline.backbones.golden import differ, known
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.trunk import layer_of
from pipeline.backbones.weights import tensor_digest
from pipeline.config.extract import ExtractConfig
from pipeline.console import counted, size
from pipeline.errors import ConfigError, ImageSetError, PipelineError, WeightsError
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


def make_plan(config: ExtractConfig, place: Callable[[str | None], tuple[torch.device, str]]) -> ExtractionPlan:
    """What a run will do; `place` gives device and precision, given the precision of the rows there are.

    Refused before images are listed: names, places, settings that the cache does not have, and weights that are not
    there or do not fit. Settings come before weights, which may have to be fetched.
    """
    name, cache = _check_places(config)
    known = _known_set(config, cache, name)
    stored = None if cache is None else cache.manifest
    device, precision = place(stored.base.precision if stored else None)
    decoding = decoding_for(config.grey_range, stored.base.decoding if stored else None)
    manifest = _manifest(config, stored.base.weights_digest if stored else "", precision, decoding)
    if stored:
        stored.merged_with(manifest, config.cache)
    base = manifest.base
    tensors = load_tensors(base.backbone, config.weights, base.input_size)
    digest = tensor_digest(tensors)
    _refuse_other_network(base, tensors, digest)
    chosen = not stored and config.precision == "auto" and precision == "bfloat16"
    if chosen and not bears_bfloat16(base.backbone, base.layer, tensors, Preprocessing.of(base)):
        logger.info(f"{base.backbone} loses too much in bfloat16: it is computed in float32")
        precision = "float32"
    manifest = replace(manifest, base=replace(base, weights_digest=digest, precision=precision))
    if stored:
        manifest = stored.merged_with(manifest, config.cache)
    # A part need not hash again what was listed or indexed, since it compares what it decodes.
    hashed = _listing(config, name) or known if config.part else None
    images = _images(config, known, hashed)
    if known:
        _keep_other_images(config, known, images)
    if config.grey_range == AUTO and not stored:
        training = [images.root / i.path for i in images.images if i.split == "train" or not images.classes]
        manifest = replace(manifest, base=replace(manifest.base, decoding=measured_range(training).name))
    before = None if cache is None else cache.reopened()  # without the index, which may be of a million images
    return ExtractionPlan(config, tensors, device, manifest, images, name, before)


def _images(config: ExtractConfig, known: SetIndex | None, hashed: SetIndex | None) -> ImageSet:
    """The images of `data` with the unlabelled folders that the set has; with --unlabelled, `data` is one of them."""
    folder, folders = str(config.data.resolve()), known.unlabelled if known else ()
    if not config.unlabelled:
        images = ImageSet.scan(
            config.data, config.split_seed, config.skip_bad, hashed=hashed, group_by=config.group_by or ""
        )
        others = [one for one in folders if one != folder]
        return images.with_unlabelled(others, known, config.skip_bad, hashed) if others else images
    folders = tuple(dict.fromkeys([*folders, folder]))
    if known and (known.classes or Path(known.data).exists()):
        images = ImageSet.known(known, folders)
    else:
        images = ImageSet(Path(folder), Path(folder), config.split_seed, (), (), True)
    return images.with_unlabelled(folders, known, config.skip_bad, hashed)


def _refuse_other_network(base: Base, tensors: dict[str, torch.Tensor], digest: str) -> None:
    """WeightsError where these weights are known, and the backbone computes other features from them."""
    weights = known(digest, base.layer, base.input_size)
    if weights and differ(weights.golden, golden_at(base.backbone, base.layer, tensors, Preprocessing.of(base))):
        raise WeightsError(
            f"these are the weights of {weights.backbone}, from which {base.backbone} computes other features: "
            f"use --backbone {weights.backbone}"
        )


def _check_places(config: ExtractConfig) -> tuple[str, FeatureCache | None]:
    """The set's name, and the cache if there is one yet.

    An error where the cache cannot be written here and now, where there is no data, or where there is nothing to
    finish.
    """
    if not config.dry_run:
        check_writable(config.cache)
    check_place(config.cache)
    name = layout.check_set_name(config.data.absolute().name if config.set is None else config.set)
    if not config.dry_run:
        check_free(config.cache, config.part)
    if not config.data.exists():
        raise ImageSetError(f"{config.data} does not exist, expected a folder of images or a CSV file")
    if config.unlabelled and not config.data.is_dir():
        raise ConfigError(
            f"{config.data} is a file, --unlabelled takes a folder of images: name the folder; a CSV may have rows "
            "without labels, without this option"
        )
    exists = (config.cache / layout.MANIFEST_FILE).is_file()
    if config.finish and not exists:
        raise PipelineError(f"{config.cache} holds no parts to finish: run them first, or extract without --finish")
    return name, FeatureCache.open(config.cache) if exists else None


def _known_set(config: ExtractConfig, cache: FeatureCache | None, name: str) -> SetIndex | None:
    """The index of the set as an earlier run left it, if there is one that can be read.

    CacheError where that set is of another place that still exists, unless `--set` names it: data may have been moved.
    With --unlabelled also for an index that cannot be read, and for a set with labels that `--set` does not name.
    """
    try:
        known = cache.extracted(name) if cache is not None and name in cache.sets() else None
    except CacheError:
        if config.unlabelled:  # the labels that the set has would be lost
            raise
        return None  # a damaged index, which this run writes again
    if known is None:
        return None
    data, there = config.data.absolute(), Path(known.data).exists()
    same = there and Path(known.data).samefile(data)
    if config.unlabelled and known.classes and same:
        raise ConfigError(f"{data} is the data of set {name!r}, which has labels: leave out --unlabelled")
    if config.set is None and not same and str(data.resolve()) not in known.unlabelled:
        if config.unlabelled and (there or known.classes):
            raise CacheError(
                f"the cache has a set {name!r} of {known.data}: add the images of {data} to it with --set {name}, or "
                "name another set"
            )
        if there:
            raise CacheError(f"the cache has a set {name!r} of {known.data}, this data is {data}: {_other(name)}")
    return known


def _keep_other_images(config: ExtractConfig, known: SetIndex, images: ImageSet) -> None:
    """A set of other images altogether is replaced only where `--set` names it; that some are gone is logged."""
    before, now = ({image.digest for image in found} for found in (known.images, images.images))
    gone, new = len(before - now), len(now - before)
    if config.set is None and before and gone == len(before):
        raise CacheError(
            f"the cache has a set {known.name!r} of {counted(len(before), 'other image')}, none of which is in "
            f"{images.data}: {_other(known.name)}"
        )
    if gone:
        logger.warning(f"set {known.name}: {gone} of {len(before)} images are no longer there, {new} new")


def _other(name: str) -> str:
    return f"name it with --set, or replace the other with --set {name}"


def _listing(config: ExtractConfig, name: str) -> SetIndex | None:
    """What `--hash-only` kept of the set, if it did and that can be read."""
    try:
        return SetIndex.load(index_path(config.cache / layout.LISTING_FOLDER, name))
    except CacheError:
        return None


def _manifest(config: ExtractConfig, weights_digest: str, precision: str, decoding: Decoding) -> Manifest:
    preprocessing = preprocessing_of(config.backbone, config.image_size, decoding, config.weights)
    name = backbone_spec(config.backbone, config.weights).name
    layer, row_shape = layer_of(name, preprocessing.input_size, config.layer)
    base = Base(
        backbone=name,
        layer=layer,
        weights_digest=weights_digest,
        row_shape=row_shape,
        precision=precision,
        **asdict(preprocessing),
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
    index = plan.images.index(plan.name)
    labelled = LabelJournal.load(plan.config.cache, plan.name).applied(index)  # which may train on more of them
    indexes = [index] if labelled is index else [index, labelled]
    every = np.unique(np.concatenate([each.packed_keys(plan.config.passes) for each in indexes]))
    keys = _part_of(every, plan.config.part)
    missing = keys if cache is None else cache.without(keys)
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


def announce(plan: ExtractionPlan, work: Workload, cache: FeatureCache | None) -> None:
    """Log what is there and what it will take; refuse what the disk cannot hold."""
    features = math.prod(plan.manifest.base.row_shape) if cache is None else cache.in_features
    needed = work.missing * 2 * features
    logger.info(
        f"{plan.name}: {counted(len(plan.images.images), 'image')}, {counted(len(plan.images.classes), 'class')}, "
        f"{counted(work.rows, 'row')}: {work.reused} present, {work.missing} missing"
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
