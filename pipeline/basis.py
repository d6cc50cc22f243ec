"""Linear maps D → R that a head is trained in, and that fold back into its first layer exactly.

A basis is a chain of stages, each affine in its input. Training sees z = stages(x); `fold` turns a first layer
(H, R) over z into the same layer (H, D) over x, in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cache.shard import Float16Array
from pipeline.config import BasisName
from pipeline.errors import PipelineError

Shape = tuple[int, ...]

# Kept projections were made by this version of the fit: change it with any number below.
BASIS_VERSION = 1


class Stage(Protocol):
    """One affine step of a basis."""

    def apply(self, x: Tensor) -> Tensor:
        """(N, in) → (N, out), float32."""

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(H, out), (H,) over the stage's output → (H, in), (H,) over its input, float64."""


@dataclass(frozen=True)
class Regions:
    """Weighted means of a (channels, positions) map by `weights` (positions, K), as K blocks of channels."""

    weights: Tensor

    def apply(self, x: Tensor) -> Tensor:
        maps = x.view(len(x), -1, len(self.weights))  # (N, channels, positions)
        return (maps @ self.weights).transpose(1, 2).reshape(len(x), -1)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        blocks = weight.view(len(weight), self.weights.shape[1], -1)  # (H, K, channels)
        return torch.einsum("hkc,pk->hcp", blocks, self.weights.double()).reshape(len(weight), -1), bias


@dataclass(frozen=True)
class Scale:
    """(x - mean) / scale, both (R,)."""

    mean: Tensor
    scale: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scaled = weight / self.scale.double()
        return scaled, bias - scaled @ self.mean.double()


@dataclass(frozen=True)
class Mix:
    """Multiply every block of channels by the same `matrix` (channels, channels)."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return (x.view(-1, len(self.matrix)) @ self.matrix).view(len(x), -1)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return (weight.reshape(-1, len(self.matrix)) @ self.matrix.double().T).view(len(weight), -1), bias


@dataclass(frozen=True)
class Project:
    """Multiply by `matrix` (in, R)."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight @ self.matrix.double().T, bias


_KINDS: dict[str, type[Regions] | type[Scale] | type[Mix] | type[Project]] = {
    kind.__name__.lower(): kind for kind in (Regions, Scale, Mix, Project)
}


