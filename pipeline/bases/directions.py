"""Fewer dimensions: principal directions, and those that tell the classes apart."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from pipeline.bases.basis import Project, Scale, Stage
from pipeline.errors import PipelineError

Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # each call: the same rows (n, R0) float32, and labels (n,)

_FEW = 8  # one direction in so many, or fewer, is found without the others
WIDEST = 8192  # features whose covariance is held and decomposed


def principal_of_rows(blocks: Blocks, components: int) -> list[Stage]:
    """As `principal`, of rows wider than `WIDEST`: found by random projections (Halko et al., SIAM Review 2011)."""
    from sklearn.decomposition import PCA

    z = torch.cat([rows for rows, _ in blocks()])
    _refuse_more(components, min(z.shape))
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(z.numpy())
    scale = float(np.sqrt(pca.explained_variance_.mean()))
    centre = Scale(torch.from_numpy(pca.mean_).float(), torch.ones(z.shape[1]))
    return [centre, Project(torch.from_numpy(np.ascontiguousarray(pca.components_.T / scale)).float())]


@dataclass(frozen=True)
class ScatterMatrices:
    """How rows of several classes lie: C classes, R features; what all directions of these rows are made from."""

    count: int  # rows
    mean: Tensor  # (R,)
    between: Tensor  # (C, R): class means less the mean, times the square root of the class's share of the rows
    total: Tensor  # (R, R): covariance of all rows
    within: Tensor  # (R, R): covariance within classes


def scatter_of(blocks: Blocks, num_classes: int) -> ScatterMatrices:
    """Of rows and labels; PipelineError where the rows are wider than `WIDEST`."""
    products, sums, counts = _moments(blocks, num_classes)
    count, mean = counts.sum(), sums.sum(0) / counts.sum()
    means = sums / counts.clamp_min(1).unsqueeze(1)
    between = (means - mean) * (counts / count).sqrt().unsqueeze(1)
    return ScatterMatrices(
        int(count), mean, between, products / count - mean.outer(mean), (products - sums.T @ means) / count
    )


def principal(spread: ScatterMatrices, components: int) -> list[Stage]:
    """The first `components` principal directions, all scaled alike to a mean variance of 1."""
    _refuse_more(components, min(spread.count, len(spread.mean)))
    variances, directions = _eigenvectors(spread.total, components)
    scale = variances[-components:].mean().clamp_min(1e-12).sqrt()  # the largest last
    chosen = directions[:, -components:].flip(1) / scale
    return [Scale(spread.mean, torch.ones_like(spread.mean)), Project(chosen.contiguous())]


def _eigenvectors(covariance: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors, the largest last; in float64 where so many values are equal that float32 fails.

    Where few of them are asked for, these alone, by Lanczos' method: nine times as fast as all.
    """
    if _FEW * components <= len(covariance):
        start = np.ones(len(covariance), np.float32)  # the same each time
        with suppress(RuntimeError):  # scipy's ArpackError: all are found below
            values, vectors = map(torch.from_numpy, eigsh(covariance.numpy(), components, v0=start))
            return values, vectors
    try:
        values, vectors = torch.linalg.eigh(covariance)
    except RuntimeError:  # torch's LinAlgError, which it does not export by name
        values, vectors = torch.linalg.eigh(covariance.double())
    return values.float(), vectors.float()


def _refuse_more(components: int, most: int) -> None:
    if components > most:
        raise PipelineError(
            f"+pca:{components} asks for more than the {most} directions that these training rows have: "
            f"use +pca:{most} or fewer"
        )


def discriminant(spread: ScatterMatrices, shrinkage: float) -> list[Stage]:
    """Linear discriminants (Fisher, 1936; Rao, 1948), one fewer than classes, scaled alike to a mean variance of 1.

    To the covariance within classes, `shrinkage` times its mean diagonal is added. With L Lᵀ the sum, L^(-ᵀ) whitens:
    ten times as fast as by eigenvectors, and the same but for a rotation that the directions undo.
    """
    within = spread.within.clone()
    # Where the rows of each class are the same, only the rounding of sums is within: the total is then the measure.
    size = within.diagonal().mean().maximum(1e-5 * spread.total.diagonal().mean()).clamp_min(1e-12)
    within.diagonal().add_(shrinkage * size)
    lower, failed = torch.linalg.cholesky_ex(within)
    if failed:
        raise PipelineError(f"+lda:{shrinkage:g} shrinks the covariance of these rows too little: choose more")
    apart = torch.linalg.solve_triangular(lower, spread.between.T, upper=False)  # (R, C)
    order, _, _ = torch.linalg.svd(apart, full_matrices=False)
    count = min(len(spread.between) - 1, len(spread.mean))
    directions = torch.linalg.solve_triangular(lower.T, order[:, :count], upper=True)
    scale = (directions * (spread.total @ directions)).sum(0).mean().clamp_min(1e-12).sqrt()
    return [Scale(spread.mean, torch.ones_like(spread.mean)), Project((directions / scale).contiguous())]


def side_by_side(chosen: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Directions of the same centred rows as one projection; each is [Scale, Project] of these rows' spread."""
    if len(chosen) < 2:
        return [stage for stages in chosen for stage in stages]
    (centre, *_), *_ = chosen
    matrices = [stage.matrix for stages in chosen for stage in stages if isinstance(stage, Project)]
    return [centre, Project(torch.cat(matrices, 1))]


def _moments(blocks: Blocks, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of products (R, R), sums by class (C, R) and rows by class (C,)."""
    products, sums, counts = torch.zeros(0), torch.zeros(0), torch.zeros(num_classes)
    for z, labels in blocks():
        if not len(products):
            _refuse_wide(z.shape[1])
            products, sums = torch.zeros(z.shape[1], z.shape[1]), torch.zeros(num_classes, z.shape[1])
        products.addmm_(z.T, z)
        sums.index_add_(0, labels, z)
        counts += torch.bincount(labels, minlength=num_classes)
    return products, sums, counts


def _refuse_wide(width: int) -> None:
    if width > WIDEST:
        raise PipelineError(
            f"+lda of {width} features takes too long, at most {WIDEST} are allowed: use pool or pyramid"
        )
