"""Bases: a head trained in one folds into the same head over whole rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import heard, some_rows
from safetensors.torch import load, save
from torch import Tensor

from pipeline.bases.basis import Basis, Scale
from pipeline.bases.directions import directions
from pipeline.bases.fit import fit_basis, start_basis
from pipeline.bases.moments import Blocks, Moments
from pipeline.basis_name import BasisName
from pipeline.errors import PipelineError
from pipeline.heads.head import Head
from pipeline.row_layout import RowLayout

NAMES = [
    "full",
    "pool",
    "pyramid",
    "pyramid+white",
    "pool+white:3",
    "pyramid+white+pca:4",
    "pca:4",
    "full+white",
    "pyramid+white+lda",
    "pool+lda:2",
    "pool+lda:2+pca:3",
    "pyramid+white+lda+pca:4",
]
SHAPES = [(8, 7, 7), (8, 6, 6), (4, 2, 2)]


def fitted(name: str, shape: tuple[int, ...], count: int = 40) -> tuple[Basis, np.ndarray]:
    """A basis fitted on random rows of three classes, as train.py fits it, and the rows."""
    rows = np.abs(some_rows(count, int(np.prod(shape)))) + np.float16(0.1)
    labels = torch.arange(count) % 3
    start, layout = start_basis(name, RowLayout.of(shape)), RowLayout.of(shape)
    return fit_basis(start, in_blocks(start.apply(rows), labels), 3, layout), rows


def in_blocks(rows: Tensor, labels: Tensor, size: int = 7) -> Blocks:
    """Rows and labels, a few at a time."""
    return lambda: zip(rows.split(size), labels.split(size), strict=True)


def folded_difference(basis: Basis, rows: np.ndarray) -> float:
    """Largest difference in log-probability between a head in the basis and the folded one."""
    z = basis.apply(rows)
    head = Head.new(z.shape[1], 6, 3, generator=torch.Generator().manual_seed(0)).eval()
    tensors: dict[str, Tensor] = dict(head.state_dict())
    tensors["0.weight"], tensors["0.bias"] = basis.fold(tensors["0.weight"], tensors["0.bias"])
    with torch.inference_mode():
        whole = Head.from_tensors(tensors)(torch.from_numpy(rows.astype(np.float32)))
        return float((whole - head(z)).abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_folded_head_gives_the_same_log_probabilities(name: str, shape: tuple[int, ...]) -> None:
    """Within 1e-4, for every basis and map size."""
    basis, rows = fitted(name, shape)
    assert folded_difference(basis, rows) < 1e-4


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("full", 392),
        ("pool", 8),
        ("pyramid", 48),
        ("pyramid+white", 48),
        ("pca:4", 4),
        ("full+white", 392),
        ("pyramid+white+lda+pca:4", 6),
    ],
)
def test_a_basis_has_the_dimensions_its_name_says(name: str, size: int) -> None:
    """R for rows of 8 x 7 x 7."""
    basis, rows = fitted(name, (8, 7, 7))
    assert basis.apply(rows).shape == (40, size)


@pytest.mark.parametrize("name", NAMES)
def test_a_basis_comes_back_from_its_tensors(name: str) -> None:
    """Saved and loaded, it maps and folds as before."""
    basis, rows = fitted(name, (8, 6, 6))
    again = Basis.from_tensors(name, load(save(basis.tensors())))
    assert torch.allclose(again.apply(rows), basis.apply(rows), atol=1e-5)
    assert [type(stage) for stage in again.stages] == [type(stage) for stage in basis.stages]


def test_more_than_ten_stages_keep_their_order() -> None:
    """Stages are numbered, not sorted as text."""
    basis, _ = fitted("pyramid+white+pca:4", (8, 7, 7))
    long = Basis("long", basis.stages * 4)
    assert len(long.stages) > 10
    kinds = [type(stage) for stage in Basis.from_tensors("long", long.tensors()).stages]
    assert kinds == [type(stage) for stage in long.stages]


@pytest.mark.parametrize(
    "tensors", [{"x": torch.ones(1)}, {"0.blur.weights": torch.ones(1)}, {"0.scale.mean": torch.ones(1)}]
)
def test_tensors_that_are_no_basis_are_refused(tensors: dict[str, Tensor]) -> None:
    """A wrong name, an unknown stage, a missing field."""
    with pytest.raises(PipelineError, match="not a basis"):
        Basis.from_tensors("full", tensors)


@pytest.mark.parametrize(
    "name", ["", "none", "pool+", "white", "pool+pca", "pool+pca:0", "pool+white:0", "pca:4+white", "pool+pca:4+white",
             "pyramid+white:", "full+white:-1", "pca:-4", "Pool", "pool pyramid", "pool\n", "pool+lda:0", "lda+white",
             "pool+pca:3+lda", "pool+white+white"]
)  # fmt: skip
def test_names_that_are_no_basis_are_refused(name: str) -> None:
    """With what was expected."""
    with pytest.raises(PipelineError):
        BasisName.parse(name)


def test_names_say_their_parts() -> None:
    """Regions, shrinkage with its default, components; pca:R is full+pca:R."""
    assert BasisName.parse("pyramid+white:2.5+pca:512") == BasisName("pyramid", 2.5, 512)
    assert BasisName.parse("pool+white") == BasisName("pool", 6.0, None)
    assert BasisName.parse("pca:4") == BasisName.parse("full+pca:4") == BasisName("full", None, 4)
    assert BasisName.parse("pyramid+white:3+lda") == BasisName("pyramid", 3.0, None, 4.0)
    assert BasisName.parse("lda:2.5") == BasisName("full", discriminant=2.5)
    assert BasisName.parse("pool+lda:2+pca:64") == BasisName("pool", None, 64, 2.0)


def test_the_pyramid_of_7_x_7_is_the_six_regions_measured() -> None:
    """Rows x columns [0:7, 0:7], [0:4, 0:4], [0:4, 3:7], [3:7, 0:4], [3:7, 3:7], [2:5, 2:5]: means over each."""
    rows = some_rows(3, 8 * 49)
    maps = rows.astype(np.float32).reshape(3, 8, 7, 7)
    boxes = [(0, 7, 0, 7), (0, 4, 0, 4), (0, 4, 3, 7), (3, 7, 0, 4), (3, 7, 3, 7), (2, 5, 2, 5)]
    expected = np.concatenate([maps[:, :, a:b, c:d].mean((2, 3)) for a, b, c, d in boxes], axis=1)
    start = start_basis("pyramid", RowLayout(8, (7, 7)))
    assert np.allclose(start.apply(rows).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", range(1, 11))
def test_regions_of_any_map_size_are_means(side: int) -> None:
    """No region is empty, and a constant map has that constant everywhere."""
    start = start_basis("pyramid", RowLayout(2, (side, side + 1)))
    assert torch.allclose(start.transform(torch.full((1, 2 * side * (side + 1)), 3.0)), torch.tensor(3.0))


def test_regions_need_a_map() -> None:
    """Rows that are no channels x height x width can only be taken whole."""
    with pytest.raises(PipelineError, match="full"):
        start_basis("pool", RowLayout.of((128,)))
    assert start_basis("full", RowLayout.of((128,))).stages == ()


@pytest.mark.parametrize(
    ("row_shape", "layer", "basis", "width"),
    [
        ((8, 7, 6), "avgpool", "pyramid+white", 6 * 8),
        ((2048, 7, 7), "map", "pool+white", 2048),
        ((8, 1, 1), "map", "full+white", 8),
        ((128,), "pooled", "full+white", 128),
        ((4, 2), "cls+mean", "full+white", 8),
        ((4, 5), "cls4+mean", "full+white", 20),
        ((4, 17), "tokens", "pyramid+white", 7 * 4),
        ((4, 16), "tokens", "pyramid+white", 6 * 4),
    ],
)
def test_a_layout_says_how_rows_lie(row_shape: tuple[int, ...], layer: str, basis: str, width: int) -> None:
    """D, and the basis of a head where none is asked for, and how wide it is."""
    layout = RowLayout.of(row_shape, layer)
    assert (layout.in_features, layout.default_basis) == (math.prod(row_shape), basis)
    assert start_basis(basis, layout).out_features(layout.in_features) == width


@pytest.mark.parametrize(("name", "place"), [("cls", 0), ("mean", 1)])
def test_a_basis_takes_one_of_several_vectors(name: str, place: int) -> None:
    """Of a row of a class token and a mean; of tokens, the mean is taken over the grid."""
    rows = torch.randn(3, 4, 2)
    assert torch.equal(start_basis(name, RowLayout(4, vectors=2)).transform(rows.flatten(1)), rows[..., place])
    tokens = torch.randn(3, 4, 5)
    expected = (tokens[..., 0], tokens[..., 1:].mean(2))[place]
    found = start_basis(name, RowLayout(4, (2, 2), 1)).transform(tokens.flatten(1))
    assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(PipelineError, match="several vectors"):
        start_basis(name, RowLayout(4))


def test_the_class_token_is_whitened_by_itself() -> None:
    """As if there were no patches, and the patches as if there were no class token."""
    tokens, labels = torch.randn(60, 4, 10), torch.arange(60) % 3
    tokens[..., 0] *= torch.tensor([1.0, 5.0, 1.0, 9.0])

    def whitened(x: Tensor, layout: RowLayout) -> Tensor:
        start = start_basis("pyramid+white" if layout.grid else "full+white", layout)
        basis = fit_basis(start, in_blocks(start.transform(x), labels), 3, layout)
        return basis.transform(x)

    both = whitened(tokens.flatten(1), RowLayout(4, (3, 3), 1))
    class_token = whitened(tokens[..., 0], RowLayout(4))
    patches = whitened(tokens[..., 1:].flatten(1), RowLayout(4, (3, 3)))
    assert torch.allclose(both[:, :4].abs(), class_token.abs(), atol=0.1)
    assert torch.allclose(both[:, 4:].abs(), patches.abs(), atol=0.1)
    start = start_basis("pyramid+white", RowLayout(4, (3, 3), 1))
    basis = fit_basis(start, in_blocks(start.transform(tokens.flatten(1)), labels), 3, RowLayout(4, (3, 3), 1))
    weight, bias = torch.randn(5, both.shape[1], dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    folded, shift = basis.fold(weight, bias)
    expected = both.double() @ weight.T + bias
    assert torch.allclose(tokens.flatten(1).double() @ folded.double().T + shift, expected, atol=1e-3)


def test_more_components_than_rows_are_refused() -> None:
    """With how many there can be."""
    with pytest.raises(PipelineError, match="pca:5"):
        fitted("pca:9", (4, 2, 2), 5)


def test_whitening_makes_the_within_class_spread_alike() -> None:
    """With little shrinkage, the pooled channels' within-class covariance is near a multiple of the identity."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(4, 4))
    values = (generator.normal(size=(600, 4)) @ mixing)[:, :, None] * np.ones((1, 1, 4))
    rows = torch.from_numpy(values.reshape(600, 16).astype(np.float32))
    labels = torch.arange(600) % 3
    start = start_basis("pool+white:0.000001", RowLayout(4, (2, 2)))
    basis = fit_basis(start, in_blocks(start.transform(rows), labels), 3, RowLayout(4, (2, 2)))
    covariance = np.cov(basis.transform(rows).numpy().T)
    assert np.allclose(covariance, np.eye(4), atol=0.1)


