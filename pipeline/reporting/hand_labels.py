"""What labels given by hand changed, and the accuracy by the labels of before."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cache.index import SetIndex
from cache.labels import VERDICTS, LabelJournal
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.run import Run
from pipeline.statistics.groups import Groups
from pipeline.statistics.intervals import Interval, accuracies


@dataclass(frozen=True)
class HandLabels:
    """Of a set.

    Attributes:
        verdicts: images by the verdict in force, `{class, unsure, bad, none}`.
        changed: images that have another label than in the data, or are left out since.
        valid_changed: validation images among them.
        before: accuracy of the validation images as they were extracted; None where none was changed, or heads that
            did not see them made the run's.
    """

    verdicts: Mapping[str, int]
    changed: int = 0
    valid_changed: int = 0
    before: Interval | None = None

    @property
    def given(self) -> int:
        """Images with a verdict."""
        return sum(self.verdicts.values())


def find_hand_labels(run: Run, cache: FeatureCache, index: SetIndex, groups: Groups) -> HandLabels:
    """Compare the set as it is with what was extracted, and score the run's head by the labels of then."""
    extracted = cache.extracted(index.name).labelled
    counts = LabelJournal.load(cache.path, index.name).counts(cache.extracted(index.name))
    now = {image.path: image.label for image in index.images}
    changed = [image for image in extracted.images if now.get(image.path) != image.label]
    held = [image for image in extracted.images if image.split == "valid"]
    differ = sum(now.get(image.path) != image.label for image in held)
    verdicts = {kind: counts[kind] for kind in VERDICTS}
    if not differ or run.held_out is not None:
        return HandLabels(verdicts, len(changed), differ)
    places = {name: number for number, name in enumerate(run.classes)}
    truth = np.array([places.get(image.label, len(places)) for image in held])
    log_probs = np.full((len(held), len(places) + 1), -np.inf)  # the last of classes that are no more
    with torch.inference_mode():
        for positions, block in cache.blocks([(image.key, CLEAN_VIEW) for image in held]):
            log_probs[positions, :-1] = run.head(run.basis.apply(block)).double().numpy()
    numbers = [groups.of.get(image.digest, -1 - place) for place, image in enumerate(held)]
    return HandLabels(verdicts, len(changed), differ, accuracies(log_probs, truth, numbers)["top1"])
