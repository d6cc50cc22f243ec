"""The image that evidence is measured from: the mean of some images of a cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.index import ImageRecord
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.evidence.attribution import has_cells
from pipeline.row_layout import layout_of


def mean_row(cache: FeatureCache, images: Sequence[ImageRecord]) -> Tensor | None:
    """Mean of the clean views of `images`, (D,); None where rows have no cells, or are reduced."""
    if cache.reduction or not has_cells(layout_of(cache.manifest)):
        return None
    total = np.zeros(cache.in_features)
    for _, block in cache.blocks([(image.key, CLEAN_VIEW) for image in images]):
        total += block.sum(0, dtype=np.float64)
    return torch.from_numpy(total / len(images)).float()
