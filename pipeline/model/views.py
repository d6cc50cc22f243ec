"""Images of any kind, as the views that a backbone takes, decoded ahead in batches."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
from PIL import Image

from pipeline.console import named
from pipeline.errors import DecodeError
from pipeline.inputs.decode import Pixels
from pipeline.inputs.preprocessing import ImageSource, Preprocessing
from pipeline.inputs.remarks import Remarks, catching_warnings

AnyImage = ImageSource | Pixels  # a file, its bytes, an image of Pillow, or a view
_AHEAD = 2  # batches that are decoded before they are asked for


def view_batches(
    preprocessing: Preprocessing,
    images: Sequence[AnyImage],
    size: int,
    failed: dict[int, str] | None = None,
    remarks: Remarks | None = None,
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Views of images in batches of at most `size`, decoded ahead in a thread: (indexes, views).

    `failed` and `remarks` are those of `Predictor.log_probs`.
    """
    reasons: dict[int, str] = {} if failed is None else failed
    noted = Remarks() if remarks is None else remarks
    stopped = Event()

    def decoded(start: int) -> tuple[list[int], list[Pixels]]:
        views: dict[int, Pixels] = {}
        for index, image in enumerate(images[start : start + size], start):
            if stopped.is_set():
                break
            odd: dict[str, str] = {}
            try:
                views[index] = _view(preprocessing, image, odd)
                noted.add(name_of(image, index), odd)
            except DecodeError as error:
                reasons[index] = str(error)
        return [*views.keys()], [*views.values()]

    with catching_warnings(), ThreadPoolExecutor(1, "decode") as pool:
        starts = iter(range(0, len(images), size))
        waiting = deque(pool.submit(decoded, start) for start in islice(starts, _AHEAD))
        try:
            while waiting:
                indexes, views = waiting.popleft().result()
                waiting.extend(pool.submit(decoded, start) for start in islice(starts, 1))
                if views:
                    yield indexes, views
        finally:
            stopped.set()  # an interrupt does not wait for images that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
    if failed is None and reasons:
        lines = [f"  {name_of(images[index], index)}: {reason}" for index, reason in reasons.items()]
        found = f"{len(reasons)} of {len(images)} images cannot be decoded; fix or remove them:"
        raise DecodeError("\n".join([found, *lines]))


def _view(preprocessing: Preprocessing, image: AnyImage, odd: dict[str, str]) -> Pixels:
    if not isinstance(image, np.ndarray):
        return preprocessing.view(preprocessing.decode(image, odd))
    shape = (preprocessing.input_size, preprocessing.input_size, 3)
    if image.shape != shape or image.dtype != np.uint8:
        raise DecodeError(
            f"an array {image.shape} of {image.dtype}, expected a view {shape} of uint8; give the pixels of a whole "
            "image as PIL.Image.fromarray(pixels)"
        )
    return image


def listed(images: AnyImage | Iterable[AnyImage]) -> list[AnyImage]:
    one = isinstance(images, str | Path | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
    return [images] if one else list(images)  # type: ignore[list-item, arg-type]  # as `one` says


def name_of(image: AnyImage, index: int) -> str:
    return named(image) if isinstance(image, str | Path) else f"image {index}"
