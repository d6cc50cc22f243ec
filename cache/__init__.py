"""The feature store: manifest, immutable shards, one index per image set. Knows numpy, h5py and bytes; never torch."""

from cache.errors import CacheError, HeadgraftError
from cache.index import ImageRecord, SetIndex
from cache.manifest import Augmentation, Base, Manifest
from cache.store import FeatureCache

__all__ = [
    "Augmentation",
    "Base",
    "CacheError",
    "FeatureCache",
    "HeadgraftError",
    "ImageRecord",
    "Manifest",
    "SetIndex",
]
