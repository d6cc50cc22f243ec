"""How many labels the labelling page saves: `make bench-labelling CACHE=features ARGS="fix --set flowers102"`.

`fix`: 5 % of the training labels are changed, to any class (uniform) or to the most similar one, and an oracle answers
truly. Verdicts until 95 % of the changed labels are found: the queue as it is ranked again after each verdict, beside
the list of the report, which stays as it is; test accuracy of the default head before and after.

`label`: the training images lose their labels, and an oracle gives them back in the order of the page, or in a random
one. Labels until the default head, whose basis is fitted on them, has a validation accuracy, and the forecast of the
next labels beside what they brought.

`page`: seconds of each answer of a page on synthetic rows, half of them without a label, while heads are retrained.
"""

import argparse
import hashlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_labels import Noises
from beside import ROOT, hardware, say

from cache.index import UNLABELLED, ImageRecord, SetIndex
from cache.keys import keys_of, pack_digests
from cache.labels import LabelJournal
from cache.layout import CLEAN_VIEW
from cache.manifest import Base, Manifest
from cache.shard import ShardHeader, write_shard
from cache.store import FeatureCache
from pipeline.bases.clean_rows import clean_rows, narrow
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import default_epochs
from pipeline.heads.side_by_side import fit_side_by_side, steps_of
from pipeline.labelling.contents import Contents
from pipeline.labelling.queues import Queues
from pipeline.labelling.retraining import AHEAD
from pipeline.labelling.session import Session
from pipeline.machine.memory import allowed_bytes
from pipeline.statistics.intervals import accuracies

FOUND = 0.95  # of the changed labels
GOALS = (0.6, 0.7, 0.8)
ROUND = 20  # labels between two heads: a person gives about as many while a head is trained and looked at
EACH = 40  # labels between two default heads


def session_of(cache: FeatureCache, index: SetIndex, folder: Path, contents: Contents | None = None) -> Session:
    """A session on an index, with a journal of its own."""
    contents = contents or Contents.load(cache, index, allowed_bytes(None))
    return Session(index, contents, LabelJournal(folder / "labels.jsonl"))


class DefaultHead:
    """The default head, trained on a part of the training images and scored on another split."""

    def __init__(self, cache: FeatureCache, index: SetIndex, scored: str) -> None:
        trainset = TrainingSet(cache, index, 0, {})
        self._images = index.split("train")
        self._settings = HeadSettings(basis=trainset.default_basis)
        others = index.split(scored)
        self._rows = ImageRows.load(trainset, [*self._images, *others], self._settings.basis, allowed_bytes(None))
        self._others = torch.arange(len(self._images), len(self._images) + len(others))
        self._truth = self._rows.labels[self._others].numpy()

    def accuracy(self, labels: dict[str, int], seed: int = 0) -> dict[str, float]:
        """Of a head of the training images with labels, by digest."""
        chosen = [place for place, image in enumerate(self._images) if image.digest in labels]
        trained = torch.tensor(chosen)
        given = torch.tensor([labels[self._images[place].digest] for place in chosen])
        rows = replace(self._rows, labels=self._rows.labels.clone().index_copy_(0, trained, given))
        data = rows.data(rows.basis(trained), trained, self._others)
        steps = steps_of(data, self._settings, default_epochs(len(trained), self._settings.batch_size))
        (head,) = fit_side_by_side([data], self._settings, [steps], [seed])
        with torch.inference_mode():
            log_probs = head(data.rows[data.valid_rows]).double().numpy()
        found = accuracies(log_probs, self._truth)["top1"]
        return {"value": found.value, "low": found.low, "high": found.high}


def noisy(cache: FeatureCache, index: SetIndex, kind: str, seed: int) -> tuple[SetIndex, dict[str, str]]:
    """The set with 5 % of its training labels changed, and the true labels of those by digest."""
    rows = clean_rows(cache, index, narrow(cache), "train")
    features = np.empty((len(rows.images), rows.width), np.float32)
    for block, places in rows:
        features[places.numpy()] = block.numpy()
    labels = rows.labels.numpy()
    changed = getattr(Noises(features, len(index.classes)), kind)(labels, np.random.default_rng(seed))
    new = {image.digest: index.classes[label] for image, label in zip(rows.images, changed.tolist(), strict=True)}
    images = tuple(
        replace(image, label=new[image.digest]) if image.split == "train" else image for image in index.images
    )
    wrong = {image.digest: image.label for image in rows.images if new[image.digest] != image.label}
    return replace(index, images=images), wrong


