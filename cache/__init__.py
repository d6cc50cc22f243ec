"""The feature store: manifest, immutable shards, one index per image set. Knows numpy, h5py and bytes; never torch.

Nothing is imported here, so that its errors cost nothing. The public interface: `cache.store.FeatureCache`,
`cache.index.SetIndex`, `cache.manifest.Manifest`, and the errors of `cache.errors`.
"""

import logging

logging.getLogger("headgraft").addHandler(logging.NullHandler())  # users of the library ask for the log
