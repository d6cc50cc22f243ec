"""Real images that nothing was tuned on: what the defaults reach there, beside an expert's scripts on the same rows.

For each set and backbone: the default head, a sweep, cross-validation, label issues, and a detector of unknown images,
all with the options that the commands have by default; features with one augmented pass. `results.py` runs it, once,
and writes docs/results/untouched.json, whatever comes out. Accuracies alone: no time is measured.
"""

import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from beside import BASELINES, DATA, ROOT, say
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cache.index import ImageRecord, SetIndex
from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.backbones.weights import weights_folder
from pipeline.commands.cv import cv
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.extract import extract
from pipeline.commands.report import report
from pipeline.commands.sweep import sweep
from pipeline.commands.train import train_head
from pipeline.config.extract import ExtractConfig
from pipeline.config.folds import CvConfig
from pipeline.config.heads import SweepConfig, TrainConfig
from pipeline.config.models import EvaluateConfig, ExportConfig, ReportConfig
from pipeline.cross_validation.predictions import OutOfFold
from pipeline.features import load_features
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_model
from pipeline.run import Run
from pipeline.search.selection import Metric, difference
from pipeline.statistics.groups import join
from pipeline.statistics.intervals import interval
from pipeline.statistics.scoring import Scores
from pipeline.unknown.detector import pooled

Bools = npt.NDArray[np.bool_]
Found = dict[str, Any]

SETS = {"weather": "weather", "gtsrb_tracks": "gtsrb_tracks/labels.csv", "wbc_original": "wbc_original"}
BACKBONES = ("vgg16", "mobilenet_v2")
UNKNOWN, KINDS = "unknown_for_flowers", ("far_texture", "far_scene", "far_object")
# What heads_strong.py and probe_strong.py have by default.
EXPERT_HEAD = {"hidden": 512, "dropout": 0.5, "lr": 1e-3, "batch_size": 128}
EXPERT_EPOCHS, EXPERT_C, EXPERT_SHRINKAGE = 20, (1e-3, 1e-2, 1e-1), (0.5, 0.8, 0.9)


@dataclass(frozen=True)
class Held:
    """Images of one split, and which of them are no independent evidence."""

    images: tuple[ImageRecord, ...]
    metric: Metric

    @classmethod
    def of(cls, index: SetIndex, split: str) -> "Held":
        """Of one split of a set."""
        images = index.split(split)
        return cls(images, Metric.over(images, "top1", index, join(images)))

    def fraction(self, hits: Bools) -> Found:
        """Of images (N,), with its 95 % interval."""
        return asdict(interval(hits, self.metric.weights(), self.metric.groups))


