"""An ONNX file used without this program: onnxruntime, Pillow and numpy are all it takes.

    python independent_onnx.py MODEL IMAGE...     prints {"classes": [...], "log_probs": [[...], ...]}

Written from the file's own metadata and description alone.
"""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def pixels_of(path: str, stated: dict[str, Any]) -> Any:
    """(1, 3, S, S) float32, step by step as the metadata say."""
    assert (stated["resize_side"], stated["interpolation"]) == ("shorter", "bilinear-antialias")
    assert (stated["crop"], stated["layout"]) == ("center", "NCHW")
    image = Image.open(path).convert(stated["channels"])
    factor, size = stated["resize"] / min(image.size), stated["input_size"]
    image = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) * stated["scale"]
    pixels = (pixels - np.array(stated["mean"])) / np.array(stated["std"])
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def main(path: str, *images: str) -> None:
    """All of it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    stated = json.loads(metadata["preprocessing"])
    (name,) = (each.name for each in session.get_inputs())
    log_probs = [session.run(None, {name: pixels_of(image, stated)})[0][0].tolist() for image in images]
    json.dump({"classes": json.loads(metadata["classes"]), "log_probs": log_probs}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
