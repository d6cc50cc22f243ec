"""RowLayout: how the features of a row lie, and the regions they are averaged over; free of torch, as `config` is."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import REDUCED_BASIS, HeadSettings
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class RowLayout:
    """Rows of D = channels × height × width features, channel by channel.

    Attributes:
        channels: of the map; all features where rows are no map.
        grid: (height, width) of the map; None where rows are no map, as those of a reduced cache.
    """

    channels: int
    grid: tuple[int, int] | None = None

    @classmethod
    def of(cls, row_shape: tuple[int, ...]) -> "RowLayout":
        """The layout of a cache's `row_shape`, which is a map where it has three numbers."""
        if len(row_shape) != 3:
            return cls(math.prod(row_shape))
        channels, height, width = row_shape
        return cls(channels, (height, width))

    @property
    def in_features(self) -> int:
        """D, features of a row."""
        return self.channels * math.prod(self.grid or ())

    @property
    def default_basis(self) -> str:
        """The basis of a head where none is asked for."""
        return HeadSettings.basis if self.grid else REDUCED_BASIS

    def region_weights(self, regions: str) -> npt.NDArray[np.float32]:
        """Weights (positions, K) of the means over the K `regions` of a basis; of `full`, each position is a region.

        PipelineError where rows are no map and a mean over it is asked for.
        """
        if regions == "full":
            return np.eye(math.prod(self.grid or ()), dtype=np.float32)
        if self.grid is None:
            raise PipelineError(
                f"basis {regions} needs rows of channels x height x width, these are {self.channels} features: "
                "use full, alone or with +white, +pca:R or +lda"
            )
        boxes = _boxes(*self.grid) if regions == "pyramid" else [(slice(None), slice(None))]
        weights = np.zeros((*self.grid, len(boxes)), np.float32)
        for number, (rows, columns) in enumerate(boxes):
            weights[rows, columns, number] = 1 / weights[rows, columns, number].size
        return weights.reshape(-1, len(boxes))


def _boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    """The map, four quadrants that share the middle line of an odd side, and the centre third."""

    def parts(side: int) -> tuple[slice, slice, slice]:
        return slice(0, -(-side // 2)), slice(side // 2, side), slice(side // 3, side - side // 3)

    (top, bottom, middle), (left, right, centre) = parts(height), parts(width)
    quadrants = [(top, left), (top, right), (bottom, left), (bottom, right)]
    return [(slice(None), slice(None)), *quadrants, (middle, centre)]
