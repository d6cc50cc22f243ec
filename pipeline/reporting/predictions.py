"""What a head says of the images of a split, and how often it is right, with intervals."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cache.index import ImageRecord, SetIndex
from cache.store import FeatureCache
from pipeline.run import Run
from pipeline.statistics.groups import Groups
from pipeline.statistics.intervals import Floats, Interval, Places, accuracies


@dataclass(frozen=True)
class Predictions:
    """Of N images: `log_probs` (N, C), and `truth` (N,), the places of their classes."""

    images: tuple[ImageRecord, ...]
    log_probs: Floats
    truth: Places

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.log_probs.shape[1])

    @cached_property
    def probabilities(self) -> Floats:
        """(N, C)."""
        found: Floats = np.exp(self.log_probs)
        return found

    @cached_property
    def predicted(self) -> Places:
        """The most probable class of each, (N,)."""
        found: Places = self.probabilities.argmax(1)
        return found

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether that is the true one, (N,)."""
        found: npt.NDArray[np.bool_] = self.predicted == self.truth
        return found

    @cached_property
    def confidence(self) -> Floats:
        """Its probability, (N,)."""
        found: Floats = self.probabilities.max(1)
        return found

    def accuracies(self, groups: Groups) -> dict[str, Interval]:
        """With intervals; the images of a group are not independent."""
        return accuracies(self.log_probs, self.truth, groups.numbers(self.images))


def predict(run: Run, cache: FeatureCache, index: SetIndex, *splits: str) -> Predictions:
    """The run's head on the clean views of some splits, from the cache; of held-out images by heads that saw none."""
    log_probs, labels = run.log_probs(cache, index, *splits)
    return Predictions(index.split(*splits), log_probs.double().numpy(), labels.numpy())
