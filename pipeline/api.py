"""The public names of the library; `import pipeline as hg` gives them without importing torch before one is used.

A command is a function of its options: `extract(data, cache=...)` is `headgraft extract DATA --cache ...`, with the
same names, defaults and checks. It returns what `--json` prints, as a dataclass.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from textwrap import fill
from typing import Any, ParamSpec, TypeVar

from cache.errors import HeadgraftError
from pipeline.commands import compare as _compare
from pipeline.commands import curve as _curve
from pipeline.commands import cv as _cv
from pipeline.commands import evaluate as _evaluate
from pipeline.commands import export as _export
from pipeline.commands import extract as _extract
from pipeline.commands import label as _label
from pipeline.commands import predict as _predict
from pipeline.commands import reduce as _reduce
from pipeline.commands import report as _report
from pipeline.commands import serve as _serve
from pipeline.commands import sweep as _sweep
from pipeline.commands import train as _train
from pipeline.commands.list_backbones import list_backbones
from pipeline.commands.weights import fetch_weights
from pipeline.config.extract import ExtractConfig
from pipeline.config.folds import CurveConfig, CvConfig
from pipeline.config.heads import CompareConfig, ReduceConfig, SweepConfig, TrainConfig
from pipeline.config.models import (
    EvaluateConfig,
    ExportConfig,
    LabelConfig,
    PredictConfig,
    ReportConfig,
    ServeConfig,
)
from pipeline.estimator import HeadClassifier
from pipeline.features import Features, load_features
from pipeline.model.bundle import Bundle
from pipeline.model.file import load_model

__all__ = [
    "Bundle", "Features", "HeadClassifier", "HeadgraftError", "compare", "curve", "cv", "evaluate",
    "export", "extract", "fetch_weights", "label", "list_backbones", "load_features", "load_model", "predict",
    "reduce_cache", "report", "serve", "sweep", "train_head",
]  # fmt: skip

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")


def _function(config: Callable[P, C], command: Callable[[C], R]) -> Callable[P, R]:
    """A command as a function of the fields of its config, which documents them."""

    def call(*args: P.args, **options: P.kwargs) -> R:
        return command(config(*args, **options))

    signature, declared = inspect.signature(config), fields(config)  # type: ignore[arg-type]  # a dataclass
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]  # help() and Jupyter read it
        return_annotation=inspect.signature(command).return_annotation
    )
    call.__name__ = call.__qualname__ = command.__name__
    call.__doc__ = "\n\n".join([inspect.getdoc(command) or "", "Args:\n" + "\n".join(map(_described, declared))])
    return call


def _described(field: Field[Any]) -> str:
    option = field.metadata.get("option")
    required = " Required." if field.default is MISSING else ""
    text = f"{field.name}: {option.help if option else field.metadata['help']}{required}"
    return fill(text, 116, initial_indent="    ", subsequent_indent="        ")


extract = _function(ExtractConfig, _extract.extract)
train_head = _function(TrainConfig, _train.train_head)
sweep = _function(SweepConfig, _sweep.sweep)
cv = _function(CvConfig, _cv.cv)
curve = _function(CurveConfig, _curve.curve)
compare = _function(CompareConfig, _compare.compare)
reduce_cache = _function(ReduceConfig, _reduce.reduce_cache)
label = _function(LabelConfig, _label.label)
evaluate = _function(EvaluateConfig, _evaluate.evaluate)
report = _function(ReportConfig, _report.report)
export = _function(ExportConfig, _export.export)
predict = _function(PredictConfig, _predict.predict)
serve = _function(ServeConfig, _serve.serve)