def fixing(cache: FeatureCache, index: SetIndex, kind: str, seed: int) -> dict[str, Any]:
    """Verdicts until the changed labels are found, by the queue and by the list that stays as it is."""
    dirty, wrong = noisy(cache, index, kind, seed)
    truth = {image.digest: image.label for image in index.split("train", "valid")}
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(cache, dirty, Path(folder))
        queues, images = Queues(session), session.contents.images
        fixed = [images[place].digest for place in queues.issues().tolist()]
        needed, found, verdicts, seconds = FOUND * len(wrong), list[int](), 0, list[float]()
        while len(found) < needed and len(queues.issues()):
            start = time.perf_counter()
            item = queues.fix(1)["items"][0]
            digest = item["digest"]
            session.verdict([digest], "class", truth[digest], "fix", 0)
            seconds.append(time.perf_counter() - start)
            verdicts += 1
            if digest in wrong:
                found.append(verdicts)
        by_list = [rank for rank, digest in enumerate(fixed, 1) if digest in wrong]
        labels = session.labels()
        training = [session.retrainer.trained(labels).seconds for _ in range(3)]
        fitted = session.fitted().tolist()
        place_of = {name: number for number, name in enumerate(index.classes)}
        corrected = {images[p].digest: place_of[session.classes[fitted[p]]] for p in labels.train.tolist()}
    head = DefaultHead(cache, index, "test")
    before = {image.digest: place_of[image.label] for image in dirty.split("train")}
    clean = {image.digest: place_of[image.label] for image in index.split("train")}
    return {
        "changed": len(wrong),
        "needed": int(np.ceil(needed)),
        "queue": {"found": len(found), "verdicts": found[-1] if found else 0, "reviewed": verdicts},
        "list": {
            "found": min(len(by_list), int(np.ceil(needed))),
            "verdicts": by_list[int(np.ceil(needed)) - 1] if len(by_list) >= needed else None,
            "length": len(fixed),
        },
        "accuracy": {
            "changed": head.accuracy(before),
            "corrected": head.accuracy(corrected),
            "true": head.accuracy(clean),
        },
        "seconds": {"median": float(np.median(seconds)), "p95": float(np.percentile(seconds, 95)), "head": training},
    }


def labelling(cache: FeatureCache, index: SetIndex, order: str, seed: int, contents: Contents) -> dict[str, Any]:
    """Accuracies of the default head and the page's by number of labels, and forecasts beside what came of them."""
    pool = replace(index, images=tuple(_unlabelled(index)))
    truth = {image.digest: image.label for image in index.split("train")}
    place_of = {name: number for number, name in enumerate(index.classes)}
    curve, page, forecasts, rounds = (
        list[tuple[int, float]](),
        list[tuple[int, float]](),
        list[tuple[int, float]](),
        list[float](),
    )
    head, last = DefaultHead(cache, index, "valid"), 0
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(cache, pool, Path(folder), contents)
        session.retrainer.seed = seed
        queues, random = Queues(session), np.random.default_rng(seed)
        while len(waiting := session.waiting()):
            start = time.perf_counter()
            if order == "random":
                drawn = random.permutation(waiting.numpy())[:ROUND]
                digests = [session.contents.images[place].digest for place in drawn.tolist()]
            else:
                digests = [item["digest"] for item in queues.label(ROUND)["items"]]
            for digest in digests:
                session.verdict([digest], "class", truth[digest], "label", 0)
            labels = session.labels()
            if not labels.trainable:
                continue
            session.retrainer.fit = fit = session.retrainer.trained(labels)
            rounds.append(time.perf_counter() - start)
            assert fit.accuracy is not None
            page.append((len(labels.train), fit.accuracy.value))
            if gain := session.retrainer.forecast(labels):
                forecasts.append((len(labels.train), gain))
            if len(labels.train) - last >= EACH or len(waiting) <= ROUND:
                last = len(labels.train)
                fitted = session.fitted().tolist()
                images = session.contents.images
                given = {images[p].digest: place_of[session.classes[fitted[p]]] for p in labels.train.tolist()}
                curve.append((last, head.accuracy(given, seed)["value"]))
    return {"default": curve, "page": page, "forecast": compared(page, forecasts), "seconds": float(np.median(rounds))}


def _unlabelled(index: SetIndex) -> list[Any]:
    """Training images without their labels, and validation images as they are."""
    images = index.split("train", "valid")
    return [replace(one, label="", split=UNLABELLED) if one.split == "train" else one for one in images]


def compared(page: Sequence[tuple[int, float]], forecasts: Sequence[tuple[int, float]]) -> list[dict[str, float]]:
    """Each forecast beside what the next labels brought."""
    labels, values = zip(*page, strict=True)
    found = []
    for count, gain in forecasts:
        if count + AHEAD <= labels[-1]:
            now, then = np.interp([count, count + AHEAD], labels, values)
            found.append({"labels": count, "forecast": gain, "real": float(then - now)})
    return found


