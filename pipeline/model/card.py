"""The card of a model file, its JSON: what must be in it for the model to be used, and what that may be."""

import math
from collections.abc import Sequence
from typing import Any

from cache.manifest import Manifest
from pipeline.inputs.preprocessing import Preprocessing

_TYPES = {
    "backbone": str,
    "classes": list,
    "manifest": dict,
    "names": dict,
    "preprocessing": dict,
    "set_digest": str,
    "skipped": list,
    "split_seed": int,
}
# Written by every export, but nothing that predicting needs: a model without them is a model.
_OPTIONAL_TYPES = {
    "basis": str,
    "calibration": dict,
    "class_prior": str,
    "images": dict,
    "scores": dict,
    "set": str,
    "training": dict,
    "weights": dict,
}
_SCORED = {"split": str, "images": int, "top1": float, "mean_per_class": float, "when": str}
PRECISIONS = ("float32", "bfloat16")


def card_fault(card: dict[str, Any], outputs: int) -> str:
    """What a card of a model of `outputs` classes lacks, or has that no model has; "" where it can be used."""
    missing = sorted(name for name, kind in _TYPES.items() if type(card.get(name)) is not kind)
    if missing:
        return f"no usable {missing[0]}"
    try:
        base = Manifest.parse(card["manifest"]).base
    except ValueError as error:
        return f"a manifest with {error}"
    if wrong := Preprocessing.of(base).fault(card["preprocessing"]):
        return f"preprocessing by another {wrong}, which this program does not know"
    if base.backbone != card["backbone"] or base.precision not in PRECISIONS:
        return f"backbone {card['backbone']!r} in {base.precision}, unlike its manifest or this program"
    if not _are_texts(card["classes"]) or not len(set(card["classes"])) == len(card["classes"]) == outputs:
        return f"{len(card['classes'])} classes for {outputs} outputs, or classes that are not distinct text"
    if not _are_texts([*card["names"].keys(), *card["names"].values()]):
        return "display names that are not text"
    if not all(isinstance(e, dict) and sorted(e) == ["digest", "path", "reason"] for e in card["skipped"]):
        return "skipped files without path, digest and reason"
    return _fault_of_history(card)


def _fault_of_history(card: dict[str, Any]) -> str:
    """What of how the model came to be cannot be told; "" where all of it can."""
    wrong = [name for name, kind in _OPTIONAL_TYPES.items() if name in card and type(card[name]) is not kind]
    if wrong:
        return f"no usable {wrong[0]}"
    scores, calibration = card.get("scores", {}), card.get("calibration", {})
    scored = scores.get("scored", [])
    if type(scores.get("valid_accuracy", 0.0)) is not float or type(scored) is not list:
        return "scores that are none"
    if not all(map(_is_score, scored)):
        return "scores that are none"
    return "" if _is_calibration(calibration) else "a calibration that is none"


def _is_calibration(found: dict[str, Any]) -> bool:
    """Whether it has temperatures, and pairs of errors and of their floors by split, as far as it has anything."""
    for errors in (found.get("ece", {}), found.get("floor", {})):
        if not _are_pairs(errors):
            return False
    flip = found.get("flip_temperature")
    if flip is not None and not (type(flip) is float and 0 < flip < math.inf):
        return False
    return not found.get("ece") or type(found.get("temperature")) is float


def _is_score(one: object) -> bool:
    """Whether it is an evaluation: `top5` is None with five classes or fewer, earlier ones have no `intervals`."""
    if not (isinstance(one, dict) and _has(one, _SCORED) and _are_pairs(one.get("intervals", {}))):
        return False
    return one.get("top5", "") is None or type(one.get("top5")) is float


def _are_pairs(values: object) -> bool:
    """Whether it is an object of pairs of numbers."""
    pairs = list(values.values()) if isinstance(values, dict) else [None]
    return all(isinstance(pair, list) and [type(value) for value in pair] == [float, float] for pair in pairs)


def _has(values: dict[str, Any], types: dict[str, type]) -> bool:
    return all(type(values.get(name)) is kind for name, kind in types.items())


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