@pytest.mark.parametrize(
    "name", ["pool+white", "pyramid+white", "full+white:2", "pyramid+white+pca:4", "pca:4", "pyramid+white+lda"]
)
def test_a_fit_does_not_depend_on_how_rows_come(name: str) -> None:
    """One at a time or all together: the same stages to rounding."""
    rows = torch.from_numpy(np.abs(some_rows(60, 128)).astype(np.float32))
    labels, start = torch.arange(60) % 3, start_basis(name, RowLayout(8, (4, 4)))
    found = [
        fit_basis(start, in_blocks(start.transform(rows), labels, size), 3, RowLayout(8, (4, 4))).transform(rows)
        for size in (1, 7, 60)
    ]
    for other in found[1:]:
        assert torch.allclose(found[0].abs(), other.abs(), atol=1e-3)  # a direction's sign is free


def test_discriminants_are_those_of_scikit_learn() -> None:
    """The same directions as its eigenvalue solver finds, both with next to no shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    generator = np.random.default_rng(0)
    labels = np.arange(300) % 4
    values = generator.normal(size=(4, 6))[labels] + generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6))
    rows = torch.from_numpy(values.astype(np.float32))
    start = start_basis("lda:0.0000001", RowLayout(6))
    basis = fit_basis(start, in_blocks(rows, torch.from_numpy(labels)), 4, RowLayout(6))
    z = basis.transform(rows).numpy()
    scaled = basis.stages[0].apply(rows).numpy()
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(scaled, labels)
    expected = reference.transform(scaled)[:, :3]
    assert z.shape == (300, 3)
    assert np.isclose(z.var(0).mean(), 1, atol=1e-3)
    for column in range(3):
        assert abs(np.corrcoef(z[:, column], expected[:, column])[0, 1]) > 0.9999


@pytest.mark.parametrize("few", [1, 8])
def test_principal_directions_are_those_of_scikit_learn(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the covariance, all or only these, or by random projections of very wide rows: a mean variance of 1."""
    from sklearn.decomposition import PCA

    mixing = np.random.default_rng(1).normal(size=(6, 6))
    rows = torch.from_numpy((np.random.default_rng(0).normal(size=(300, 6)) @ mixing).astype(np.float32))
    blocks = in_blocks(rows, torch.arange(300) % 3)
    expected = PCA(3, svd_solver="full").fit_transform(rows.numpy())
    monkeypatch.setattr("pipeline.bases.directions._FEW", few)
    for widest in (6, 5):
        monkeypatch.setattr("pipeline.bases.directions.WIDEST", widest)
        stages = directions(BasisName("full", components=3), 6, lambda: Moments.of(blocks, 6, 3), blocks)
        z = Basis("", tuple(stages)).transform(rows).numpy()
        assert np.isclose(z.var(0).mean(), 1, atol=1e-2)
        for column in range(3):
            assert abs(np.corrcoef(z[:, column], expected[:, column])[0, 1]) > 0.9999


