"""Windows of dense views: rows cut out of a map that was computed once from a larger view of an image."""

import numpy as np
import numpy.typing as npt

from cache import layout
from cache.keys import PackedKeys, Places
from cache.shard import Float16Array

_DIGEST = 32  # bytes of a packed key before its view


def windows_of(map_shape: tuple[int, ...], row_shape: tuple[int, ...]) -> int:
    """How many rows of (channels, height, width) fit into a map (channels, H, W), a step of one apart; 0 for none."""
    if len(map_shape) != 3 or len(row_shape) != 3 or map_shape[0] != row_shape[0]:
        return 0
    down, across = (side - row + 1 for side, row in zip(map_shape[1:], row_shape[1:], strict=True))
    return down * across if min(down, across) > 0 else 0


def cut_windows(
    maps: Float16Array, map_shape: tuple[int, ...], row_shape: tuple[int, ...], numbers: Places
) -> Float16Array:
    """From each of `maps` (N, channels x H x W) the window of its number (N,), counted row by row: (N, D)."""
    _, height, width = row_shape
    across = map_shape[2] - width + 1
    whole = maps.reshape(len(maps), *map_shape)
    cut = np.empty((len(maps), *row_shape), maps.dtype)
    for number in np.unique(numbers).tolist():
        chosen, (top, left) = numbers == number, divmod(number, across)
        cut[chosen] = whole[chosen, :, top : top + height, left : left + width]
    return cut.reshape(len(maps), -1)


def split_keys(keys: PackedKeys) -> tuple[PackedKeys, Places]:
    """The keys (N,) that shards hold, and the number of the window each asks for, -1 for all of the row."""
    numbers = np.full(len(keys), -1)
    letters: npt.NDArray[np.uint8] = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), keys.itemsize)
    windows = np.flatnonzero((letters[:, _DIGEST:] == ord(":")).sum(1) == 2)
    if not len(windows):
        return keys, numbers
    stored = letters.copy()
    views = np.ascontiguousarray(letters[windows, _DIGEST:]).view(layout.VIEW_DTYPE).reshape(len(windows))
    for view in np.unique(views).tolist():
        name, number = layout.split_window(view.decode("ascii"))
        chosen = windows[views == view]
        numbers[chosen] = number
        stored[chosen, _DIGEST:] = np.frombuffer(np.array([name.encode()], layout.VIEW_DTYPE).tobytes(), np.uint8)
    return stored.view(keys.dtype).reshape(len(keys)), numbers
