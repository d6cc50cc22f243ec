"""A model as one ONNX file: normalised images (N, 3, S, S) → log-probabilities (N, C), for any N.

Checked with onnxruntime, on image files, against the model it was made of. Classes, preprocessing and the card are in
its metadata, as JSON; the description says input and output in words. The packages come with the extra `onnx`.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from cache.errors import install_hint
from pipeline.backbones.backbone import normalise
from pipeline.errors import PipelineError
from pipeline.model.bundle import Bundle
from pipeline.model.parity import largest_difference
from pipeline.model.views import view_batches

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # in log-probability, class by class
IMAGES = 32
BATCH = 8
INPUT, OUTPUT = "images", "log_probs"


def require_packages() -> None:
    """PipelineError where a package of the extra is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise PipelineError(f"--onnx needs {', '.join(missing)}: {install_hint('onnx')}")


def write_onnx(bundle: Bundle, path: Path, images: Sequence[Path]) -> float:
    """Write `bundle` to `path`; the largest difference of log-probabilities between the two on `images`.

    ParityError, which names the image, where that is over 1e-3 or a most probable class differs.
    """
    model, size = bundle.as_module(), bundle.preprocessing.input_size
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    assert program is not None
    stated = {"classes": bundle.classes, "preprocessing": bundle.card.preprocessing, "headgraft": bundle.stored}
    program.model.metadata_props.update({key: json.dumps(value) for key, value in stated.items()})
    program.model.doc_string = (
        f"{INPUT}: float32 (N, 3, {size}, {size}): {bundle.preprocessing}. "
        f"{OUTPUT}: (N, {len(bundle.classes)}), in the order of the metadata's classes."
    )
    program.save(str(path), external_data=False)
    return _check(bundle, path, images[:IMAGES])


def _check(bundle: Bundle, path: Path, images: Sequence[Path]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model, expected, found = bundle.as_module(), [], []
    for _, views in view_batches(bundle.preprocessing, images, BATCH):
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        inputs = normalise(pixels, bundle.preprocessing).contiguous()
        with torch.inference_mode():
            expected.append(model(inputs))
        found.append(torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0]))
    what = "the ONNX file differs from the model"
    return largest_difference(torch.cat(found), torch.cat(expected), images, what, TOLERANCE)
