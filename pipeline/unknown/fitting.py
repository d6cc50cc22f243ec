"""Fitting the detector of unknown images on a cache, and how well it tells classes that were kept from a head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.index import ImageRecord
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.bases.moments import Moments
from pipeline.config.heads import WIDEST
from pipeline.cross_validation.held_out import HeldOut, HeldOutPredictions
from pipeline.row_layout import layout_of
from pipeline.statistics.conformal import p_values as conformal_p_values
from pipeline.unknown.detector import Distance, UnknownDetector, pooled, scale_of, unlikeness

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class FittedDetector:
    """A detector and what it says of the images it was fitted on, each by what the other folds say.

    Attributes:
        detector: of the exported model.
        p_values: of the images, in their order, (N,).
        auroc_left_out: mean probability that an image of a class that was kept from the head is more unlike than one of
            the other classes; None of too few classes.
    """

    detector: UnknownDetector
    p_values: Tensor
    auroc_left_out: float | None


def unfit(cache: FeatureCache) -> str:
    """Why no detector is fitted on rows of this cache; "" where one can be."""
    if cache.reduction:
        return "the rows of this cache are reduced: export from the complete one"
    layout = layout_of(cache.manifest)
    width = pooled(layout, torch.zeros(1, layout.in_features)).shape[1]
    return f"rows of {width:,} features are too wide, at most {WIDEST:,} are allowed" if width > WIDEST else ""


def fit_detector(
    cache: FeatureCache, held_out: HeldOutPredictions, of_model: Callable[[Tensor], Tensor]
) -> FittedDetector:
    """Of images with `held_out` predictions, which `of_model` turns into those of the exported model."""
    rows, labels = pooled_rows(cache, held_out.images), held_out.labels
    classes = len(held_out.folds[0].classes)

    def moments(places: Tensor) -> Moments:
        return moments_of(rows[places], labels[places], classes)

    every, distances = moments(torch.arange(len(rows))), torch.empty(len(rows))
    for one in held_out.folds:
        of_others = Distance.of(every - moments(one.part.held_out))
        distances[one.part.held_out] = of_others.of_rows(rows[one.part.held_out])
    log_probs = of_model(held_out.log_probs)
    scale = scale_of(distances, log_probs)
    scores = unlikeness(distances, log_probs, scale)
    known = scores[held_out.one_of_each_group].sort().values  # the others are no independent evidence
    detector = UnknownDetector(Distance.of(every), scale, known)
    p_values = torch.from_numpy(conformal_p_values(known.double().numpy(), scores.double().numpy()))
    areas = [_auroc(one, rows, labels, moments(one.part.trained), of_model) for one in held_out.without_classes]
    found = [area for area in areas if area is not None]
    return FittedDetector(detector, p_values, float(np.mean(found)) if found else None)


def _auroc(
    one: HeldOut, rows: Tensor, labels: Tensor, trained: Moments, of_model: Callable[[Tensor], Tensor]
) -> float | None:
    """Area under the ROC curve, of classes that were kept from a head against held-out images of the others."""
    from sklearn.metrics import roc_auc_score

    held_out = one.part.held_out
    unknown = ~one.classes[labels[held_out]]
    if unknown.all() or not unknown.any() or not trained.counts.any():
        return None
    distances, log_probs = Distance.of(trained).of_rows(rows[held_out]), of_model(one.log_probs)[:, one.classes]
    scores = unlikeness(distances, log_probs, scale_of(distances[~unknown], log_probs[~unknown]))
    return float(roc_auc_score(unknown.numpy(), scores.numpy()))


def moments_of(rows: Tensor, labels: Tensor, classes: int) -> Moments:
    """Of pooled rows (N, R) with labels (N,), in float64."""
    found = Moments.zeros(rows.shape[1], classes, torch.float64)
    for block, theirs in zip(rows.split(_ROWS_AT_ONCE), labels.split(_ROWS_AT_ONCE), strict=True):
        found.add(block.double(), theirs)
    return found


def pooled_rows(cache: FeatureCache, images: Sequence[ImageRecord]) -> Tensor:
    """Of the clean views, (N, R)."""
    layout = layout_of(cache.manifest)
    keys = [(image.key, CLEAN_VIEW) for image in images]
    width = pooled(layout, torch.zeros(1, layout.in_features)).shape[1]
    rows = torch.empty(len(keys), width)
    for positions, block in cache.blocks(keys, _ROWS_AT_ONCE):
        rows[torch.from_numpy(positions)] = pooled(layout, torch.from_numpy(block.astype(np.float32)))
    return rows
