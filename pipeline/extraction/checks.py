"""What an extraction refuses: as much as can be before images are listed and hashed, or weights fetched."""

import logging
from pathlib import Path

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex
from cache.lock import check_free, check_writable
from cache.store import FeatureCache, check_place
from pipeline.config import ExtractConfig
from pipeline.errors import ImageSetError, PipelineError
from pipeline.inputs.images import ImageSet

logger = logging.getLogger("headgraft.extraction")


def check_places(config: ExtractConfig) -> tuple[str, FeatureCache | None]:
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
    exists = (config.cache / layout.MANIFEST_FILE).is_file()
    if config.finish and not exists:
        raise PipelineError(f"{config.cache} holds no parts to finish: run them first, or extract without --finish")
    return name, FeatureCache.open(config.cache) if exists else None


def known_index(cache: FeatureCache | None, name: str) -> SetIndex | None:
    """The index of the set as an earlier run left it, if there is one that can be read."""
    try:
        return cache.index(name) if cache and name in cache.sets() else None
    except CacheError:  # a damaged index, which this run writes again
        return None


def keep_other_roots(config: ExtractConfig, known: SetIndex | None) -> None:
    """A set of another place that still exists is replaced only where `--set` names it: data may have been moved."""
    if config.set is not None or known is None:
        return
    data, before = config.data.absolute(), Path(known.data)
    if before.exists() and not before.samefile(data):
        raise CacheError(f"the cache has a set {known.name!r} of {known.data}, this data is {data}: {_other(known)}")


def keep_other_images(config: ExtractConfig, known: SetIndex | None, images: ImageSet) -> None:
    """A set of other images altogether is replaced only where `--set` names it; that some are gone is logged."""
    if known is None:
        return
    before, now = ({image.digest for image in found} for found in (known.images, images.images))
    gone, new = len(before - now), len(now - before)
    if config.set is None and before and gone == len(before):
        raise CacheError(
            f"the cache has a set {known.name!r} of {len(before)} other images, none of which is in {images.data}: "
            f"{_other(known)}"
        )
    if gone:
        logger.warning(f"set {known.name}: {gone} of {len(before)} images are no longer there, {new} new")


def _other(known: SetIndex) -> str:
    return f"name it with --set, or replace the other with --set {known.name}"
