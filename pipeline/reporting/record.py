"""What a sweep wrote down, looked over before a page is made of it: a person may have edited it."""

import math
from typing import Any

from pipeline.config import METRICS, HeadSettings
from pipeline.errors import ConfigError

_SWEEP = ("seconds", "basis_seconds", "retrain_seconds")
_BEST = ("mean", "std")
_DIFFERENCE = ("value", "low", "high")


def sweep_fault(result: Any) -> str:
    """What of sweep.json no sweep writes; "" where all of it can be shown."""
    if not isinstance(result, dict) or not _has(result, _SWEEP):
        return "no usable seconds"
    best: Any = result.get("best")
    heads: Any = result.get("heads")
    if not _has(best, _BEST) or not _count(best.get("seeds"), 1) or not _settings(best.get("config")):
        return "no usable best"
    if best.get("won") not in ("default", "search") or not _has(best.get("difference"), _DIFFERENCE):
        return "no usable best"
    corrected = best["difference"].get("corrected"), result.get("searched", {}).get("corrected")
    if not all(one is None or _number(one) for one in corrected):
        return "no usable corrected accuracy"
    if result.get("choose_by") not in METRICS:
        return "no usable choose_by"
    if not isinstance(heads, list) or not heads or not all(map(_is_head, heads)):
        return "no usable heads"
    return ""


def _is_head(one: Any) -> bool:
    if not _has(one, ("valid_accuracy",)) or not _count(one.get("epochs"), 1):
        return False
    return _settings(one.get("config")) and (one.get("valid_loss") is None or _number(one.get("valid_loss")))


def _has(values: Any, numbers: tuple[str, ...]) -> bool:
    return isinstance(values, dict) and all(_number(values.get(name)) for name in numbers)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < 1 << 31


def _settings(config: Any) -> bool:
    """Whether these are settings of a head, others among them or not."""
    try:
        HeadSettings(**{name: config[name] for name in HeadSettings.__dataclass_fields__})
    except (ConfigError, TypeError, KeyError):
        return False
    return True
