"""Control groups of this process, where Linux limits its memory and its processors."""

from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def group_folders(controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of the process's group for `controller` and of every group above it."""
    for line in _CGROUP.read_text().splitlines() if _CGROUP.is_file() else ():
        number, controllers, place = line.split(":", 2)
        if number == "0":
            version, root = 2, _ROOT
        elif controller in controllers.split(","):
            version, root = 1, _ROOT / controllers
            if not root.is_dir():  # mounted under the one name
                root = _ROOT / controller
        else:
            continue
        inside = root / place.lstrip("/")
        yield from ((version, folder) for folder in (inside, *inside.parents))
