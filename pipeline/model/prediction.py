"""What a model says of an image: its most probable classes, and whether it answers at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict  # which pydantic wants before Python 3.12

from pipeline.console import counted
from pipeline.model.card import ModelCard
from pipeline.statistics.conformal import in_sets

NONE_OF = "probably none of"  # begins the reason where a picture is taken for unknown
# As `predict --json` and the service give it; `class` is `label` under its earlier name, until 1.0.
ScoreJson = TypedDict("ScoreJson", {"label": str, "class": str, "name": str, "probability": float})


class PredictionJson(TypedDict):
    """A prediction as `predict --json` and the service give it; `set` is there where the model has thresholds."""

    top: list[ScoreJson]
    answered: bool
    reason: str
    unknown_p: float | None
    set: NotRequired[list[str]]


@dataclass(frozen=True)
class Outputs:
    """What a model computes of B images.

    Attributes:
        log_probs: (B, C) float32; NaN of an image that could not be decoded.
        p_values: fraction of known images that are as unlike the training images, or more, (B,); None of a model
            without a detector of unknown images.
        rows: of the backbone, (B, D); None where they are not kept.
    """

    log_probs: Tensor
    p_values: Tensor | None = None
    rows: Tensor | None = None

    def __getitem__(self, index: int) -> "Outputs":
        """Of one image."""
        one = slice(index, index + 1)
        p_values, rows = (None if part is None else part[one] for part in (self.p_values, self.rows))
        return Outputs(self.log_probs[one], p_values, rows)

    @classmethod
    def empty(cls, images: int, classes: int, detects: bool) -> "Outputs":
        """To be filled in."""
        return cls(
            torch.full((images, classes), torch.nan),
            torch.full((images,), torch.nan, dtype=torch.float64) if detects else None,
        )

    def fill(self, indexes: Sequence[int], some: "Outputs") -> None:
        """Those of the images at these indexes."""
        self.log_probs[indexes] = some.log_probs
        if self.p_values is not None and some.p_values is not None:
            self.p_values[indexes] = some.p_values


@dataclass(frozen=True)
class ClassScore:
    """A class, its display name and its probability."""

    label: str
    name: str
    probability: float

    def as_json(self) -> ScoreJson:
        """With the label under both of its names."""
        return {"label": self.label, "class": self.label, "name": self.name, "probability": self.probability}


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        path: of the image; None where it was not given as one.
        top: most probable classes, the likeliest first.
        reason: why the model does not answer; "" where it does.
        unknown_p: fraction of known images that are as unlike the training images, or more; None of a model without a
            detector of unknown images.
        set: classes that hold the true one as often as was asked at export; None of a model without thresholds.
    """

    path: Path | None
    top: tuple[ClassScore, ...]
    reason: str = ""
    unknown_p: float | None = None
    set: tuple[str, ...] | None = None

    @property
    def answered(self) -> bool:
        """Whether the model answers."""
        return not self.reason

    def as_json(self) -> PredictionJson:
        """Without the path."""
        found: PredictionJson = {
            "top": [score.as_json() for score in self.top],
            "answered": self.answered,
            "reason": self.reason,
            "unknown_p": self.unknown_p,
        }
        return found if self.set is None else {**found, "set": [*self.set]}


def prediction_of(card: ModelCard, outputs: Outputs, top_k: int, path: Path | None = None) -> Prediction:
    """What the model of a card says of the one image that `outputs` are of."""
    log_probs, classes = outputs.log_probs[0], card.classes
    values, indexes = log_probs.exp().topk(min(top_k, len(classes)))
    found = [(classes[index], value) for index, value in zip(indexes.tolist(), values.tolist(), strict=True)]
    top = tuple(ClassScore(label, card.names.get(label, label), value) for label, value in found)
    unknown_p = None if outputs.p_values is None else float(outputs.p_values[0])
    inside = None
    if card.sets:
        there = in_sets(log_probs.double().numpy()[None], np.array(card.sets.least))[0]
        inside = tuple(classes[index] for index in log_probs.argsort(descending=True).tolist() if there[index])
    return Prediction(path, top, _reason(card, top[0].probability, unknown_p), unknown_p, inside)


def answers(card: ModelCard, outputs: Outputs) -> Tensor:
    """Whether the model of a card answers each image, (B,)."""
    probabilities, p_values = outputs.log_probs.exp().amax(1).tolist(), outputs.p_values
    unknown = [None] * len(probabilities) if p_values is None else p_values.tolist()
    return torch.tensor([not _reason(card, *both) for both in zip(probabilities, unknown, strict=True)])


def _reason(card: ModelCard, probability: float, unknown_p: float | None) -> str:
    """Why the model does not answer; "" where it does."""
    if card.unknown and unknown_p is not None and unknown_p < card.unknown.false_alarms:
        return f"{NONE_OF} the {counted(len(card.classes), 'class')}"
    if card.rejection and probability < card.rejection.threshold:
        return f"not sure enough: {probability:.1%}, answers start at {card.rejection.threshold:.1%}"
    return ""
