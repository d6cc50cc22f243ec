"""Run → Bundle, through the parity gate: the file must predict, from image files, what was trained from the cache."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from cache import layout
from cache.index import ImageRecord, SetIndex
from cache.layout import TEMPORARY_SUFFIX
from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone, load_backbone, load_tensors
from pipeline.backbones.weights import tensor_digest
from pipeline.bundle import BUNDLE_FORMAT, write_bundle
from pipeline.card import PREPROCESSING
from pipeline.config import ExportConfig
from pipeline.console import Say, silent
from pipeline.errors import ParityError, RunError, WeightsError
from pipeline.inputs.decode import decode_rgb, read_image
from pipeline.inputs.views import Views
from pipeline.machine.device import available_cpus, computes_bfloat16
from pipeline.predict import read_names
from pipeline.run import Run, refuse_other_kind, refuse_to_overwrite

PARITY_IMAGES = 200
WEIGHTS_LICENCE = "that of their source; torchvision's were trained on ImageNet, whose terms of access apply"
TOLERANCE = 1e-4  # in log-probability, class by class


@dataclass
class ExportResult:
    """The fields of the command's JSON; `parity.float32_abs_diff` is that of the model in float32, not rounded."""

    model: str
    bytes: int
    parity: dict[str, Any]


def export(config: ExportConfig, say: Say = silent) -> ExportResult:
    """Write the combined model of a run; ParityError, and no file, where it does not predict what was trained."""
    refuse_other_kind(config.model, folder=False)
    refuse_to_overwrite(config.model, config.overwrite)
    torch.set_num_threads(available_cpus())
    run = Run.load(config.run)
    cache = run.open_cache(config.cache)
    index = cache.index(run.record["set"])
    names = read_names(config.names) if config.names else {}
    tensors = _backbone_tensors(cache, index, say)
    config.model.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.model.with_name(f".{uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        write_bundle(temporary, tensors, run.folded_head(), _card(run, cache, index, names))
        parity = check_parity(temporary, run, cache, index, tensors, config.data, say)
        temporary.replace(config.model)
    finally:
        temporary.unlink(missing_ok=True)
    return ExportResult(str(config.model), config.model.stat().st_size, parity)


def _backbone_tensors(cache: FeatureCache, index: SetIndex, say: Say) -> dict[str, Tensor]:
    """The tensors the cache was made with, from where stage one found them."""
    base = cache.manifest.base
    # Provenance is free: a shard that does not say where its weights were stands for the named ones.
    named = (made.get("weights") for made in cache.provenance(index.row_keys(0)))
    sources = list(dict.fromkeys(name for name in named if name is None or isinstance(name, str)))
    for source in sources:
        try:
            tensors = load_tensors(base.backbone, source, say)
        except WeightsError as error:
            say(str(error))
            continue
        if tensor_digest(tensors) == base.weights_digest:
            return tensors
    raise RunError(
        f"the weights of {base.backbone} in {', '.join(map(str, sources))} are no longer those of the cache "
        f"(digest {base.weights_digest[:16]}): put that file back"
    )


def _card(run: Run, cache: FeatureCache, index: SetIndex, names: dict[str, str]) -> dict[str, Any]:
    base = asdict(cache.manifest.base)
    record = run.record
    return {
        "format": BUNDLE_FORMAT,
        "classes": list(run.classes),
        "names": {name: names[name] for name in run.classes if name in names},
        "backbone": base["backbone"],
        "weights": {"digest": base["weights_digest"], "licence": WEIGHTS_LICENCE},
        "preprocessing": {name: base[name] for name in PREPROCESSING},
        "basis": record["basis"],
        "manifest": asdict(cache.manifest),
        "set_digest": record["set_digest"],
        "skipped": [asdict(image) for image in index.skipped],
        "data": index.data,
        "split_seed": index.split_seed,
        "training": record["config"],
        "scores": {"valid_accuracy": record["valid_accuracy"], "scored": record["scored"]},
        "versions": record["versions"],
    }


def check_parity(
    model: Path,
    run: Run,
    cache: FeatureCache,
    index: SetIndex,
    tensors: dict[str, Tensor],
    data: Path | None,
    say: Say = silent,
) -> dict[str, Any]:
    """Compare a model file, run in a fresh process on image files, with the run on the cache's rows.

    At least 200 validation images, or all, every class of the split among them. Raises ParityError where a
    log-probability differs by more than 1e-4 or a most probable class differs.
    """
    base = cache.manifest.base
    images = parity_images(index.split("valid"))
    root = Path(index.root) if data is None else data if data.is_dir() else data.parent
    _check_files(images, root)
    device = _parity_device(base.precision)
    say(f"parity: {len(images)} validation images through the exported file")
    network = load_backbone(base.backbone, tensors, device=device, precision=base.precision)
    trained = _trained_log_probs(run, cache, images, root, network, say)
    request = {
        "model": str(model),
        "paths": [str(root / image.path) for image in images],
        "precision": base.precision,
        "device": device.type,
    }
    exported = _ask_fresh_process(request)
    rounded, whole = (_by_class(run.classes, exported[kind]) for kind in ("rounded", "float32"))
    difference = float((rounded - trained).abs().max())
    agreement = float((rounded.argmax(1) == trained.argmax(1)).float().mean())
    parity = {
        "images": len(images),
        "precision": base.precision,
        "max_abs_diff": difference,
        "top1_agreement": agreement,
        "float32_abs_diff": float((whole - trained).abs().max()),
    }
    if not difference <= TOLERANCE or agreement < 1:
        raise ParityError(
            f"the exported model differs from what was trained: {difference:.2g} in log-probability, "
            f"at most {TOLERANCE:g} is expected; top-1 agrees on {agreement:.2%} of {len(images)} images; "
            "nothing was written"
        )
    return parity


def _parity_device(precision: str) -> torch.device:
    """Where the check can be computed at the cache's precision: the CPU, else CUDA."""
    cpu = torch.device("cpu")
    if precision == "float32" or computes_bfloat16(cpu):
        return cpu
    if torch.cuda.is_available():
        return torch.device("cuda")
    raise ParityError(f"the cache is of {precision}, which this machine does not compute in: export on one that does")


def parity_images(valid: tuple[ImageRecord, ...]) -> list[ImageRecord]:
    """A seeded choice: one image of every class, then others, up to `PARITY_IMAGES`."""
    shuffled = sorted(valid, key=lambda image: hashlib.sha256(b"parity" + image.key).digest())
    first = {image.label: image for image in reversed(shuffled)}
    chosen = {image.path: image for image in first.values()}
    for image in shuffled:
        if len(chosen) >= PARITY_IMAGES:
            break
        chosen[image.path] = image
    return list(chosen.values())


def _check_files(images: list[ImageRecord], root: Path) -> None:
    for image in images:
        path = root / image.path
        if not path.is_file():
            raise RunError(f"{path} is not there, and the parity check needs it: name the folder of images with --data")
        if hashlib.sha256(path.read_bytes()).hexdigest() != image.digest:
            raise RunError(
                f"{path} is not the image that was extracted: restore it, or run extract and train-head again"
            )


def _trained_log_probs(
    run: Run, cache: FeatureCache, images: list[ImageRecord], root: Path, network: Backbone, say: Say
) -> Tensor:
    """(N, C) of the head in its basis on the cache's rows; on rows made here if another kind of machine made those."""
    keys = [(image.key, layout.CLEAN_VIEW) for image in images]
    views = Views(cache.manifest.base.input_size, cache.manifest.base.resize)
    here = _kind({**network.provenance, "views": views.place})
    if all(_kind(made) == here for made in cache.provenance(keys)):
        rows = cache.read(keys)
    else:
        say("the cache came from another kind of device: comparison rows are computed here")
        pixels = [views.render(decode_rgb(read_image(root / i.path)), i.key, layout.CLEAN_VIEW) for i in images]
        size = network.batch_size
        rows = torch.cat([torch.from_numpy(network(pixels[n : n + size])) for n in range(0, len(pixels), size)]).numpy()
    with torch.inference_mode():
        log_probs: Tensor = run.head(run.basis.apply(rows))
    return log_probs


def _kind(provenance: Mapping[str, Any]) -> tuple[str, str, str]:
    """The kind of machine, and where it rendered views: rows of one kind agree to rounding."""
    return str(provenance.get("device")), str(provenance.get("capability")), provenance.get("views", Views.place)


def _ask_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipeline.parity"]
    result = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ParityError(f"the exported model could not be run in a fresh process: {last}; nothing was written")
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def _by_class(classes: tuple[str, ...], answer: dict[str, list[float]]) -> Tensor:
    """(N, C) in the run's class order, whatever order the file has."""
    if set(answer) != set(classes):
        raise ParityError("the exported model has other classes than the run; nothing was written")
    return torch.tensor([answer[name] for name in classes]).T
