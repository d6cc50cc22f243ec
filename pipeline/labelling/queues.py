"""The three queues of a session as the page shows them: what to fix, what to label next, and what to look through."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.console import named
from pipeline.errors import LabelError
from pipeline.labelling.pool import FEWEST
from pipeline.labelling.ridge import NO_LABEL
from pipeline.labelling.session import RANDOM_SHARE, Session

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
            drawn = [place for place in session.order.tolist() if place in session.drawn and place in there][:count]
            others = waiting[[place not in session.drawn for place in waiting.tolist()]]
            chosen = session.pool.next(count, others, self._margins())
            shown = self._mixed(drawn, chosen)[:count]
            return {"kind": "label", "left": len(waiting), "items": self._items(torch.tensor(shown))}

    def _mixed(self, drawn: list[int], chosen: list[int]) -> list[int]:
        """Random places among the chosen ones, so that they have their share of all labels."""
        verdicts = self._session.verdicts()
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

    def explore(
        self,
        count: int,
        like: str | None = None,
        label: str | None = None,
        likely: str | None = None,
        split: str | None = None,
    ) -> dict[str, Any]:
        """Images most similar to one, of a class, `likely` of one without a label, or of a split; else all.

        Those for validation are left out while they have no label.
        """
        session = self._session
        with session.lock:
            hidden = session.unlabelled()
            places = torch.tensor([p for p in session.order.tolist() if not (p in session.drawn and hidden[p])])
            if like is not None:
                units = session.contents.units
                similar = units[places] @ units[session.known(like)]
                places = places[similar.argsort(descending=True, stable=True)]
            elif label is not None:
                places = places[session.fitted()[places] == self._number(label)]
            elif likely is not None:
                places = self._taken_for(places, self._number(likely))
            elif split is not None:
                places = places[[session.splits[place] == split for place in places.tolist()]]
            return {"kind": "explore", "left": len(places), "items": self._items(places[:count], near=False)}

    def _number(self, label: str) -> int:
        if label not in self._session.classes:
            raise LabelError(f"there is no class {label[:60]!r}")
        return self._session.classes.index(label)

    def _taken_for(self, places: Tensor, number: int) -> Tensor:
        """Unlabelled images that the head takes for a class, the most probable first."""
        fit, waiting = self._session.retrainer.fit, places[self._session.unlabelled()[places]]
        if fit is None or number >= fit.probabilities.shape[1]:
            return waiting[:0]
        taken = waiting[fit.probabilities[waiting].argmax(1) == number]
        return taken[fit.probabilities[taken, number].argsort(descending=True, stable=True)]

    def items(self, digests: Sequence[str]) -> list[dict[str, Any]]:
        """Of images wherever they stand."""
        with self._session.lock:
            return self._items(torch.tensor([self._session.known(digest) for digest in digests], dtype=torch.int64))

    def _items(self, places: Tensor, near: bool = True) -> list[dict[str, Any]]:
        return [self._item(place, rank, near) for rank, place in enumerate(places.tolist())]

    def _item(self, place: int, rank: int, near: bool) -> dict[str, Any]:
        session = self._session
        image, verdict = session.record(place), session.holding(place)
        random = place in session.drawn and not image.label
        return {
            **self._shown(place),
            "likely": self._every() if random else self._likely(place),
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
        known = [(other, cosine) for other, cosine in found if other in self._session.digests]
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
        labels = session.fitted().unique()  # a class whose last label was taken back is none
        used = labels[(labels != NO_LABEL) & (labels < len(found))]
        best = found[used].topk(min(_LIKELY, len(used)))
        pairs = zip(best.values.tolist(), used[best.indices].tolist(), strict=True)
        return [{"class": session.classes[number], "probability": value} for value, number in pairs if value > 0]

    def _every(self) -> list[dict[str, Any]]:
        """All classes where they are few, in alphabetical order: keys for an image whose guess is hidden."""
        session = self._session
        names = sorted(session.classes[number] for number in session.fitted().unique().tolist() if number != NO_LABEL)
        return [{"class": name, "probability": None} for name in names] if len(names) <= _LIKELY else []
