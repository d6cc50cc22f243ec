"""How much of "this class rather than the runner-up" comes from each cell of the feature map, exactly.

A head is linear in the row as long as the same hidden units are active. The difference of two logits is then a sum over
the features: of each, the weight times how far it is from the mean of the training images. Sums over the channels of a
cell are its evidence; the rest is the same for every image with these active units. This is gradient times input
(Shrikumar, Greenside and Kundaje, Not Just a Black Box, 2016) of a piecewise linear function, from a reference image.

A cell of the map is computed from most of the picture: evidence is exact for the map, not for pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.heads.head import Head
from pipeline.row_layout import RowLayout

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Evidence:
    """Why one class rather than another, in logits.

    Attributes:
        label: the class that it is for, its place.
        against: the class that it is against.
        cells: part of the difference of the logits that comes from each cell, (height, width) float64.
        constant: what comes from no cell: the head's biases and the mean image, and vectors without a place.
        total: difference of the logits, of `label` less `against`.
    """

    label: int
    against: int
    cells: Tensor
    constant: float
    total: float

    def as_json(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """With the names of the classes."""
        return {
            "class": classes[self.label],
            "against": classes[self.against],
            "cells": self.cells.tolist(),
            "constant": self.constant,
            "total": self.total,
        }


def has_cells(layout: RowLayout) -> bool:
    """Whether rows have a map of several cells."""
    return layout.grid is not None and layout.grid != (1, 1)


@torch.inference_mode()
def evidence_of(
    head: Head, rows: Tensor, mean: Tensor, layout: RowLayout, pairs: Tensor | None = None
) -> list[Evidence]:
    """Of rows (N, D), from the `mean` of the training images (D,), in a `layout` with cells.

    `pairs` (N, 2) are the class that evidence is for and the one it is against; without them, the most probable class
    of each and its runner-up. Sums are in float64.
    """
    found = []
    first, last = ((layer.weight.double(), layer.bias.double()) for layer in (head.first, head.last))
    reference = mean.double()
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        inputs = rows[start : start + _ROWS_AT_ONCE].double()
        hidden = inputs @ first[0].T + first[1]
        logits = hidden.relu() @ last[0].T + last[1] if head.hidden_units else hidden
        chosen = logits.topk(2).indices if pairs is None else pairs[start : start + _ROWS_AT_ONCE]
        label, against = chosen.T
        weights, constant = last[0][label] - last[0][against], last[1][label] - last[1][against]
        if head.hidden_units:
            active = weights * (hidden > 0)
            weights, constant = active @ first[0], constant + active @ first[1]
        constant = constant + weights @ reference
        of_places = (weights * (inputs - reference)).view(len(inputs), layout.channels, layout.positions).sum(1)
        constant = constant + of_places[:, : layout.vectors].sum(1)
        total = logits.gather(1, chosen) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        cells = of_places[:, layout.vectors :].unflatten(1, layout.grid or ())
        values = zip(label.tolist(), against.tolist(), cells, constant.tolist(), total.tolist(), strict=True)
        found += [Evidence(*one) for one in values]
    return found
