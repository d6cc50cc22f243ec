"""How far the labelling of a session is, in numbers: counts, accuracy, pace, errors found, what more would bring."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from typing import Any

from cache.index import UNLABELLED
from cache.labels import EXCLUDING, VERDICTS, Verdict
from pipeline.labelling.queues import Queues
from pipeline.labelling.retraining import FEWEST_TO_FORECAST, Fit
from pipeline.labelling.session import Session
from pipeline.statistics.intervals import Interval

RECENT = 100  # reviewed labels that the rate of errors is of, and verdicts that the pace is of
_PAUSE = 120.0  # seconds between two verdicts: longer, and nobody was working
_ENOUGH = 5  # errors found per 100 reviewed: below, most of the rest are correct labels


def state(session: Session, queues: Queues, names: dict[str, str], run: str) -> dict[str, Any]:
    """What the page shows beside the queues, as a JSON object (docs/labelling.md)."""
    with session.lock:
        verdicts = sorted(session.journal.verdicts.values(), key=lambda one: one.number)
        labels = session.labels()
        of_class = labels.labels[labels.train].bincount(minlength=len(session.classes)).tolist()
        fit, kinds = session.retrainer.fit, session.journal.counts()
        reviewed = [one for one in verdicts if one.queue == "fix"]
        valid = [one for one in reviewed if one.split == "valid"]
        left = {"fix": len(queues.issues()), "label": len(session.waiting())}
        return {
            "set": session.index.name,
            "classes": sorted(session.classes),
            "names": names,
            "counts": {name: of_class[number] for number, name in enumerate(session.classes)},
            "train": len(labels.train),
            "valid": len(labels.valid),
            "unlabelled": session.splits.count(UNLABELLED),
            "labels": len(verdicts),
            "by_verdict": {kind: kinds[kind] for kind in VERDICTS},
            "reviewed": len(reviewed),
            "changed": sum(map(is_error, reviewed)),
            "per_100": errors_per_100(reviewed),
            "valid_reviewed": len(valid),
            "valid_changed": sum(map(is_error, valid)),
            "accuracy": _accuracy(fit.accuracy, fit) if fit else None,
            "accuracy_before": _accuracy(fit.accuracy_before, fit) if fit else None,
            "training": {
                "running": session.retrainer.running,
                "seconds": fit.seconds if fit else None,
                "labels": fit.made_of.verdicts if fit else 0,
            },
            "forecast": _forecast(fit),
            "images_per_hour": pace(verdicts),
            "left": left,
            "last": _last(session),
            "run": run,
            "advice": _advice(session, fit, reviewed, left),
        }


def is_error(one: Verdict) -> bool:
    """Whether a reviewed label was wrong."""
    return one.verdict in EXCLUDING or (one.verdict == "class" and one.new != one.old)


def errors_per_100(reviewed: Sequence[Verdict]) -> float | None:
    """Errors found among the last reviewed labels, per 100; None before the tenth."""
    last = reviewed[-RECENT:]
    return 100 * sum(map(is_error, last)) / len(last) if len(last) >= 10 else None


def pace(verdicts: Sequence[Verdict]) -> float | None:
    """Verdicts an hour, of the last ones, without pauses; None before the tenth."""
    times = [datetime.fromisoformat(one.time).timestamp() for one in verdicts[-RECENT:]]
    worked = [later - earlier for earlier, later in pairwise(times) if later - earlier < _PAUSE]
    return 3600 * len(worked) / sum(worked) if len(worked) >= 10 and sum(worked) > 0 else None


def _accuracy(found: Interval | None, fit: Fit) -> dict[str, Any] | None:
    return {**asdict(found), "images": len(fit.made_of.valid)} if found else None


def _forecast(fit: Fit | None) -> dict[str, Any] | None:
    if fit is None or fit.gain is None:
        return None
    return {"labels": fit.gain.images, "gain": fit.gain.value, "low": fit.gain.low, "high": fit.gain.high}


def _last(session: Session) -> dict[str, Any] | None:
    """What undo would take back."""
    chains = session.journal.chains.values()
    batch = max((chain[-1].batch for chain in chains), default=0)
    lines = [chain[-1] for chain in chains if chain[-1].batch == batch]
    if not lines:
        return None
    first = min(lines, key=lambda one: one.number)
    return {"number": first.number, "verdict": first.verdict, "class": first.new or None, "images": len(lines)}


def _advice(session: Session, fit: Fit | None, reviewed: Sequence[Verdict], left: dict[str, int]) -> str | None:
    """One sentence on what matters most now."""
    rate = errors_per_100(reviewed)
    if session.contents.refusal and not left["label"]:
        return session.contents.refusal
    if fit is None:
        return "Label images of two classes: then a head is trained."
    if fit.accuracy is None:
        return "There are no validation images, so that the accuracy is unknown."
    if len(fit.made_of.valid) < FEWEST_TO_FORECAST // 2:
        return f"With {len(fit.made_of.valid)} validation images the accuracy is a rough guess."
    if left["fix"] and rate is not None and len(reviewed) >= RECENT and rate < _ENOUGH:
        return f"{rate:.0f} of the last {RECENT} reviewed labels were wrong: most that are left are correct."
    return None
