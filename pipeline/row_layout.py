"""RowLayout: how the features of a row lie, and the regions they are averaged over; free of torch, as `config` is."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cache.manifest import Manifest
from pipeline.basis_name import VECTORS
from pipeline.config.heads import POOLED_BASIS, VECTOR_BASIS, WIDEST, HeadSettings
from pipeline.errors import PipelineError

TOKENS = "tokens"  # the layer whose rows are tokens


@dataclass(frozen=True)
class RowLayout:
    """Rows of D = channels × (vectors + height × width) features, channel by channel.

    Attributes:
        channels: of the map; all features where rows are no map.
        grid: (height, width) of the map; None where rows are no map, as those of a reduced cache.
        vectors: before the map, each of its own: class tokens, and means over tokens.
    """

    channels: int
    grid: tuple[int, int] | None = None
    vectors: int = 0

    @classmethod
    def of(cls, row_shape: tuple[int, ...], layer: str = "") -> "RowLayout":
        """The layout of a cache's `row_shape`: (C, H, W) is a map, (C, P) are P vectors, the class token first.

        Of `layer` tokens, these are a class token, if their number is no square, and a square grid.
        """
        channels, *places = row_shape
        if len(places) == 2:
            return cls(channels, (places[0], places[1]))
        count = places[0] if places else 1
        if layer != TOKENS or len(row_shape) == 1:
            return cls(channels, vectors=count)
        side = math.isqrt(count)
        return cls(channels, (side, side), count - side * side)

    @property
    def in_features(self) -> int:
        """D, features of a row."""
        return self.channels * self.positions

    @property
    def positions(self) -> int:
        """Of a channel: vectors, then the places of the map, row by row."""
        return max(1, self.vectors + (math.prod(self.grid) if self.grid else 0))

    @property
    def default_basis(self) -> str:
        """The basis of a head where none is asked for."""
        if self.grid is None or self.grid == (1, 1):
            return VECTOR_BASIS
        pyramid = self.region_weights("pyramid").shape[1] * self.channels
        return HeadSettings.basis if pyramid <= WIDEST else POOLED_BASIS

    def region_weights(self, regions: str) -> npt.NDArray[np.float32]:
        """Weights (positions, K) of the means over the K `regions` of a basis; of `full`, each position is a region.

        PipelineError where rows are no map and a mean over it is asked for.
        """
        if regions == "full":
            return np.eye(self.positions, dtype=np.float32)
        if regions in VECTORS:
            return self._one_vector(regions)
        if self.grid is None:
            raise PipelineError(
                f"basis {regions} needs rows of channels x height x width, these are {self.in_features} features: "
                "use full, alone or with +white, +pca:R or +lda"
            )
        boxes = _boxes(*self.grid) if regions == "pyramid" else [(slice(None), slice(None))]
        weights = np.zeros((*self.grid, len(boxes)), np.float32)
        for number, (rows, columns) in enumerate(boxes):
            weights[rows, columns, number] = 1 / weights[rows, columns, number].size
        means = weights.reshape(-1, len(boxes))
        found = np.zeros((self.positions, self.vectors + len(boxes)), np.float32)
        found[: self.vectors, : self.vectors] = np.eye(self.vectors)
        found[self.vectors :, self.vectors :] = means
        return found

    def _one_vector(self, which: str) -> npt.NDArray[np.float32]:
        """Weights (positions, 1) of the class token alone, or of the mean of the patches."""
        if self.vectors + (self.grid is not None) < 2:
            raise PipelineError(f"basis {which} needs rows of several vectors or tokens, these have one: use full")
        found = np.zeros((self.positions, 1), np.float32)
        if which == "cls":
            found[0] = 1
        elif self.grid is None:
            found[-1] = 1
        else:
            found[self.vectors :] = 1 / math.prod(self.grid)
        return found


def layout_of(manifest: Manifest) -> RowLayout:
    """The layout of the backbone's rows, before any reduction."""
    return RowLayout.of(manifest.base.row_shape, manifest.base.layer)


def _boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    """The map, four quadrants that share the middle line of an odd side, and the centre third."""

    def parts(side: int) -> tuple[slice, slice, slice]:
        return slice(0, -(-side // 2)), slice(side // 2, side), slice(side // 3, side - side // 3)

    (top, bottom, middle), (left, right, centre) = parts(height), parts(width)
    quadrants = [(top, left), (top, right), (bottom, left), (bottom, right)]
    return [(slice(None), slice(None)), *quadrants, (middle, centre)]
