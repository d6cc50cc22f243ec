"""The parity gate: a model file must predict, from image files, what was trained from the cache."""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.files import read_regular
from cache.index import ImageRecord
from cache.layout import CLEAN_VIEW
from cache.shard import Float16Array
from cache.store import FeatureCache
from pipeline.backbones.backbone import Backbone
from pipeline.backbones.fastest import load_backbone
from pipeline.bases.basis import Basis
from pipeline.bases.reduced import reduce_rows
from pipeline.console import counted, named
from pipeline.errors import ParityError, RunError
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.views import Views
from pipeline.machine.device import CPU, computes
from pipeline.model.views import view_batches
from pipeline.run import Run
from pipeline.statistics.calibration import at_temperature

logger = logging.getLogger("headgraft.model")

IMAGES = 200
TOLERANCE = 1e-4  # in log-probability, class by class
BATCH_TOLERANCE = 1e-3  # between batch sizes, whose sums differ in their order: unlikely classes are at -50 and less
# Of a stored row and the same made here, by whether one kind of machine made both, in one precision: rounding alone, or
# rows of bfloat16 as well, which have 0.9995 before they are reduced.
STORED_COSINE = {True: 0.9999, False: 0.995}
OTHER_BATCHES = (1, 3)  # sizes that some of the images are computed in as well
IN_OTHER_BATCHES = 12  # images
# The fresh process imports the packages of this one, whatever files of these names lie where it is run.
_FRESH = "import sys; sys.path.insert(0, sys.argv[1]); import cache, pipeline; del sys.path[0]; " + (
    "from pipeline.model.parity_worker import main; main()"
)


@dataclass(frozen=True)
class Trained:
    """What a model file is compared with: a run, at a temperature, on the cache it was trained from."""

    run: Run
    temperature: float
    cache: FeatureCache
    backbone_tensors: dict[str, Tensor]
    weights: str | None = None  # the file that these are of, if the model does not hold them

    @torch.inference_mode()
    def log_probs(self, basis: Basis, rows: Float16Array) -> Tensor:
        """(N, C) of the head in `basis`, from rows (N, D)."""
        return at_temperature(self.run.head(basis.apply(rows)), self.temperature)


def check_parity(model: Path, trained: Trained, images: list[ImageRecord], root: Path) -> dict[str, Any]:
    """Compare a model file, run in a fresh process on image files below `root`, with the run on the cache's rows.

    On `chosen_images`, some of them also in batches of other sizes.
    Raises ParityError, which names the image, where a log-probability differs by more than 1e-4 or a most probable
    class differs.
    """
    base = trained.cache.manifest.base
    check_files(images, root)
    precision = precision_here(base.precision)
    logger.info(f"parity: {counted(len(images), 'image')} through the exported file, in {precision}")
    preprocessing, tensors = Preprocessing.of(base), dict(trained.backbone_tensors)
    network = load_backbone(base.backbone, tensors, preprocessing, layer=base.layer, device=CPU, precision=precision)
    expected, reduced = _expected(trained, images, root, network)
    request = {
        "model": str(model),
        "weights": trained.weights,
        "paths": [str(root / image.path) for image in images],
        "precision": precision,
        "batches": OTHER_BATCHES,
        "in_batches": IN_OTHER_BATCHES,
    }
    answer = _ask_fresh_process(request)
    kinds = ("rounded", "whole", "float32")
    rounded, whole, float32 = (_by_class(trained.run.classes, answer[kind]) for kind in kinds)
    paths, differs = [image.path for image in images], "the exported model differs from"
    difference = largest_difference(rounded, expected, paths, f"{differs} what was trained", TOLERANCE)
    for size, found in answer["batches"].items():
        some = _by_class(trained.run.classes, found)
        largest_difference(some, whole[: len(some)], paths, f"{differs} itself in batches of {size}", BATCH_TOLERANCE)
    agreement = _agreement(rounded, expected)
    if precision != base.precision:  # what float32 changes shows on the rows that were trained on
        expected = trained.log_probs(
            trained.run.basis, trained.cache.read([(image.key, CLEAN_VIEW) for image in images])
        )
    apart = (float32 - expected).abs()
    return {
        "images": len(images),
        "precision": precision,
        "max_abs_diff": difference,
        "top1_agreement": agreement,
        "batch_sizes": [network.batch_size, *OTHER_BATCHES],
        "float32_abs_diff": float(apart.max()),
        "float32_p99_diff": float(apart.flatten().quantile(0.99)),
        "float32_top1_agreement": _agreement(float32, expected),
        **reduced,
    }


