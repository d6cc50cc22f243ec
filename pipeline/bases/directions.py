"""Fewer dimensions: principal directions, and those that tell the classes apart."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from pipeline.bases.basis import Project, Scale, Stage
from pipeline.bases.moments import Blocks, Moments, shrunken
from pipeline.basis_name import BasisName
from pipeline.config.heads import WIDEST
from pipeline.errors import PipelineError

_FEW = 8  # one direction in so many, or fewer, is found without the others


def directions(name: BasisName, width: int, moments: Callable[[], Moments], rows: Blocks) -> list[Stage]:
    """Last stages of a basis: discriminants, principal directions or both, side by side, if any.

    Rows (n, width) have these moments; the principal directions alone of rows wider than `WIDEST` are found in `rows`.
    """
    if name.discriminant is None and name.components is None:
        return []
    if width > WIDEST and name.components is not None and name.discriminant is None:
        return _principal_of_rows(rows, name.components)
    if width > WIDEST:
        raise PipelineError(
            f"+lda of {width} features takes too long, at most {WIDEST} are allowed: use pool or pyramid"
        )
    found, chosen = moments(), list[Tensor]()
    if name.discriminant is not None:
        chosen.append(_discriminants(found, name.discriminant))
    if name.components is not None:
        chosen.append(_principal(found, name.components))
    return [Scale(found.mean, torch.ones(width)), Project(torch.cat(chosen, 1))]


def _principal_of_rows(blocks: Blocks, components: int) -> list[Stage]:
    """As `_principal`, from the rows themselves, by random projections (Halko et al., SIAM Review 2011)."""
    from sklearn.decomposition import PCA

    z = torch.cat([rows for rows, _ in blocks()])
    _refuse_more(components, min(z.shape))
    pca = PCA(components, svd_solver="randomized", random_state=0).fit(z.numpy())
    scale = float(np.sqrt(pca.explained_variance_.mean()))
    centre = Scale(torch.from_numpy(pca.mean_).float(), torch.ones(z.shape[1]))
    return [centre, Project(torch.from_numpy(np.ascontiguousarray(pca.components_.T / scale)).float())]


def _principal(moments: Moments, components: int) -> Tensor:
    """The first `components` principal directions, all scaled alike to a mean variance of 1, (R, components)."""
    _refuse_more(components, min(int(moments.counts.sum()), len(moments.products)))
    variances, vectors = leading_eigenvectors(moments.total, components)
    scale = variances[-components:].mean().clamp_min(1e-12).sqrt()  # the largest last
    return vectors[:, -components:].flip(1) / scale


def _refuse_more(components: int, most: int) -> None:
    if components > most:
        raise PipelineError(
            f"+pca:{components} asks for more than the {most} directions that these training rows have: "
            f"use +pca:{most} or fewer"
        )


def leading_eigenvectors(covariance: Tensor, components: int) -> tuple[Tensor, Tensor]:
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


def _discriminants(moments: Moments, shrinkage: float) -> Tensor:
    """Linear discriminants (Fisher, 1936; Rao, 1948), one fewer than classes, scaled alike to a mean variance of 1.

    With L Lᵀ the shrunken covariance within classes, L^(-ᵀ) whitens: ten times as fast as by eigenvectors, and the
    same but for a rotation that the directions undo. (R, C - 1), or R of them where those are fewer.
    """
    total = moments.total
    lower, failed = torch.linalg.cholesky_ex(shrunken(moments.within.float(), total, shrinkage))
    if failed:
        raise PipelineError(f"+lda:{shrinkage:g} shrinks the covariance of these rows too little: choose more")
    between = moments.between
    apart = torch.linalg.solve_triangular(lower, between.T, upper=False)  # (R, C)
    order, _, _ = torch.linalg.svd(apart, full_matrices=False)
    order = order[:, : min(between.shape[0] - 1, between.shape[1])]
    chosen: Tensor = torch.linalg.solve_triangular(lower.T, order, upper=True)
    scale = (chosen * (total @ chosen)).sum(0).mean().clamp_min(1e-12).sqrt()
    return chosen / scale
