"""Stage two: one head, trained in a basis, from the rows of a cache."""

import hashlib
import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from cache import layout
from cache.index import ImageRecord, SetIndex
from cache.manifest import json_digest
from cache.projections import load_projection, save_projection
from cache.shard import RowKey
from cache.store import FeatureCache
from pipeline.backbone import available_cpus
from pipeline.basis import BASIS_VERSION, Basis, Stage, fit_stages, region_stage, whitening_regions
from pipeline.config import BasisName, TrainConfig
from pipeline.console import Say, silent
from pipeline.errors import RunError
from pipeline.head import HeadConfig, build_head, training_log_probs
from pipeline.images import stale_files
from pipeline.run import RUN_FORMAT, Run, refuse_to_overwrite


@dataclass
class Epoch:
    """One epoch; `epoch` starts at 1, `valid_accuracy` is a fraction, on the clean pass."""

    epoch: int
    train_loss: float
    valid_accuracy: float
    seconds: float


@dataclass
class TrainResult:
    """What `train_head` did; the fields of its JSON."""

    run: str
    set: str
    basis: str
    precision: str
    leaks: dict[str, int]
    epochs: list[Epoch] = field(default_factory=list)
    kept_epoch: int = 0
    valid_accuracy: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class HeadData:
    """What a head is trained on: `rows` (M, R) float32; `train_rows` (N, P) and `valid_rows` (V,) point into it."""

    rows: Tensor
    train_rows: Tensor
    train_labels: Tensor
    valid_rows: Tensor
    valid_labels: Tensor
    num_classes: int


def train_head(config: TrainConfig, say: Say = silent) -> TrainResult:
    """Train one head and keep the epoch that validates best (the earlier one of equals).

    Raises RunError where the run exists, the set lacks train or valid, or its folder no longer agrees with the
    index; MissingRows where rows of the passes asked for are not in the cache.
    """
    start = time.perf_counter()
    refuse_to_overwrite(config.run, config.overwrite)
    torch.set_num_threads(available_cpus())
    cache = FeatureCache.open(config.cache)
    index = cache.index(config.set)
    _refuse_stale(index)
    passes = cache.complete_passes(index) if config.passes is None else config.passes
    leaks = count_leaks(index)
    _say_leaks(leaks, say)
    basis, data = load_data(cache, index, passes, config.basis, say)
    result = TrainResult(str(config.run), index.name, config.basis, cache.manifest.base.precision, leaks)
    head = _fit(config, data, result, say)
    result.seconds = time.perf_counter() - start
    _record(config, cache, index, passes, result, basis, head).save()
    return result


def _refuse_stale(index: SetIndex) -> None:
    changes = stale_files(index)
    if changes:
        shown = "\n".join(f"  {change}" for change in changes[:5]) + ("\n  …" if len(changes) > 5 else "")
        raise RunError(
            f"{index.data} is not as it was extracted, {len(changes)} files differ:\n{shown}\n"
            f"Run extract again (--set {index.name}): only new contents are computed."
        )


def count_leaks(index: SetIndex) -> dict[str, int]:
    """Distinct contents that stand in more than one split, and that have more than one label."""
    splits: dict[str, set[str]] = {}
    labels: dict[str, set[str]] = {}
    for image in index.images:
        splits.setdefault(image.digest, set()).add(image.split)
        labels.setdefault(image.digest, set()).add(image.label)
    return {
        "across_splits": sum(len(names) > 1 for names in splits.values()),
        "two_labels": sum(len(names) > 1 for names in labels.values()),
    }


def _say_leaks(leaks: dict[str, int], say: Say) -> None:
    if any(leaks.values()):
        say(f"identical images: {leaks['across_splits']} across splits, {leaks['two_labels']} with two labels")


def load_data(
    cache: FeatureCache, index: SetIndex, passes: int, name: str, say: Say = silent
) -> tuple[Basis, HeadData]:
    """Fit basis `name` on the set's training rows and project training and validation rows; kept in the cache."""
    train, valid = index.split("train"), index.split("valid")
    if not valid:
        raise RunError(f"set {index.name!r} has no validation images: extract a data set with a valid/ folder")
    keys = list(dict.fromkeys(key for image in (*train, *valid) for key in image.keys(passes)))
    basis, rows = _projected(cache, index, keys, passes, name, say)
    place = {key: number for number, key in enumerate(keys)}
    return basis, HeadData(
        rows=rows,
        train_rows=torch.tensor([[place[key] for key in image.keys(passes)] for image in train]),
        train_labels=label_tensor(index, train),
        valid_rows=torch.tensor([place[image.key, layout.CLEAN_VIEW] for image in valid]),
        valid_labels=label_tensor(index, valid),
        num_classes=len(index.classes),
    )


def label_tensor(index: SetIndex, images: tuple[ImageRecord, ...]) -> Tensor:
    """Places of the images' labels in the set's class order, (N,) int64."""
    place = {name: number for number, name in enumerate(index.classes)}
    return torch.tensor([place[image.label] for image in images])