def _agreement(found: Tensor, expected: Tensor) -> float:
    """Share of images with the same most probable class."""
    return float((found.argmax(1) == expected.argmax(1)).double().mean())


def largest_difference(found: Tensor, expected: Tensor, images: Sequence[object], what: str, most: float) -> float:
    """Of log-probabilities (N, C); ParityError where it is over `most`, or a most probable class differs.

    The message begins with `what` and names the image that differs most.
    """
    apart = (found - expected).abs().amax(1)
    apart[found.argmax(1) != expected.argmax(1)] += 1000  # comes first, whatever the differences
    apart[~apart.isfinite()] = torch.inf
    worst = int(apart.argmax())
    if not float(apart[worst]) <= most:
        difference = float((found[worst] - expected[worst]).abs().max())
        raise ParityError(
            f"{what} on {named(images[worst])} by {difference:.2g} in log-probability, and so on "
            f"{int((apart > most).sum())} of {len(found)} images; at most {most:g} and the same most probable class "
            "are expected; nothing was written"
        )
    return float(apart[worst])


def chosen_images(valid: tuple[ImageRecord, ...]) -> list[ImageRecord]:
    """A seeded choice: one image of every class, then others, up to `IMAGES`."""
    shuffled = sorted(valid, key=lambda image: hashlib.sha256(b"parity" + image.key).digest())
    first = {image.label: image for image in reversed(shuffled)}
    ordered = {image.path: image for image in (*first.values(), *shuffled)}
    return [*ordered.values()][: max(IMAGES, len(first))]


def precision_here(precision: str) -> str:
    """What a check is computed in, on the CPU: the precision of the cache, or float32 where this CPU lacks that."""
    return precision if computes(CPU, precision) else "float32"


def check_files(images: Sequence[ImageRecord], root: Path) -> None:
    """RunError for the first image below `root` that is not there, or not as it was extracted."""
    for image in images:
        path = root / image.path
        if not path.is_file():
            raise RunError(f"{path} is not there, and the check needs it: name the folder of images with --data")
        try:
            digest = hashlib.sha256(read_regular(path)).hexdigest()
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}), and the check needs it: restore it") from error
        if digest != image.digest:
            raise RunError(
                f"{path} is not the image that was extracted: restore it, or run extract and train-head again"
            )


def _expected(
    trained: Trained, images: list[ImageRecord], root: Path, network: Backbone
) -> tuple[Tensor, dict[str, float]]:
    """(N, C) of the head in its basis on the cache's rows; on rows made here if another kind of machine made those.

    Of a reduced cache, on full rows made here: those it holds were rounded once more, by how much is in the dict.
    """
    cache, run = trained.cache, trained.run
    keys = [(image.key, CLEAN_VIEW) for image in images]
    here = _kind({**network.provenance, "views": Views.place})
    same_kind = network.precision == cache.manifest.base.precision
    same_kind &= all(_kind(made) == here for made in cache.provenance(keys))
    stored = cache.read(keys)
    if same_kind and not cache.reduction:
        return trained.log_probs(run.basis, stored), {}
    if not same_kind:
        logger.info("cache was built on different hardware: recomputing reference features locally")
    files = [root / image.path for image in images]
    batches = view_batches(network.preprocessing, files, network.batch_size)
    full = np.concatenate([network(views) for _, views in batches])
    made = reduce_rows(run.reduction, full) if run.reduction else full
    _check_stored(cache, images, stored, made, STORED_COSINE[same_kind])
    expected = trained.log_probs(run.whole_basis, full)
    if not cache.reduction:
        return expected, {}
    found = trained.log_probs(run.basis, stored)
    difference = float((found - expected).abs().max())
    return expected, {"reduced_abs_diff": difference, "reduced_top1_agreement": _agreement(found, expected)}


def _check_stored(
    cache: FeatureCache, images: list[ImageRecord], stored: Float16Array, made: Float16Array, least: float
) -> None:
    """ParityError where a stored row has a cosine below `least` with the one made here."""
    agree = torch.cosine_similarity(torch.from_numpy(stored).double(), torch.from_numpy(made).double())
    worst = int(agree.argmin())
    if not float(agree[worst]) >= least:
        raise ParityError(
            f"the row of {named(images[worst].path)} in {cache.path} is not what its image gives: "
            f"cosine {float(agree[worst]):.4f}, at least {least} is expected; nothing was written"
        )


def _kind(provenance: Mapping[str, Any]) -> tuple[str, str, str]:
    """The kind of machine, and where it rendered views: rows of one kind agree to rounding."""
    return str(provenance.get("device")), str(provenance.get("capability")), provenance.get("views", Views.place)


def _ask_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-P", "-c", _FRESH, str(Path(__file__).parents[2])]
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
