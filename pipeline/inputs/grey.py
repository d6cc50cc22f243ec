"""16-bit grey: how much of its range the files of a set use, so that 12-bit pictures do not become black."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pipeline.console import counted, named
from pipeline.errors import ImageSetError
from pipeline.inputs.decode import FULL_RANGE, PIXEL_LIMIT, WHITE, Decoding, open_image, read_image
from pipeline.inputs.remarks import catching_warnings, collected

AUTO = "auto"
_KINDS = frozenset({".png", ".tif", ".tiff", ".jp2", ".j2k"})  # a PGM states its range, which Pillow scales to 16 bits
_NARROW = WHITE // 8
_SAMPLED = 256  # files


def decoding_for(asked: str | None, stored: str | None) -> Decoding:
    """The policy that `--grey-range` asks for; with auto that of the rows there are, else still to be measured."""
    if asked == AUTO:
        return Decoding.parse(stored) if stored else FULL_RANGE
    return FULL_RANGE if asked is None else Decoding(int(asked))


def measured_range(training: Sequence[Path]) -> Decoding:
    """The least range of 2^n - 1 that the `training` files stay within; ImageSetError where none is 16-bit grey."""
    if not (found := _largest_values(training)):
        raise ImageSetError("--grey-range auto, but no training image is 16-bit grey: leave the option out")
    return _range_of(max(found)[0])


def narrow_range(files: Sequence[Path], decoding: Decoding) -> tuple[str, int] | None:
    """Where 16-bit grey files in a sample use less than an eighth of the range: a warning, and the range they use."""
    if decoding.grey_range <= _NARROW:
        return None
    chosen = [path for path in files if path.suffix.lower() in _KINDS]
    found = _largest_values(chosen[:: max(1, len(chosen) // _SAMPLED)][:_SAMPLED])
    most, path = max(found, default=(WHITE, Path()))
    if most > _NARROW:
        return None
    sampled = counted(len(found), "sampled 16-bit grey file")
    warning = f"warning: the largest value in {sampled} is {most:,} of {WHITE:,} ({named(path.name)}): nearly black"
    return warning, _range_of(most).grey_range


def _range_of(largest: int) -> Decoding:
    """The least range of 2^n - 1 for values up to `largest`."""
    return Decoding(min(WHITE, max(255, (1 << largest.bit_length()) - 1)))


def _largest_values(files: Sequence[Path]) -> list[tuple[int, Path]]:
    """Of those files that are 16-bit grey and can be decoded."""
    with catching_warnings(), ThreadPoolExecutor() as pool:
        values = zip(pool.map(_largest_value, files), files, strict=True)
        return [(value, path) for value, path in values if value is not None]


def _largest_value(path: Path) -> int | None:
    if path.suffix.lower() not in _KINDS:
        return None
    try:
        with collected({}), open_image(read_image(path)) as image:
            if not image.mode.startswith("I") or image.width * image.height > PIXEL_LIMIT:
                return None
            return int(np.asarray(image).max())
    except Exception:  # decoding names what is damaged, with the reason
        return None