def _projected(
    cache: FeatureCache, index: SetIndex, keys: list[RowKey], passes: int, name: str, say: Say
) -> tuple[Basis, Tensor]:
    augmentation = cache.manifest.augmentation
    labels = sorted((image.digest, image.label, image.split) for image in index.images)
    key_digest = hashlib.sha256(b"".join(digest + view.encode() for digest, view in keys)).hexdigest()
    recipe = augmentation.digest if augmentation and passes else ""
    fitting = [BASIS_VERSION, asdict(BasisName.parse(name))]
    source = json_digest([*fitting, cache.manifest.base.digest, recipe, labels, key_digest])
    kept = load_projection(cache.path, source)
    if kept is not None:
        tensors = load(kept)
        rows = tensors.pop("rows")
        return Basis.from_tensors(name, tensors), rows
    start = time.perf_counter()
    basis, rows = _fit_basis(cache, index, keys, passes, name)
    if basis.stages:
        save_projection(cache.path, source, save({"rows": rows.contiguous(), **basis.tensors()}))
    seconds = time.perf_counter() - start
    say(f"basis {name}: {rows.shape[1]} of {cache.in_features} dimensions, {len(rows)} rows, {seconds:.1f} s")
    return basis, rows


def _fit_basis(
    cache: FeatureCache, index: SetIndex, keys: list[RowKey], passes: int, name: str
) -> tuple[Basis, Tensor]:
    """The basis, fitted on training rows, and all of `keys` in it (M, R)."""
    parsed = BasisName.parse(name)
    first = region_stage(parsed.regions, cache.row_shape)
    if first is None and parsed.shrinkage is not None:
        first = whitening_regions(cache.row_shape)
    start = Basis(name, (first,) if first else ())
    pooled: Tensor | None = None
    for positions, block in cache.blocks(keys):
        part = start.apply(block)
        pooled = torch.empty(len(keys), part.shape[1]) if pooled is None else pooled
        pooled[torch.from_numpy(positions)] = part
    assert pooled is not None
    place = {key: number for number, key in enumerate(keys)}
    train = index.split("train")
    rows = torch.tensor([place[key] for image in train for key in image.keys(passes)])
    labels = label_tensor(index, train).repeat_interleave(passes + 1)
    fitted: list[Stage] = fit_stages(parsed, pooled[rows], labels, cache.row_shape)
    for stage in fitted:
        pooled = stage.apply(pooled)
    return Basis(name, (*start.stages, *fitted)), pooled


def _fit(config: TrainConfig, data: HeadData, result: TrainResult, say: Say) -> nn.Sequential:
    """The epochs; fills in `result` and returns the head of the best one."""
    order = torch.Generator().manual_seed(config.seed)  # data seed: order, pass per image
    noise = torch.Generator().manual_seed(config.seed + (1 << 32))  # head seed: weights, dropout
    head = build_head(HeadConfig(data.rows.shape[1], config.hidden, data.num_classes, config.dropout), noise)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = config.epochs * math.ceil(len(data.train_rows) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best: dict[str, Tensor] = {}
    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        loss = _train_epoch(head, data, config.batch_size, optimizer, schedule, order, noise)
        valid = accuracy(head, data.rows, data.valid_rows, data.valid_labels)
        epoch = Epoch(number, loss, valid, time.perf_counter() - start)
        result.epochs.append(epoch)
        say(f"epoch {number:3d}  loss {loss:.4f}  valid {valid:.2%}  {epoch.seconds:.2f} s")
        if not best or valid > result.valid_accuracy:
            result.kept_epoch, result.valid_accuracy = number, valid
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.load_state_dict(best)
    return head.eval().requires_grad_(False)


def _train_epoch(
    head: nn.Sequential,
    data: HeadData,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
    noise: torch.Generator,
) -> float:
    """One pass over the training images, one drawn view of each; returns the mean loss."""
    images, views = data.train_rows.shape
    drawn = torch.randint(views, (images,), generator=order)
    shuffled = torch.randperm(images, generator=order)
    total = 0.0
    for batch in shuffled.split(batch_size):
        rows = data.rows[data.train_rows[batch, drawn[batch]]]
        loss = nll_loss(training_log_probs(head, rows, noise), data.train_labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(batch)
    return total / images


@torch.inference_mode()
def accuracy(head: nn.Sequential, rows: Tensor, chosen: Tensor, labels: Tensor) -> float:
    """Share of `chosen` rows whose most probable class is their label."""
    head.eval()
    batches = zip(chosen.split(1024), labels.split(1024), strict=True)
    hits = [int((head(rows[batch]).argmax(1) == truth).sum()) for batch, truth in batches]
    head.train()
    return sum(hits) / len(labels)


def _record(
    config: TrainConfig,
    cache: FeatureCache,
    index: SetIndex,
    passes: int,
    result: TrainResult,
    basis: Basis,
    head: nn.Sequential,
) -> Run:
    augmentation = cache.manifest.augmentation
    settings = {name: value for name, value in asdict(config).items() if name not in ("cache", "run", "overwrite")}
    record = {
        "format": RUN_FORMAT,
        "cache": str(cache.path.absolute()),
        "base_digest": cache.manifest.base.digest,
        "augmentation_digest": augmentation.digest if augmentation and passes else "",
        "set_digest": index.digest,
        "classes": list(index.classes),
        "config": {**settings, "passes": passes},
        **asdict(result),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "scored": [],
    }
    return Run(config.run, record, basis, head)
