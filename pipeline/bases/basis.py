"""Linear maps D → R that a head is trained in, and that fold back into its first layer exactly.

A basis is a chain of stages, each affine in its input: `apply` maps rows (N, in) float32 to (N, out) float32, and
`fold` turns a first layer (H, out), (H,) over these into the same layer (H, in), (H,) over the former, in float64.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from cache.records import fault
from cache.shard import Float16Array
from pipeline.errors import PipelineError


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
    """Multiply every block of channels by the same `matrix` (channels, channels), or each by its own (K, …)."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        if self.matrix.ndim == 3:
            blocks = x.view(len(x), *self.matrix.shape[:2]).transpose(0, 1)
            return (blocks @ self.matrix).transpose(0, 1).reshape(len(x), -1)
        return (x.view(-1, len(self.matrix)) @ self.matrix).view(len(x), -1)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.matrix.ndim == 3:
            return Mix(self.matrix.double().mT).apply(weight), bias
        return (weight.reshape(-1, len(self.matrix)) @ self.matrix.double().T).view(len(weight), -1), bias


@dataclass(frozen=True)
class Project:
    """Multiply by `matrix` (in, R)."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight @ self.matrix.double().T, bias


Stage = Regions | Scale | Mix | Project
_KINDS: dict[str, type[Stage]] = {kind.__name__.lower(): kind for kind in (Regions, Scale, Mix, Project)}


@dataclass(frozen=True)
class Basis:
    """A fitted chain of stages."""

    name: str
    stages: tuple[Stage, ...]

    def apply(self, rows: Float16Array) -> Tensor:
        """Rows (N, D) float16 → (N, R) float32."""
        own = np.require(rows, requirements="W")  # a copy of rows that are mapped from a file: torch wants to own them
        return self.transform(torch.from_numpy(own).float())  # on all cores, and numpy would convert on one

    def transform(self, x: Tensor) -> Tensor:
        """(N, D) float32 → (N, R) float32."""
        for stage in self.stages:
            x = stage.apply(x)
        return x

    def out_features(self, in_features: int) -> int:
        """R, of rows of D features; RuntimeError, IndexError or ValueError where it is made for rows of other D."""
        return self.transform(torch.zeros(1, in_features)).shape[1]

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A first layer (H, R), (H,) over this basis → (H, D), (H,) over full features: float32, by way of float64."""
        weight, bias = weight.double(), bias.double()
        for stage in reversed(self.stages):
            weight, bias = stage.fold(weight, bias)
        return weight.float().contiguous(), bias.float()

    def tensors(self) -> dict[str, Tensor]:
        """Every array under `stage.kind.field`, for a safetensors file."""
        return {
            f"{number}.{type(stage).__name__.lower()}.{field.name}": getattr(stage, field.name).contiguous()
            for number, stage in enumerate(self.stages)
            for field in fields(stage)
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
            raise PipelineError(f"these tensors are not a basis: {fault(error)}") from error
        return cls(name, stages)
