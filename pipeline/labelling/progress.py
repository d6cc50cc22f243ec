"""How far the labelling of a session is, in numbers: counts, accuracy, pace, errors found, what more would bring."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from typing import Any

from cache.labels import EXCLUDING, VERDICTS, Verdict
from pipeline.console import counted
from pipeline.inputs.folders import shown
from pipeline.labelling.queues import Queues
from pipeline.labelling.retraining import AHEAD, FEWEST_TO_FORECAST, Fit
from pipeline.labelling.session import Session
from pipeline.statistics.intervals import Interval

RECENT = 100  # reviewed labels that the rate of errors is of, and verdicts that the pace is of
_PAUSE = 120.0  # seconds between two verdicts: longer, and nobody was working
_ENOUGH = 5  # errors found per 100 reviewed: below, most of the rest are correct labels


def state(session: Session, queues: Queues, names: dict[str, str], run: str) -> dict[str, Any]:
    """What the page shows beside the queues, as a JSON object (docs/labelling.md)."""
    with session.lock:
        verdicts, labels = session.verdicts(), session.labels()
        trained, of_class = (
            labels.labels[some].bincount(minlength=len(session.classes)).tolist()
            for some in (labels.train, session.labelled())
        )
        used = {*session.index.classes, *(session.classes[number] for number in labels.labels.unique() if number >= 0)}
        fit, kinds = session.retrainer.fit, Counter[str](one.verdict for one in verdicts)
        reviewed = [one for one in verdicts if one.queue == "fix" and one.verdict != "unsure"]
        errors = [is_error(one, session.journal.label_in_data(one.digest)) for one in reviewed]
        valid = [wrong for one, wrong in zip(reviewed, errors, strict=True) if one.split == "valid"]
        decisions = [wrong for one, wrong in zip(reviewed, errors, strict=True) if one.number == one.batch]
        absent = [name for name in sorted(used) if not trained[session.classes.index(name)]]
        left = {"fix": len(queues.issues()), "label": len(session.waiting())}
        return {
            "set": session.index.name,
            "classes": sorted(used),
            "names": names,
            "counts": {name: of_class[number] for number, name in enumerate(session.classes) if name in used},
            "train": len(labels.train),
            "valid": len(labels.valid),
            "unlabelled": int(session.unlabelled().sum()),
            "labels": len(verdicts),
            "by_verdict": {kind: kinds[kind] for kind in VERDICTS},
            "reviewed": len(reviewed),
            "changed": sum(errors),
            "per_100": errors_per_100(decisions),
            "valid_reviewed": len(valid),
            "valid_changed": sum(valid),
            "accuracy": _accuracy(fit.accuracy, fit) if fit else None,
            "accuracy_before": _accuracy(fit.accuracy_before, fit) if fit else None,
            "training": {
                "running": session.retrainer.running,
                "seconds": fit.seconds if fit else None,
                "labels": fit.made_of.verdicts if fit else 0,
                "error": session.retrainer.error,
            },
            "forecast": {"labels": AHEAD, "gain": fit.gain} if fit and fit.gain is not None else None,
            "images_per_hour": pace(verdicts),
            "left": left,
            "last": _last(session),
            "run": run,
            "advice": _advice(session, fit, decisions, left, absent),
        }


def is_error(one: Verdict, in_data: str) -> bool:
    """Whether a reviewed label, that of the data, was wrong."""
    return one.verdict in EXCLUDING or one.new != in_data


def errors_per_100(wrong: Sequence[bool]) -> float | None:
    """Errors found among the last reviewed labels, near-duplicates as one, per 100; None before the tenth."""
    last = wrong[-RECENT:]
    return 100 * sum(last) / len(last) if len(last) >= 10 else None


def pace(verdicts: Sequence[Verdict]) -> float | None:
    """Verdicts an hour, of the last ones, without pauses; None before the tenth."""
    times = [datetime.fromisoformat(one.time).timestamp() for one in verdicts[-RECENT:]]
    worked = [later - earlier for earlier, later in pairwise(times) if later - earlier < _PAUSE]
    return 3600 * len(worked) / sum(worked) if len(worked) >= 10 and sum(worked) > 0 else None


def _accuracy(found: Interval | None, fit: Fit) -> dict[str, Any] | None:
    return {**asdict(found), "images": len(fit.made_of.valid)} if found else None


def _last(session: Session) -> dict[str, Any] | None:
    """What undo would take back."""
    if not (lines := session.journal.last(session.digests)):
        return None
    first = lines[0]
    return {"number": first.number, "verdict": first.verdict, "class": first.new or None, "images": len(lines)}


def _advice(
    session: Session, fit: Fit | None, reviewed: Sequence[bool], left: dict[str, int], absent: Sequence[str]
) -> str | None:
    """One sentence on what matters most now."""
    rate = errors_per_100(reviewed)
    if session.contents.refusal and not left["label"]:
        return session.contents.refusal
    if fit is None:
        return None if session.labels().trainable else "Label images of two classes: then a head is trained."
    if absent:
        return f"No training image has the class {shown(list(absent))}: a head cannot predict it."
    if fit.accuracy is None:
        return "There are no validation images, so that the accuracy is unknown."
    if len(fit.made_of.valid) < FEWEST_TO_FORECAST // 2:
        return f"With {counted(len(fit.made_of.valid), 'validation image')} the accuracy is a rough guess."
    if left["fix"] and rate is not None and len(reviewed) >= RECENT and rate < _ENOUGH:
        return f"{rate:.0f} of the last {RECENT} reviewed labels were wrong: most that are left are correct."
    return None
