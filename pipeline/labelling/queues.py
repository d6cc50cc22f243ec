"""The three queues of a session as the page shows them: what to fix, what to label next, and what to look through."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cache.index import UNLABELLED
from pipeline.console import named
from pipeline.errors import LabelError
from pipeline.labelling.pool import FEWEST
from pipeline.labelling.ridge import NO_LABEL
from pipeline.labelling.session import RANDOM_SHARE, Session

QUEUES = ("fix", "label", "explore")
_LIKELY = 5  # classes that are offered, as many as number keys
_MOST_NEAR = 8  # near-duplicates that are shown beside an image


class Queues:
    """Items of a session's queues, as JSON objects (docs/labelling.md)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        links: dict[str, dict[str, float]] = {}
        digest_of = {image.path: image.digest for image in session.index.images}
        for pair in session.contents.duplicates.pairs:
            a, b = digest_of[pair.a], digest_of[pair.b]
            if a != b:
                links.setdefault(a, {})[b] = links.setdefault(b, {})[a] = pair.cosine
        self._links = links

    def fix(self, count: int) -> dict[str, Any]:
        """Possible label errors that nobody has decided on, those that agree least with their label first."""
        with self._session.lock:
            places = self.issues()
            return {"kind": "fix", "left": len(places), "items": self._items(places[:count])}

    def issues(self) -> Tensor:
        """Places of the possible label errors, in their order."""
        session, ridge = self._session, self._session.ridge
        if ridge is None or not ridge.known.any():
            return torch.empty(0, dtype=torch.int64)
        labels = session.fitted()
        checked = (labels != NO_LABEL) & ridge.known[labels] & ~session.decided
        places = checked.nonzero().flatten()
        agreement = ridge.agreement[places]
        own = agreement.gather(1, labels[places, None]).squeeze(1)
        issues = agreement.argmax(1) != labels[places]
        return places[issues][own[issues].argsort(stable=True)]

    def label(self, count: int) -> dict[str, Any]:
        """Unlabelled images in the order in which labels bring most, with their share of random ones."""
        session = self._session
        with session.lock:
            waiting = session.waiting()
            there = set(waiting.tolist())
            drawn = [place for place in session.order.tolist() if place in session.random and place in there][:count]
            others = waiting[[place not in session.random for place in waiting.tolist()]]
            chosen = session.pool.next(count, others, self._margins())
            shown = self._mixed(drawn, chosen)[:count]
            return {"kind": "label", "left": len(waiting), "items": self._items(torch.tensor(shown))}

    def _mixed(self, drawn: list[int], chosen: list[int]) -> list[int]:
        """Random places among the chosen ones, so that they have their share of all labels."""
        verdicts = self._session.journal.verdicts.values()
        given = sum(one.queue in ("label", "random") for one in verdicts)
        random, shown = sum(one.queue == "random" for one in verdicts), list[int]()
        while drawn or chosen:
            due = random < RANDOM_SHARE * (given + len(shown) + 1) - 0.5
            take = drawn if drawn and (due or not chosen) else chosen
            random += take is drawn
            shown.append(take.pop(0))
        return shown

    def _margins(self) -> Tensor | None:
        """Of the last head; None while there are too few labels for it to know what it does not know."""
        fit = self._session.retrainer.fit
        return fit.margins if fit and len(fit.made_of.train) >= FEWEST else None

    def explore(self, count: int, like: str | None, label: str | None, split: str | None) -> dict[str, Any]:
        """Images most similar to one, of a class, or of a split; else all. Those for validation only once decided."""
        session = self._session
        with session.lock:
            hidden = session.random.difference(place for place in session.random if session.decided[place])
            places = torch.tensor([place for place in session.order.tolist() if place not in hidden])
            if like is not None:
                units = session.contents.units
                similar = units[places] @ units[session.known(like)]
                places = places[similar.argsort(descending=True, stable=True)]
            elif label is not None:
                places = self._of_class(places, label)
            elif split is not None:
                places = places[[session.splits[place] == split for place in places.tolist()]]
            return {"kind": "explore", "left": len(places), "items": self._items(places[:count], near=False)}

    def _of_class(self, places: Tensor, label: str) -> Tensor:
        """Those of a class, then unlabelled ones that the head takes for it, the most probable first."""
        session = self._session
        if label not in session.classes:
            raise LabelError(f"there is no class {label[:60]!r}")
        number = session.classes.index(label)
        own = places[session.fitted()[places] == number]
        fit = session.retrainer.fit
        if fit is None or number >= fit.probabilities.shape[1]:
            return own
        waiting = places[[session.splits[place] == UNLABELLED for place in places.tolist()]]
        taken = waiting[fit.probabilities[waiting].argmax(1) == number]
        return torch.cat([own, taken[fit.probabilities[taken, number].argsort(descending=True, stable=True)]])

    def items(self, digests: Sequence[str]) -> list[dict[str, Any]]:
        """Of images wherever they stand."""
        with self._session.lock:
            return self._items(torch.tensor([self._session.known(digest) for digest in digests], dtype=torch.int64))

    def _items(self, places: Tensor, near: bool = True) -> list[dict[str, Any]]:
        return [self._item(place, rank, near) for rank, place in enumerate(places.tolist())]

    def _item(self, place: int, rank: int, near: bool) -> dict[str, Any]:
        session = self._session
        image, verdict = session.record(place), session.journal.holding(session.contents.images[place])
        random = place in session.random and verdict is None
        return {
            **self._shown(place),
            "likely": [] if random else self._likely(place),
            "agreement": self._own(place),
            "random": random,
            "near": self._near(image.digest) if near else [],
            "rank": rank,
            "verdict": verdict.verdict if verdict else None,
        }

    def _shown(self, place: int) -> dict[str, Any]:
        image = self._session.record(place)
        return {"digest": image.digest, "path": named(image.path), "label": image.label or None, "split": image.split}

    def _near(self, digest: str) -> list[dict[str, Any]]:
        """Near-duplicates of an image, the most similar first."""
        found = sorted(self._links.get(digest, {}).items(), key=lambda link: -link[1])
        known = [(other, cosine) for other, cosine in found if self._session.has(other)]
        return [{**self._shown(self._session.known(other)), "cosine": cosine} for other, cosine in known[:_MOST_NEAR]]

    def _own(self, place: int) -> float | None:
        """How much an image agrees with its label; None where that cannot be said."""
        ridge, label = self._session.ridge, int(self._session.fitted()[place])
        if ridge is None or label == NO_LABEL or not ridge.known[label]:
            return None
        return float(ridge.agreement[place, label])

    def _likely(self, place: int) -> list[dict[str, Any]]:
        """The likeliest classes: of a label by the fit that did not see it, else by the head."""
        session, fit = self._session, self._session.retrainer.fit
        label = int(session.fitted()[place])
        if label != NO_LABEL and session.ridge is not None and session.ridge.known.any():
            found = session.ridge.agreement[place]
        elif fit is not None:
            found = fit.probabilities[place]
        else:
            return []
        best = found.topk(min(_LIKELY, len(found)))
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [{"class": session.classes[number], "probability": value} for value, number in pairs if value > 0]
