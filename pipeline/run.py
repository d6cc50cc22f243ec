"""A run folder: run.json, head.safetensors (the head in its basis), basis.safetensors; also of a sweep, a report.

Of a run on a reduced cache also reduction.safetensors, the basis that its rows were reduced by; of a head that was
retrained with the validation images also held_out.safetensors, log-probabilities by heads that did not see the images.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cache import layout
from cache.errors import HeadgraftError
from cache.files import read_regular, write_atomically, write_together
from cache.index import ImageRecord, SetIndex
from cache.lock import claimed
from cache.records import fault
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.reduced import chained, reduction_basis
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import TrainConfig
from pipeline.console import reason
from pipeline.errors import ConfigError, RunError
from pipeline.heads.fit import Fitted, matmul_dtype_on
from pipeline.heads.head import Head
from pipeline.machine.device import CPU
from pipeline.run_folder import BASIS_FILE, HEAD_FILE, HELD_OUT_FILE, JOURNAL_FILE, REDUCTION_FILE, RUN_FILE, RUN_FILES
from pipeline.run_record import RUN_FORMAT, ReducedBy, RunConfig, RunRecord

logger = logging.getLogger("headgraft.run")

_PATIENCE = 5.0  # seconds: others write records and pages in less


@dataclass
class Run:
    """A trained head and what it was trained from. `record` is run.json.

    `basis` is over the rows of its cache, which are those of the backbone or were made of these by `reduction`.
    `held_out` are log-probabilities (V, C) of its `held_out_images`, by heads that were not trained on them; None where
    `head` was not.
    """

    path: Path
    record: RunRecord
    basis: Basis
    head: Head = field(repr=False)
    reduction: Basis | None = None
    held_out: Tensor | None = field(default=None, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the head's outputs."""
        return tuple(self.record.classes)

    @property
    def whole_basis(self) -> Basis:
        """From full features of the backbone to what the head sees."""
        return chained(self.reduction, self.basis)

    def folded_head(self) -> Head:
        """The head over full features (B, D)."""
        return self.head.folded(self.whole_basis)

    def held_out_images(self, index: SetIndex) -> tuple[ImageRecord, ...]:
        """Those that say how good it is: validation images and, where folds chose, training images too."""
        return index.split(*self.record.held_out_splits)

    @torch.inference_mode()
    def log_probs(self, cache: FeatureCache, index: SetIndex, *splits: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, C) of the clean views of the files of one split or several, and their labels (N,).

        Those of `held_out_images` are `held_out` where there are any.
        """
        images = index.split(*splits)
        if self.held_out is not None and set(splits) <= set(self.record.held_out_splits):
            asked = torch.tensor([image.split in splits for image in self.held_out_images(index)])
            return self.held_out[asked], torch.from_numpy(index.labels(images))
        found = torch.empty(len(images), len(self.classes))
        for positions, block in cache.blocks([(image.key, layout.CLEAN_VIEW) for image in images]):
            found[torch.from_numpy(positions)] = self.head(self.basis.apply(block))
        return found, torch.from_numpy(index.labels(images))

    def save(self, sweep: Mapping[str, bytes] | None = None) -> None:
        """Write the files in place of an earlier run's; run.json is removed first and written last.

        So a folder with it is complete. `sweep` are the results of a sweep, whose journal stays. The folder must be
        claimed.
        """
        head: dict[str, Tensor] = {f"head.{name}": t.contiguous() for name, t in self.head.state_dict().items()}
        contents = {HEAD_FILE: save(head), BASIS_FILE: save(self.basis.tensors())}
        if self.reduction:
            contents[REDUCTION_FILE] = save(self.reduction.tensors())
        if self.held_out is not None:
            contents[HELD_OUT_FILE] = save({"log_probs": self.held_out.contiguous()})
        self.record.files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        contents |= {**(sweep or {}), RUN_FILE: _as_json(self.record.as_json())}
        kept = {*contents, *([JOURNAL_FILE] if sweep else [])} - {RUN_FILE}
        write_together(self.path, contents, [name for name in RUN_FILES if name not in kept])

    def add_scores(self, scores: list[dict[str, Any]]) -> None:
        """Add evaluations to run.json; where that cannot be, one line says so, and the run stays as it is."""
        try:
            with self.unchanged() as record:
                record["scored"] += scores
                write_atomically(self.path / RUN_FILE, _as_json(record))
        except HeadgraftError as error:
            logger.warning(f"{self.path} does not record this evaluation: {reason(error)}")

    @contextmanager
    def unchanged(self) -> Iterator[dict[str, Any]]:
        """Hold the folder to write into it; yields run.json as it is now, RunError where it is of another run."""
        with claimed(self.path, patience=_PATIENCE):
            try:
                record = json.loads(_read_or_nothing(self.path / RUN_FILE))
            except ValueError:
                record = {}
            if record.get("files") != self.record.files:
                raise RunError(f"{self.path} was replaced by another run meanwhile: run the same command again")
            yield record

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Read a run; RunError if there is none or it is damaged."""
        before = _read_or_nothing(path / RUN_FILE)
        try:
            return cls._load(path)
        except RunError:
            if _read_or_nothing(path / RUN_FILE) == before:
                raise
        return cls.load(path)  # another run took its place while it was read

    @classmethod
    def _load(cls, path: Path) -> "Run":
        if not (path / RUN_FILE).is_file():
            if (path / JOURNAL_FILE).is_file():
                raise RunError(f"{path} holds an unfinished sweep: rerun the same sweep to resume it")
            if path.is_file():
                raise RunError(f"{path} is a file, expected the folder of a run")
            found = f"holds no {RUN_FILE}" if path.exists() else "does not exist"
            raise RunError(f"{path} {found}, expected the folder of a run: make one with train-head --run {path}")
        try:
            stored = json.loads(read_regular(path / RUN_FILE))
            if stored.get("format") != RUN_FORMAT:
                found = str(stored.get("format", "none"))[:20]
                raise RunError(f"{path} is a run of format {found}, expected {RUN_FORMAT}: train it again")
            record = RunRecord.of(stored)
            optional = [(REDUCTION_FILE, record.reduction), (HELD_OUT_FILE, record.refit)]
            names = (HEAD_FILE, BASIS_FILE, *(name for name, there in optional if there))
            contents = {name: read_regular(path / name) for name in names}
            for name, data in contents.items():
                if hashlib.sha256(data).hexdigest() != record.files[name]:
                    raise ValueError(f"{name} is not the one it was trained with")
            basis = Basis.from_tensors(record.basis, load(contents[BASIS_FILE]))
            reduced = record.reduction
            reduction = Basis.from_tensors(reduced.basis, load(contents[REDUCTION_FILE])) if reduced else None
            tensors = load(contents[HEAD_FILE])
            head = Head.from_tensors({name.removeprefix("head."): tensor for name, tensor in tensors.items()})
            held_out = load(contents[HELD_OUT_FILE])["log_probs"] if record.refit else None
            bases = [one.tensors().values() for one in (basis, reduction) if one]
            if not all(tensor.isfinite().all() for tensor in chain(*bases, head.state_dict().values())):
                raise ValueError("a weight that is not finite")
            if not len(set(record.classes)) == len(record.classes) == head.num_classes:
                raise ValueError(f"{head.num_classes} outputs for {len(record.classes)} distinct classes")
        except (OSError, ValueError, LookupError, AttributeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise RunError(f"{path} is damaged ({fault(error)}): train it again with --overwrite") from error
        return cls(path, record, basis, head, reduction, held_out)

    def open_cache(self, cache: Path | None) -> FeatureCache:
        """The cache the run was trained from, at `cache` or where the run recorded it; another one is refused."""
        opened = FeatureCache.open(cache or self.record.cache)
        found = opened.manifest.base.digest
        if found != self.record.base_digest:
            raise RunError(
                f"{opened.path} is not the cache of {self.path}: its manifest is {found[:16]}, the run's was "
                f"{self.record.base_digest[:16]}; name the right one with --cache"
            )
        if opened.basis_digest != (self.record.reduction.digest if self.record.reduction else ""):
            raise RunError(
                f"the rows of {opened.path} are not reduced as those that {self.path} was trained on: "
                "name the right cache with --cache"
            )
        index = opened.index(self.record.set)
        if index.digest != self.record.set_digest:
            raise RunError(
                f"set {index.name!r} of {opened.path} changed since {self.path} was trained, by extract or by labels "
                "given by hand: train again with --overwrite, or extract again as it was (--split-seed)"
            )
        if self.held_out is not None and self.held_out.shape != (len(self.held_out_images(index)), len(index.classes)):
            raise RunError(f"{self.path} holds predictions of other images: train again with --overwrite")
        if list(index.classes) != self.record.classes or self._width(opened.in_features) != self.head.in_features:
            raise RunError(f"{self.path} has other classes or a head for another basis: train again with --overwrite")
        return opened

    def _width(self, in_features: int) -> int:
        """R, that the basis makes of rows of D features; 0 where it is made for others."""
        try:
            return self.basis.out_features(in_features)
        except (RuntimeError, IndexError, ValueError):
            return 0


def new_run(config: TrainConfig, trainset: TrainingSet, fitted: Fitted, basis: Basis) -> Run:
    """The run of a trained head, not yet saved."""
    manifest, reduction = trainset.cache.manifest, trainset.cache.reduction
    asked = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    made = {"hidden": fitted.head.hidden_units, "basis": basis.name, "passes": trainset.passes}
    record = RunRecord(
        cache=str(trainset.cache.path.absolute()),
        base_digest=manifest.base.digest,
        augmentation_digest=trainset.recipe,
        set_digest=trainset.index.digest,
        classes=list(trainset.index.classes),
        config=RunConfig(**{**asked, **made}),
        run=str(config.run),
        set=trainset.index.name,
        basis=basis.name,
        precision=manifest.base.precision,
        leaks=trainset.leaks,
        epochs=fitted.epochs,
        valid_accuracy=fitted.valid_accuracy,
        valid_loss=fitted.valid_loss,
        seconds=fitted.seconds,
        versions={"torch": torch.__version__, "numpy": np.__version__},
        scored=[],
        classes_without_validation=len(trainset.classes_without_validation),
        products=str(matmul_dtype_on(CPU) or torch.float32).removeprefix("torch."),
        reduction=ReducedBy(reduction.basis, reduction.digest) if reduction else None,
    )
    return Run(config.run, record, basis, fitted.head, reduction_basis(trainset.cache))


def _read_or_nothing(file: Path) -> bytes:
    try:
        return read_regular(file)
    except OSError:
        return b""


def _as_json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()
