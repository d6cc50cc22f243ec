"""What an extraction refuses: as much as can be before images are hashed or weights are fetched."""

import logging
from pathlib import Path

from cache import layout
from cache.errors import CacheError
from cache.index import SetIndex
from cache.lock import check_free, check_writable
from cache.manifest import Manifest
from cache.store import FeatureCache, check_place
from pipeline.config import ExtractConfig
from pipeline.errors import ImageSetError
from pipeline.inputs.images import ImageSet

logger = logging.getLogger("headgraft.extraction")


def check_places(config: ExtractConfig) -> str:
    """The set's name; an error where the cache cannot be written here and now, or there is no data."""
    if not config.dry_run:
        check_writable(config.cache)
    check_place(config.cache)
    name = layout.check_set_name(config.data.absolute().name if config.set is None else config.set)
    if not config.dry_run:
        check_free(config.cache, config.part)
    if not config.data.exists():
        raise ImageSetError(f"{config.data} does not exist, expected a folder of images or a CSV file")
    return name


def stored_manifest(cache: Path) -> Manifest | None:
    """The manifest of the cache, if there is one yet."""
    file = cache / layout.MANIFEST_FILE
    return Manifest.load(file) if file.is_file() else None


def known_index(config: ExtractConfig, name: str) -> SetIndex | None:
    """The index of the set as an earlier run left it, if there is one that can be read."""
    if not stored_manifest(config.cache) or name not in FeatureCache.open(config.cache).sets():
        return None
    try:
        return FeatureCache.open(config.cache).index(name)
    except CacheError:  # a damaged index, which this run writes again
        return None


def keep_other_roots(config: ExtractConfig, known: SetIndex | None) -> None:
    """A set of another place is replaced only where `--set` names it."""
    data = config.data.absolute()
    if config.set is None and known and _is_elsewhere(Path(known.data), data):
        raise CacheError(f"the cache has a set {known.name!r} of {known.data}, this data is {data}: {_other(known)}")


def _is_elsewhere(known: Path, data: Path) -> bool:
    """Whether a set is of another place, which is still there: one that is gone may have been moved to `data`."""
    return known.exists() and not known.samefile(data)


def keep_other_images(config: ExtractConfig, known: SetIndex | None, images: ImageSet) -> None:
    """A set of other images altogether is replaced only where `--set` names it; that some are gone is said."""
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
