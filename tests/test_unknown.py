"""The detector of unknown images: its distance by the definition, and its p-values."""

import numpy as np
import pytest
import torch

from pipeline.bases.moments import Moments
from pipeline.row_layout import RowLayout
from pipeline.unknown.detector import SHRINKAGE, Distance, UnknownDetector, pooled, scale_of
from pipeline.unknown.fitting import moments_of


def drawn(images: int = 200, classes: int = 4, width: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled rows of classes with means of their own, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    means = torch.randn(classes, width, generator=generator)
    spread = torch.linspace(0.1, 1, width)
    return means[labels] + spread * torch.randn(images, width, generator=generator), labels


def test_the_distance_is_that_of_its_definition() -> None:
    """Mahalanobis from the nearest class mean, less that from the mean of all, by covariances that are shrunken."""
    rows, labels = drawn()
    x = rows.double().numpy()
    means = np.stack([x[labels.numpy() == one].mean(0) for one in range(4)])
    within = np.cov((x - means[labels.numpy()]).T, bias=True)
    total = np.cov(x.T, bias=True)
    for matrix in (within, total):
        matrix += SHRINKAGE * matrix.diagonal().mean() * np.eye(10)
    nearest = np.min([np.einsum("nr,rs,ns->n", x - m, np.linalg.inv(within), x - m) for m in means], 0)
    centred = x - x.mean(0)
    expected = nearest - np.einsum("nr,rs,ns->n", centred, np.linalg.inv(total), centred)
    found = Distance.of(moments_of(rows, labels, 4)).of_rows(rows)
    assert found.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_moments_of_the_other_folds_are_what_is_left() -> None:
    """By subtraction, and a class without images has no mean to be near to."""
    rows, labels = drawn()
    some = torch.arange(200) < 50
    left = moments_of(rows, labels, 5) - moments_of(rows[some], labels[some], 5)
    one, other = Distance.of(left), Distance.of(moments_of(rows[~some], labels[~some], 5))
    assert one.class_means.shape == (4, 10)
    assert torch.allclose(one.of_rows(rows), other.of_rows(rows), atol=1e-3)


def test_images_of_another_kind_have_small_p_values() -> None:
    """And further ones of the same kind even ones; the detector is the same from its file."""
    rows, labels = drawn(1200)
    logits = (4 * torch.nn.functional.one_hot(labels, 4) + torch.randn(1200, 4)).log_softmax(1)
    fitted, known, fresh = rows[:400], slice(400, 800), slice(800, 1200)
    distance = Distance.of(moments_of(fitted, labels[:400], 4))
    distances = distance.of_rows(rows)
    scale = scale_of(distances[known], logits[known])
    detector = UnknownDetector(distance, scale, torch.zeros(1))
    detector = UnknownDetector(distance, scale, detector.scores(rows[known], logits[known]).sort().values)
    p_values = detector.p_values(rows[fresh], logits[fresh])
    assert float((p_values < 0.1).double().mean()) == pytest.approx(0.1, abs=0.05)
    unlike = detector.p_values(rows[fresh] + 5, torch.randn(400, 4))
    assert float((unlike < 0.1).double().mean()) > 0.9
    read = UnknownDetector.from_tensors(detector.tensors(), 10)
    assert torch.equal(read.p_values(rows, logits), detector.p_values(rows, logits))
    with pytest.raises(ValueError, match="shapes"):
        UnknownDetector.from_tensors(detector.tensors(), 11)


def test_one_image_a_class_and_equal_rows_have_a_distance() -> None:
    """Finite, though nothing is within."""
    rows, labels = drawn(4)
    assert Distance.of(moments_of(rows, labels, 4)).of_rows(rows).isfinite().all()
    same = torch.ones(6, 10)
    assert Distance.of(moments_of(same, torch.arange(6) % 2, 2)).of_rows(same).isfinite().all()


def test_rows_are_pooled_to_unit_vectors() -> None:
    """A map by its mean, a class token before it as it is, vectors as they are."""
    row = torch.arange(12.0)[None] + 1
    assert torch.allclose(pooled(RowLayout(3, (2, 2)), row), torch.nn.functional.normalize(row.view(1, 3, 4).mean(2)))
    assert pooled(RowLayout(4, (1, 2), 1), row).shape == (1, 8)
    assert torch.allclose(pooled(RowLayout(12), row), torch.nn.functional.normalize(row))


def test_sums_in_float64() -> None:
    """As subtraction of nearly equal sums needs it."""
    rows, labels = drawn()
    assert isinstance(found := moments_of(rows, labels, 4), Moments)
    assert found.products.dtype == torch.float64
