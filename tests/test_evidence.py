"""Evidence adds up to the difference of two logits, whatever the head and the layout of its rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evidence.attribution import evidence_of, has_cells
from pipeline.evidence.drawing import AGAINST, FOR, draw, shade
from pipeline.heads.head import Head, merge_heads
from pipeline.row_layout import RowLayout

LAYOUTS = [RowLayout(4, (3, 3)), RowLayout(6, (2, 5)), RowLayout(5, (3, 3), 2)]


def head_of(layout: RowLayout, hidden: int, seed: int = 0) -> Head:
    """With weights large enough that units are active and not."""
    generator = torch.Generator().manual_seed(seed)
    head = Head.new(layout.in_features, hidden, 5, generator=generator)
    return Head.from_tensors({name: 3 * tensor for name, tensor in head.state_dict().items()})


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(LAYOUTS), st.sampled_from([0, 1, 16]), st.integers(0, 99))
def test_cells_and_constant_add_up(layout: RowLayout, hidden: int, seed: int) -> None:
    """To the difference of the logits that the head computes in float32; more rows than one batch."""
    head, generator = head_of(layout, hidden, seed), torch.Generator().manual_seed(seed)
    rows = torch.rand(70, layout.in_features, generator=generator)
    mean = torch.rand(layout.in_features, generator=generator)
    logits, found = head(rows), evidence_of(head, rows, mean, layout)
    assert len(found) == len(rows)
    for one, row in zip(found, logits, strict=True):
        top = row.topk(2)
        assert [one.label, one.against] == top.indices.tolist()
        assert one.cells.shape == layout.grid
        assert float(one.cells.sum()) + one.constant == pytest.approx(one.total, abs=1e-9)
        assert one.total == pytest.approx(float(top.values[0] - top.values[1]), abs=1e-4)


def test_a_cell_that_is_as_in_the_mean_image_says_nothing() -> None:
    """And without a hidden layer, replacing a cell by the mean takes away exactly its evidence."""
    layout = RowLayout(4, (3, 3))
    head, mean = head_of(layout, 0), torch.rand(36)
    row = torch.rand(36)
    maps = row.view(4, 9).clone()
    maps[:, 4] = mean.view(4, 9)[:, 4]
    pair = torch.tensor([[1, 3]])
    before, after = (evidence_of(head, one[None], mean, layout, pair)[0] for one in (row, maps.flatten()))
    assert float(after.cells[1, 1]) == 0
    assert after.total == pytest.approx(before.total - float(before.cells[1, 1]), abs=1e-6)


def test_pairs_of_classes_can_be_named() -> None:
    """For one class against another is the negative of the other way round; merged heads have evidence, too."""
    layout = RowLayout(4, (3, 3))
    head = merge_heads([head_of(layout, 8, seed) for seed in range(3)])
    rows, mean = torch.rand(2, 36), torch.rand(36)
    one = evidence_of(head, rows, mean, layout, torch.tensor([[0, 1], [2, 4]]))
    other = evidence_of(head, rows, mean, layout, torch.tensor([[1, 0], [4, 2]]))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a.cells, -b.cells)
        assert a.constant == pytest.approx(-b.constant)


def test_another_head_gives_another_map() -> None:
    """Of the same picture: evidence is of the head, and no edge detector (Adebayo et al., 2018)."""
    layout = RowLayout(16, (7, 7))
    row, mean, pair = torch.rand(1, 784), torch.rand(784), torch.tensor([[0, 1]])
    maps = [evidence_of(head_of(layout, 32, seed), row, mean, layout, pair)[0].cells.flatten() for seed in range(2)]
    assert abs(float(torch.corrcoef(torch.stack(maps))[0, 1])) < 0.5


def test_rows_without_a_map_have_no_cells() -> None:
    """A vector, several vectors, a map of one position."""
    assert not any(map(has_cells, [RowLayout(8), RowLayout(8, None, 2), RowLayout(8, (1, 1))]))
    assert all(map(has_cells, LAYOUTS))


def test_the_picture_is_coloured_where_the_evidence_is() -> None:
    """Blue where it is for the class, orange where it is against it, grey where there is none."""
    layout = RowLayout(1, (2, 2))
    head = Head.from_tensors({"0.weight": torch.tensor([[4.0, -2, 0, 0], [0, 0, 0, 0]]), "0.bias": torch.zeros(2)})
    found = evidence_of(head, torch.ones(1, 4), torch.zeros(4), layout, torch.tensor([[0, 1]]))[0]
    assert found.cells.tolist() == [[4, -2], [0, 0]]
    view = np.full((64, 64, 3), 128, np.uint8)
    picture = np.asarray(shade(view, found)).astype(int)
    corner, other, none = picture[20, 20], picture[20, -20], picture[-20, 20]
    assert corner[2] - corner[0] > 60
    assert FOR[2] > FOR[0]
    assert other[0] - other[2] > 30
    assert AGAINST[0] > AGAINST[2]
    assert np.ptp(none) < 25
    drawn = draw(view, found, "a", "b")
    assert drawn.height > picture.shape[0]
    assert draw(view, found, "a", "b", "answered").height > drawn.height