def synthetic(folder: Path, count: int) -> FeatureCache:
    """A cache of so many rows of 512 features in 100 classes, half of them unlabelled, a tenth for validation."""
    shape, classes, random = (512,), 100, np.random.default_rng(0)
    base = Base(
        "resnet34", "pooled", "0" * 64, shape, 224, 256, "bilinear-antialias", (0, 0, 0), (1, 1, 1), "rgb-1", "float32"
    )
    cache = FeatureCache.create(folder, Manifest(base))
    centres = random.normal(size=(classes, *shape)).astype(np.float32)
    digests = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(count))
    images = [
        ImageRecord(f"{n}.jpg", digest, "" if n % 2 else str(n // 2 % classes), _split(n), 1, 0)
        for n, digest in enumerate(digests)
    ]
    for start in range(0, count, 1000):
        some = images[start : start + 1000]
        of = np.array([n // 2 % classes for n in range(start, start + len(some))])
        rows = 0.15 * centres[of] + random.normal(size=(len(some), *shape))
        keys = keys_of(pack_digests(image.digest for image in some), CLEAN_VIEW)
        write_shard(folder / "shards", ShardHeader(base.digest, shape), keys, rows.astype(np.float16))
    names = tuple(sorted(map(str, range(classes))))
    cache.save_index(SetIndex("images", "/images", "/images", 0, names, tuple(images)))
    return FeatureCache.open(folder)


def _split(number: int) -> str:
    return UNLABELLED if number % 2 else "valid" if number % 20 == 0 else "train"


def answers(count: int, verdicts: int) -> dict[str, Any]:
    """Seconds of each kind of answer over HTTP, median and the longest, with a second between verdicts."""
    with tempfile.TemporaryDirectory() as folder:
        cache = synthetic(Path(folder) / "cache", count)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{free.getsockname()[1]}/"
        port = address.rstrip("/").rsplit(":", 1)[1]
        command = [sys.executable, "-m", "cli", "label", "--cache", str(cache.path), "--port", port]
        start = time.perf_counter()
        with subprocess.Popen([*command, "--run", f"{folder}/run"], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            found: dict[str, list[float]] = {}
            while process.poll() is None:
                try:
                    _asked(address + "state", None)
                    break
                except OSError:
                    time.sleep(0.2)
            ready = time.perf_counter() - start
            for number in range(verdicts):
                kind = ("fix", "label")[number % 2]
                shown = dict[str, Any]()
                for path in ("queue?kind=explore&n=60&split=unlabelled", "state", f"queue?kind={kind}&n=12"):
                    start = time.perf_counter()
                    shown = _asked(address + path, None)
                    found.setdefault(path.partition("&n")[0], []).append(time.perf_counter() - start)
                digest = shown["items"][0]["digest"]
                verdict = {"digest": digest, "verdict": "class", "class": "1", "queue": kind}
                start = time.perf_counter()
                _asked(address + "verdict", verdict)
                found.setdefault(f"verdict, {kind}", []).append(time.perf_counter() - start)
                time.sleep(1)
            process.send_signal(signal.SIGINT)
        seconds = {path: (float(np.median(values)), max(values)) for path, values in found.items()}
        return {"rows": count, "ready": ready, "seconds": seconds}


def _asked(address: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def reached(curve: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Labels at which the curve passes the goal first, between its points; None where it does not."""
    before, value = 0, 0.0
    for labels, accuracy in curve:
        if accuracy >= goal:
            return before + (labels - before) * (goal - value) / (accuracy - value)
        before, value = labels, accuracy
    return None


def in_words(found: dict[str, list[dict[str, Any]]]) -> str:
    """Labels for each goal, as Markdown."""
    lines = ["| head | goal | random | page | random / page |", "|---|---|---|---|---|"]
    for kind in ("default", "page"):
        for goal in GOALS:
            by_order = {order: [reached(one[kind], goal) for one in runs] for order, runs in found.items()}
            if any(value is None for values in by_order.values() for value in values):
                lines.append(f"| {kind} | {goal:.0%} | {by_order['random']} | {by_order['page']} | |")
                continue
            means = {order: np.array(values, float) for order, values in by_order.items()}
            cells = [f"{values.mean():.0f} ± {values.std():.0f}" for values in means.values()]
            lines.append(
                f"| {kind} | {goal:.0%} | {' | '.join(cells)} | {means['random'].mean() / means['page'].mean():.2f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fix", "label", "page"))
    parser.add_argument("--cache", type=Path, help="of `fix` and `label`")
    parser.add_argument("--set", dest="name", help="image set")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000, help="of `page`")
    options = parser.parse_args(arguments)
    if options.what == "page":
        print(json.dumps({"hardware": hardware(), **answers(options.rows, 30)}))
        return
    cache = FeatureCache.open(options.cache)
    index = cache.index(options.name)
    found: dict[str, list[dict[str, Any]]] = {}
    if options.what == "fix":
        for kind in ("uniform", "similar"):
            for seed in range(options.seeds):
                found.setdefault(kind, []).append(fixing(cache, index, kind, seed))
                say(f"{kind}, seed {seed}: {found[kind][-1]}")
    else:
        pool = replace(index, images=tuple(_unlabelled(index)))
        contents = Contents.load(cache, pool, allowed_bytes(None))
        for order in ("random", "page"):
            for seed in range(options.seeds):
                found.setdefault(order, []).append(labelling(cache, index, order, seed, contents))
                say(f"{order}, seed {seed}: {[reached(found[order][-1]['default'], goal) for goal in GOALS]}")
    print(json.dumps({"backbone": cache.manifest.base.backbone, "hardware": hardware(), **found}))
    if options.what == "label":
        print(in_words(found))


if __name__ == "__main__":
    main()
