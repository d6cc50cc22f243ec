"""Promises of models of few images: held-out heads at a temperature of their own, or at the exported model's.

`make bench-small-sets CACHE=features ARGS="--set flowers102 --classes 40 --images 16 --max-error 0.03"`. Draws classes
of the set and so many of their images, an eighth for validation, and judges on all others of these classes. The sets
are written into the cache, one at a time, and deleted again.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from beside import hardware, say

import pipeline as hg
from cache.index import ImageRecord, SetIndex
from cache.prune import forget
from cache.store import FeatureCache
from pipeline.config.models import ExportConfig
from pipeline.machine.device import available_cpus
from pipeline.model.abstaining import _held_out, _rejection
from pipeline.model.calibrating import calibrate_run
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature, fit_temperature
from pipeline.statistics.selective import Unsupported
from pipeline.unknown.drift import drift_of
from pipeline.unknown.fitting import fit_detector, pooled_rows

SET = "bench-small-sets"
FALSE_ALARMS = 0.01


def divided(index: SetIndex, classes: int, images: int, seed: int) -> Iterator[tuple[ImageRecord, str]]:
    """Images of drawn classes, with their split."""
    generator, by_class = np.random.default_rng(seed), dict[str, list[ImageRecord]]()
    for image in index.images:
        by_class.setdefault(image.label, []).append(image)
    for label in generator.choice(sorted(by_class), classes, replace=False).tolist():
        some = [by_class[label][place] for place in generator.permutation(len(by_class[label]))]
        kept = min(images, len(some) * 2 // 3)
        trained = kept - max(1, kept // 8)
        for place, image in enumerate(some):
            yield image, "train" if place < trained else "valid" if place < kept else "test"


def judged(run: Run, config: ExportConfig) -> dict[str, tuple[float, float, float, float]]:
    """By way: answered of the held-out and of the test images, wrong of the latter's answers, found unlike."""
    cache = run.open_cache(None)
    index = cache.index(run.record.set).labelled
    exported = calibrate_run(config, run, cache, index, None)[0].temperature
    held_out = _held_out(config, run, cache, unseen_classes=False)
    own = fit_temperature(held_out.log_probs, held_out.labels) or 1.0
    log_probs, labels = run.log_probs(cache, index, "test")
    rows, found = pooled_rows(cache, index.split("test")), {}
    for way, temperature in (("their own temperature", own), ("the model's temperature", exported)):
        scaled = partial(at_temperature, temperature=temperature)
        fitted = fit_detector(cache, held_out, scaled)
        outputs = at_temperature(log_probs, exported)
        p_values = fitted.detector.p_values(rows, outputs).numpy()
        drift = drift_of(p_values, FALSE_ALARMS, len(fitted.detector.known))
        rejection = _rejection(config, held_out, scaled(held_out.log_probs), fitted.p_values >= FALSE_ALARMS)
        if drift is None or isinstance(rejection, Unsupported):
            continue
        confidence, predicted = outputs.exp().max(1)
        answered = (confidence.numpy() >= rejection.threshold) & (p_values >= FALSE_ALARMS)
        wrong = float((predicted != labels).numpy()[answered].mean()) if answered.any() else 0.0
        found[way] = rejection.answered / rejection.images, float(answered.mean()), wrong, drift.unlike
    return found


def main() -> None:
    """All draws, then what they come to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--max-error", type=float, default=0.05)
    asked = parser.parse_args()
    print(hardware(), flush=True)
    torch.set_num_threads(available_cpus())
    index = FeatureCache.open(asked.cache).index(asked.set)
    by_way = dict[str, list[tuple[float, float, float, float]]]()
    with tempfile.TemporaryDirectory() as folder:
        table, run = Path(folder) / "set.csv", Path(folder) / "run"
        for draw in range(asked.draws):
            with table.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("path", "label", "split"))
                for image, split in divided(index, asked.classes, asked.images, draw):
                    writer.writerow((Path(index.root) / image.path, image.label, split))
            hg.extract(table, asked.cache, set=SET, passes=index.passes)
            hg.train_head(asked.cache, run, set=SET, overwrite=True)
            config = ExportConfig(run, Path(folder) / "m.safetensors", max_error=asked.max_error)
            for way, figures in judged(Run.load(run), config).items():
                by_way.setdefault(way, []).append(figures)
    forget(asked.cache, SET)
    for way, each in by_way.items():
        held, answered, wrong, unlike = np.array(each).T
        say(
            f"{way}: {asked.max_error:.0%} exceeded in {(wrong > asked.max_error).sum()} of {len(each)} draws, at most "
            f"{wrong.max():.2%} wrong; answered {answered.mean():.1%} of the test images, {held.mean():.1%} of those "
            f"held out, {np.abs(answered - held).max():.1%} apart at most; drift of a tenth or more in "
            f"{(unlike >= 0.1).sum()} draws, at most {unlike.max():.0%}"
        )


if __name__ == "__main__":
    main()