@dataclass(frozen=True)
class Basis:
    """A fitted chain of stages."""

    name: str
    stages: tuple[Stage, ...]

    def apply(self, rows: Float16Array) -> Tensor:
        """Rows (N, D) float16 → (N, R) float32."""
        x = torch.from_numpy(np.asarray(rows, dtype=np.float32))
        for stage in self.stages:
            x = stage.apply(x)
        return x

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A first layer (H, R), (H,) over this basis → (H, D), (H,) over whole rows, float32, computed in float64."""
        weight, bias = weight.double(), bias.double()
        for stage in reversed(self.stages):
            weight, bias = stage.fold(weight, bias)
        return weight.float().contiguous(), bias.float()

    def tensors(self) -> dict[str, Tensor]:
        """Every array under `stage.kind.field`, for a safetensors file."""
        return {
            f"{number}.{type(stage).__name__.lower()}.{field.name}": getattr(stage, field.name).contiguous()
            for number, stage in enumerate(self.stages)
            for field in fields(stage)  # type: ignore[arg-type]  # every stage is a dataclass
        }

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor]) -> "Basis":
        """The inverse of `tensors`; PipelineError if they are not a basis."""
        parts: dict[int, tuple[str, dict[str, Tensor]]] = {}
        try:
            for key, tensor in tensors.items():
                number, kind, field = key.split(".")
                parts.setdefault(int(number), (kind, {}))[1][field] = tensor
            stages = tuple(_KINDS[kind](**arrays) for _, (kind, arrays) in sorted(parts.items()))
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineError(f"these tensors are not a basis: {error!r}") from error
        return cls(name, stages)


def region_stage(name: str, row_shape: Shape) -> Regions | None:
    """First stage of a basis on rows of (channels, height, width); None for whole rows as they lie."""
    if name == "full":
        return None
    if len(row_shape) != 3:
        raise PipelineError(f"basis {name} needs rows of channels x height x width, these are {row_shape}; use full")
    _, height, width = row_shape
    boxes = _boxes(height, width) if name == "pyramid" else [(slice(None), slice(None))]
    weights = torch.zeros(height, width, len(boxes))
    for number, (rows, columns) in enumerate(boxes):
        weights[rows, columns, number] = 1 / weights[rows, columns, number].numel()
    return Regions(weights.view(height * width, -1))


def _boxes(height: int, width: int) -> list[tuple[slice, slice]]:
    """The whole, four quadrants that share the middle line of an odd side, and the centre third."""

    def parts(side: int) -> tuple[slice, slice, slice]:
        return slice(0, -(-side // 2)), slice(side // 2, side), slice(side // 3, side - side // 3)

    (top, bottom, middle), (left, right, centre) = parts(height), parts(width)
    quadrants = [(top, left), (top, right), (bottom, left), (bottom, right)]
    return [(slice(None), slice(None)), *quadrants, (middle, centre)]


def whitening_regions(row_shape: Shape) -> Regions:
    """Whole rows as blocks of channels, one a position, so that channels can be mixed."""
    return Regions(torch.eye(int(np.prod(row_shape[1:]))))


def fit_stages(name: BasisName, pooled: Tensor, labels: Tensor, row_shape: Shape) -> list[Stage]:
    """Fit what follows the regions on training rows: `pooled` (N, R0) float32, `labels` (N,) int64."""
    if name.regions == "full" and name.shrinkage is None and name.components is None:
        return []
    stages: list[Stage] = [_standardise(pooled)]
    z = stages[0].apply(pooled)
    if name.shrinkage is not None:
        blocks = z.view(len(z), -1, row_shape[0])  # (N, K, channels); a pyramid's first block is the whole map
        means = blocks[:, 0] if name.regions == "pyramid" else blocks.mean(1)
        mix = Mix(_whitening(means, labels, name.shrinkage))
        z = mix.apply(z)
        # One scale for all: scaling each direction by itself would undo the shrinkage.
        spread = Scale(torch.zeros(z.shape[1]), z.std().clamp_min(1e-6).expand(z.shape[1]).contiguous())
        z = spread.apply(z)
        stages += [mix, spread]
    if name.components is not None:
        stages += _principal(z, name.components)
    return stages


def _standardise(x: Tensor) -> Scale:
    """Unit deviation, softened by a tenth of the overall one so that nearly constant features stay small."""
    deviation = x.std(0)
    return Scale(x.mean(0), deviation + 0.1 * x.std() + 1e-6)


def _whitening(means: Tensor, labels: Tensor, shrinkage: float) -> Tensor:
    """U w^(-1/2) of the shrunken within-class covariance of channel means (N, C): (C, C)."""
    means, channels = means.double(), means.shape[1]
    centres = torch.zeros(int(labels.max()) + 1, channels, dtype=torch.float64).index_add_(0, labels, means)
    counts = torch.bincount(labels, minlength=len(centres)).clamp_min(1).unsqueeze(1)
    within = means - (centres / counts)[labels]
    covariance = within.T @ within / len(within)
    covariance += shrinkage * covariance.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(covariance)
    whitening: Tensor = (vectors * values.rsqrt()).float().contiguous()
    return whitening


def _principal(z: Tensor, components: int) -> list[Stage]:
    """The first `components` principal directions, all scaled alike to a mean variance of 1."""
    from sklearn.decomposition import PCA

    most = min(z.shape)
    if components > most:
        raise PipelineError(f"+pca:{components} asks for more than the {most} components these rows have")
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(z.numpy())
    scale = float(np.sqrt(pca.explained_variance_.mean()))
    centre = Scale(torch.from_numpy(pca.mean_).float(), torch.ones(z.shape[1]))
    return [centre, Project(torch.from_numpy(np.ascontiguousarray(pca.components_.T / scale)).float())]
