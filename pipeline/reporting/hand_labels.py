"""What labels given by hand changed, and the accuracy by the labels of before."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cache.index import SetIndex
from cache.labels import VERDICTS, LabelJournal
from cache.store import FeatureCache
from pipeline.reporting.predictions import Predictions
from pipeline.statistics.groups import Groups
from pipeline.statistics.intervals import Interval, accuracies


@dataclass(frozen=True)
class HandLabels:
    """Of a set.

    Attributes:
        verdicts: images by the verdict in force, `{class, unsure, bad, none}`.
        changed: images of the run that have another label than in the data.
        valid_changed: those of them that its accuracy is of.
        before: that accuracy by the labels in the data, of the images that have one; None where none was changed.
    """

    verdicts: Mapping[str, int]
    changed: int = 0
    valid_changed: int = 0
    before: Interval | None = None

    @property
    def given(self) -> int:
        """Images with a verdict."""
        return sum(self.verdicts.values())


def find_hand_labels(cache: FeatureCache, index: SetIndex, valid: Predictions, groups: Groups) -> HandLabels:
    """Compare the set as it is with what was extracted; `valid` are predictions of the images that were held out."""
    counts = LabelJournal.load(cache.path, index.name).counts()
    verdicts = {kind: counts[kind] for kind in VERDICTS}
    in_data = {image.path: image.label for image in cache.extracted(index.name).images}
    changed = [image for image in index.images if image.label != in_data[image.path]]
    places = {name: number for number, name in enumerate(index.classes)}
    before = np.array([places.get(in_data[image.path], -1) for image in valid.images])
    known = before >= 0
    differ = int((before[known] != valid.truth[known]).sum())
    if not differ:
        return HandLabels(verdicts, len(changed))
    numbers = groups.numbers([image for image, kept in zip(valid.images, known, strict=True) if kept])
    top1 = accuracies(valid.log_probs[known], before[known], numbers)["top1"]
    return HandLabels(verdicts, len(changed), differ, top1)