def test_discriminants_and_principal_directions_stand_side_by_side() -> None:
    """Each as it is alone."""
    both, rows = fitted("pyramid+white+lda:2+pca:5", (8, 7, 7))
    alone = [fitted(f"pyramid+white+{last}", (8, 7, 7))[0].apply(rows) for last in ("lda:2", "pca:5")]
    assert torch.allclose(both.apply(rows), torch.cat(alone, 1), atol=1e-4)


def test_moments_of_a_part_are_subtracted() -> None:
    """What is left is that of the other rows, as folds need it."""
    rows, labels = torch.from_numpy(some_rows(60, 6).astype(np.float32)), torch.arange(60) % 3
    whole, part, others = (Moments.of(in_blocks(rows[some], labels[some]), 6, 3) for some in (
        slice(None), slice(20), slice(20, None)
    ))  # fmt: skip
    left = whole - part
    for name in ("products", "by_class", "counts", "mean", "within", "between", "total"):
        torch.testing.assert_close(getattr(left, name), getattr(others, name), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(others.total, others.within + others.between.T @ others.between, atol=1e-5, rtol=1e-4)


def test_discriminants_of_very_wide_rows_are_refused() -> None:
    """Their covariance would take minutes and gigabytes."""
    with pytest.raises(PipelineError, match="pool"):
        fitted("lda", (4, 50, 50), 6)


def test_the_fit_has_the_moments_of_its_rows() -> None:
    """Mean 0, the softened deviation, and a whitening that leaves unit overall spread."""
    rows = torch.from_numpy(np.abs(some_rows(60, 128)).astype(np.float32))
    start = start_basis("pyramid+white", RowLayout(8, (4, 4)))
    x = start.transform(rows)
    basis = fit_basis(start, in_blocks(x, torch.arange(60) % 3), 3, RowLayout(8, (4, 4)))
    scale = basis.stages[1]
    assert isinstance(scale, Scale)
    assert torch.allclose(scale.mean, x.mean(0), atol=1e-5)
    assert torch.allclose(scale.scale, x.std(0) + 0.1 * x.std() + 1e-6, atol=1e-5)
    z = basis.transform(rows)
    assert torch.allclose(z.mean(0), torch.zeros(48), atol=1e-4)
    assert abs(float(z.std()) - 1) < 1e-4


@pytest.mark.parametrize("name", ["pool", "pyramid+white", "pca:2"])
@pytest.mark.parametrize("row", [torch.zeros(32), 7 * torch.rand(32, generator=torch.Generator().manual_seed(0))])
def test_features_that_never_differ_are_refused(name: str, row: Tensor) -> None:
    """As useless weights or black images give them; a whitening would divide by zero, or by the rounding of sums."""
    start = start_basis(name, RowLayout(8, (2, 2)))
    blocks = in_blocks(start.transform(row.repeat(20, 1)), torch.arange(20) % 3)
    with pytest.raises(PipelineError, match="all training images are the same"):
        fit_basis(start, blocks, 3, RowLayout(8, (2, 2)))


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("regions", ["full", "pool", "pyramid"])
def test_one_image_a_class_is_not_whitened_and_that_is_said(regions: str, copies: int) -> None:
    """There is no spread within a class to whiten by: channels are scaled alike, and every basis is finite."""
    rows = torch.rand(3, 32, generator=torch.Generator().manual_seed(0)).repeat(copies, 1)
    labels = torch.arange(3).repeat(copies)
    for last in ("", "+white", "+white+lda", "+white+pca:2", "+lda", "+pca:2"):
        start, said = start_basis(f"{regions}{last}", RowLayout(8, (2, 2))), list[str]()
        blocks = in_blocks(start.transform(rows), labels)
        with heard(said.append):
            basis = fit_basis(start, blocks, 3, RowLayout(8, (2, 2)))
        assert basis.transform(rows).isfinite().all()
        assert [("not whitened" in line, "--passes 1" in line) for line in said] == [(True, True)] * ("white" in last)
    start = start_basis(f"{regions}+white", RowLayout(8, (2, 2)))
    found = fit_basis(start, in_blocks(start.transform(rows), labels), 3, RowLayout(8, (2, 2)))
    plain = Basis("", found.stages[:2])  # regions and standardising
    ratio = found.transform(rows) / plain.transform(rows)
    assert torch.allclose(ratio, ratio[0, 0], rtol=1e-3)


def test_principal_directions_of_few_rows_in_many_dimensions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 does not converge, float64 finds them; as of two images in 1,536 dimensions."""
    eigh = torch.linalg.eigh

    def failing(matrix: Tensor) -> Any:
        if matrix.dtype == torch.float32:
            raise RuntimeError("did not converge")
        return eigh(matrix)

    rows = torch.rand(6, 32, generator=torch.Generator().manual_seed(0))
    start = start_basis("full+pca:2", RowLayout(8, (2, 2)))
    blocks = in_blocks(rows, torch.arange(6) % 2)
    expected = fit_basis(start, blocks, 2, RowLayout(8, (2, 2))).transform(rows)
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    found = fit_basis(start, blocks, 2, RowLayout(8, (2, 2))).transform(rows)
    assert found.dtype == torch.float32
    assert torch.allclose(found.abs(), expected.abs(), atol=1e-3)