def measured_untouched(folder: Path, scratch: Path) -> Found:
    """Every set with every backbone; caches are made in `folder`, or found there, and so is what was measured."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    caches = [extracted(folder / backbone, backbone) for backbone in BACKBONES]
    found = [measured_once(cache, name, scratch) for cache in caches for name in SETS]
    return {"sets": {name: described(caches[0].index(name)) for name in SETS}, "results": found}


def extracted(folder: Path, backbone: str) -> FeatureCache:
    """A cache of all sets, and of the unknown images."""
    weights = None if backbone == "vgg16" else str(real_weights(backbone))
    for name, data in {**SETS, UNKNOWN: UNKNOWN}.items():
        passes = 0 if name == UNKNOWN else 1
        asked = ExtractConfig(DATA / data, folder, set=name, passes=passes, backbone=backbone, weights=weights)
        say(extract(asked).in_words())
    return FeatureCache.open(folder)


def real_weights(backbone: str) -> Path:
    """The file that the tests have of it, fetched if it is not there."""
    sys.path.append(str(ROOT / "tests"))
    found: Path = importlib.import_module("real_weights").weights_file(backbone, weights_folder() / "tests")
    return found


def described(index: SetIndex) -> Found:
    """Counts: images and independent groups of each split, and images of each class in each split."""
    splits = {split: index.split(split) for split in index.counts()}
    return {
        "images": index.counts(),
        "groups": {split: len(set(join(images).numbers(images).tolist())) for split, images in splits.items()},
        "classes": {
            label: {split: sum(image.label == label for image in images) for split, images in splits.items()}
            for label in index.classes
        },
        "majority": max(Counter(image.label for image in splits["test"]).values()) / len(splits["test"]),
    }


def measured_once(cache: FeatureCache, name: str, scratch: Path) -> Found:
    """Read where it was measured before: there is one run, also where it was interrupted."""
    file = cache.path.with_name(f"{cache.path.name}-{name}.json")
    if not file.exists():
        file.write_text(json.dumps(measured_set(cache, name, scratch / file.stem)))
    found: Found = json.loads(file.read_text())
    return found


def measured_set(cache: FeatureCache, name: str, scratch: Path) -> Found:
    """One set with one backbone, all by default."""
    say(f"-- {name}, {cache.path.name}")
    index = cache.index(name)
    test = Held.of(index, "test")
    head, swept = scratch / "head", scratch / "sweep"
    train_head(TrainConfig(cache.path, head, name))
    chosen = sweep(SweepConfig(cache.path, swept, name))
    scores, right = measured_run(head), {run: hits_of(run, cache, index) for run in (head, swept)}
    return {
        "set": name,
        "backbone": cache.manifest.base.backbone,
        "precision": cache.manifest.base.precision,
        "head": scores,
        "sweep": {
            **measured_run(swept),
            "won": chosen.best.won,
            "config": asdict(chosen.best.config),
            "mean": chosen.best.mean,
            "std": chosen.best.std,
            "corrected": chosen.best.corrected,
            "test_difference": asdict(difference([right[swept]], [right[head]], test.metric)),
        },
        "cv": measured_folds(cache, name),
        "label_issues": measured_issues(head),
        "unknown": measured_unknown(cache, head, test, scratch / "model.safetensors"),
        "scripts": measured_scripts(cache, name, index, right[head]),
    }


def hits_of(run: Path, cache: FeatureCache, index: SetIndex) -> Bools:
    """Whether a run is right about each test image, (N,)."""
    log_probs, labels = Run.load(run).log_probs(cache, index, "test")
    hits: Bools = (log_probs.argmax(1) == labels).numpy()
    return hits


def measured_run(run: Path) -> Found:
    """Validation and test accuracies of a run, with their intervals."""
    valid, test = (evaluate(EvaluateConfig(run, split=split)) for split in ("valid", "test"))
    found = {"valid": shown(valid), "test": shown(test), "test_mean_per_class": shown(test, "mean_per_class")}
    return {**found, "unrelated": asdict(test.unrelated) if test.unrelated else None}


def shown(scores: Scores, name: str = "top1") -> Found:
    """An accuracy and its interval."""
    low, high = scores.intervals[name]
    return {"value": getattr(scores, name), "low": low, "high": high}


def measured_folds(cache: FeatureCache, name: str) -> Found:
    """Accuracies out of fold, and of each class how many of its images are right."""
    result = cv(CvConfig(cache.path, name))
    predicted = OutOfFold.load(Path(result.predictions))
    accuracies, hits = predicted.accuracies(), predicted.hits[0]
    return {
        "images": result.images,
        "groups": result.groups,
        "accuracy": asdict(accuracies["top1"]),
        "mean_per_class": asdict(accuracies["mean_per_class"]),
        "unseen": result.unseen,
        "across_folds": result.across_folds,
        "classes": {
            label: [int(hits[predicted.labels == place].sum()), int((predicted.labels == place).sum())]
            for place, label in enumerate(predicted.classes.tolist())
        },
    }


def measured_issues(run: Path) -> Found:
    """How many labels of training and validation images the report lists; nobody has checked which are wrong."""
    result = report(ReportConfig(run))
    by_class = Counter(issue["label"] for issue in result.label_issues)
    unchecked = {"unchecked": result.unchecked, "unchecked_classes": result.unchecked_classes}
    return {"listed": len(result.label_issues), "by_class": by_class, **unchecked, "duplicates": result.duplicates}


def measured_unknown(cache: FeatureCache, run: Path, test: Held, model: Path) -> Found:
    """What the detector of the exported model flags of test images, and of images of none of the classes."""
    said = export(ExportConfig(run, model)).unknown
    bundle = load_model(model)
    if bundle.detector is None:
        return said
    others = cache.index(UNKNOWN).images
    known, flags = detected(bundle, cache, test.images)
    found = {**said, "test": test.fraction(flags(said["false_alarms"])), "kinds": {}}
    for kind in KINDS:
        images = tuple(image for image in others if image.label == kind)
        scores, flags = detected(bundle, cache, images)
        alike = np.full(len(images), 1 / len(images))
        share = interval(flags(said["false_alarms"]), alike, np.arange(len(images)))
        truth = np.repeat([0, 1], [len(known), len(scores)])
        auroc = float(roc_auc_score(truth, np.concatenate([known, scores])))
        found["kinds"][kind] = {"images": len(images), **asdict(share), "auroc": auroc}
    return found


@torch.inference_mode()
def detected(bundle: Bundle, cache: FeatureCache, images: Sequence[ImageRecord]) -> tuple[npt.NDArray[np.float64], Any]:
    """How unlike the training images each image is (N,), and a function of the false alarms: which are flagged (N,)."""
    assert bundle.detector is not None
    rows = torch.from_numpy(cache.read([(image.key, CLEAN_VIEW) for image in images]).astype(np.float32))
    seen = pooled(bundle.layout, rows), bundle.head(rows)
    p_values = bundle.detector.p_values(*seen).numpy()
    return bundle.detector.scores(*seen).double().numpy(), lambda alarms: p_values < alarms


def measured_scripts(cache: FeatureCache, name: str, index: SetIndex, ours: Bools) -> Found:
    """What the functions of heads_strong.py and the classifiers of probe_strong.py reach on the same clean rows.

    Maps are brought to the script's pyramid, vectors are taken as they are. `difference` is the default head of
    headgraft less this one, on the test images.
    """
    sys.path.append(str(BASELINES))
    heads = importlib.import_module("heads_strong")
    train, valid, test = (expert_rows(cache, name, split, heads) for split in ("train", "valid", "test"))
    (_, valid), (train, test) = heads.prepare(train, valid, False, 0), heads.prepare(train, test, False, 0)
    trial = heads.Trial(EXPERT_HEAD, train, EXPERT_EPOCHS, 0)
    trial.advance(EXPERT_EPOCHS, train, valid)

    def by_head(rows: Tensor) -> Any:
        with torch.inference_mode():
            return trial.head(rows).argmax(1).numpy()

    ways: dict[str, list[tuple[float, Any]]] = {"head": [(EXPERT_HEAD["lr"], by_head)], "logistic": [], "lda": []}
    x, y = (part.numpy() for part in train)
    for c in EXPERT_C:
        ways["logistic"].append((c, LogisticRegression(C=c, max_iter=500).fit(x, y).predict))
    for shrinkage in EXPERT_SHRINKAGE:
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, y)
        ways["lda"].append((shrinkage, model.predict))
    held = {split: Held.of(index, split) for split in ("valid", "test")}
    return {way: best_of(fits, held, valid, test, ours) for way, fits in ways.items()}


def expert_rows(cache: FeatureCache, name: str, split: str, heads: Any) -> tuple[Tensor, Tensor]:
    """Clean rows of a split as the script makes them, and labels."""
    found = load_features(cache.path, split, name)
    features, labels = torch.from_numpy(found.X), torch.from_numpy(found.y)
    return heads.regions(features, "pyramid") if len(cache.row_shape) > 1 else features, labels


def best_of(fits: list[tuple[float, Any]], held: dict[str, Held], valid: Any, test: Any, ours: Bools) -> Found:
    """The first fit of the best validation accuracy, and what it reaches on the test images."""
    right = [(setting, predict(valid[0]) == valid[1].numpy(), predict) for setting, predict in fits]
    setting, hits, predict = max(right, key=lambda one: one[1].mean())
    on_test = predict(test[0]) == test[1].numpy()
    apart = asdict(difference([ours], [on_test], held["test"].metric))
    scores = {"valid": held["valid"].fraction(hits), "test": held["test"].fraction(on_test)}
    return {"setting": setting, **scores, "difference": apart}
