"""What to label next: images that cover the feature space, later those that the head is unsure about, spread out.

A set of images covers another as far as that is similar to the most similar of them (facility location, as Wei, Iyer
and Bilmes, Submodularity in Data Subset Selection and Active Learning, ICML 2015, use it): with each label the gain of
all others falls, so that images come from everywhere, and dense parts come first. Once there is a head, only images
with a small margin between its two likeliest classes are asked for.
"""

import torch
from torch import Tensor

REFERENCES = 2048  # images that are to be covered: a random part of a larger set
FEWEST = 100  # labels until a head's margins are asked; measured, docs/decisions/labelling.md
CANDIDATES = 3  # for each image that is asked for, those with the smallest margins
POWER = 4.0  # of a cosine


class Pool:
    """N images by their features of unit length, `units` (N, K); `order` are places of those to train on, at random."""

    def __init__(self, units: Tensor, order: Tensor) -> None:
        self._units = units
        self._references = units[order[:REFERENCES]]
        self._first = order[:REFERENCES]
        self._cover = torch.zeros(len(self._references))

    def cover(self, labelled: Tensor) -> None:
        """Start from what the training images at these places (k,) cover."""
        self._cover = torch.zeros(len(self._references))
        self.add(labelled)

    def add(self, labelled: Tensor) -> None:
        """These images (k,) have a label now, and are trained on."""
        for some in labelled.split(REFERENCES) if len(labelled) else ():
            self._cover = torch.maximum(self._cover, self._similar(some).amax(1))

    def next(self, count: int, waiting: Tensor, margins: Tensor | None) -> list[int]:
        """Places of `count` images to label next, of those that are `waiting` (k,).

        `margins` (N,) are differences of a head's two largest probabilities; without them the references are asked for.
        """
        if margins is None:
            few = self._first[torch.isin(self._first, waiting)]
            candidates = few if len(few) else waiting[:REFERENCES]
        else:
            candidates = waiting[margins[waiting].argsort(stable=True)[: CANDIDATES * count]]
        similar, cover, chosen = self._similar(candidates), self._cover.clone(), list[int]()
        free = torch.ones(len(candidates), dtype=torch.bool)
        for _ in range(min(count, len(candidates))):
            gains = (similar - cover[:, None]).clamp_min_(0).sum(0).masked_fill(~free, -1.0)
            best = int(gains.argmax())
            free[best] = False
            cover = torch.maximum(cover, similar[:, best])
            chosen.append(int(candidates[best]))
        return chosen

    def _similar(self, places: Tensor) -> Tensor:
        """Of the references to the images at these places (k,), (M, k), 0 to 1."""
        return (self._references @ self._units[places].T).clamp_min_(0).pow_(POWER)
