"""How much memory this process may still use."""

import resource
from pathlib import Path

from pipeline.machine.cgroup import group_folders

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


def available_bytes() -> int:
    """The least of: what the machine has free, what the process's control group allows, and its own limits."""
    return max(0, min([_machine(), *_control_groups(), *_limits()]))


def allowed_bytes(asked: float | None) -> int:
    """`asked` GB in bytes; where nothing is asked, half of what is free."""
    return available_bytes() // 2 if asked is None else int(asked * 1e9)


def _machine() -> int:
    return _kilobytes(_MEMINFO, "MemAvailable") if _MEMINFO.is_file() else 1 << 62


def _kilobytes(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _control_groups() -> list[int]:
    """What the process's groups and those above them have left; cached file pages can be given up."""
    found = []
    for version, folder in group_folders("memory"):
        limit_file, used = ("memory.max", "anon") if version == 2 else ("memory.limit_in_bytes", "total_rss")
        try:
            limit = (folder / limit_file).read_text().strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            found.append(int(limit) - int(stat[used]))
    return found


def _limits() -> list[int]:
    used = {resource.RLIMIT_DATA: "VmData", resource.RLIMIT_AS: "VmSize"}
    limits = ((resource.getrlimit(kind)[0], name) for kind, name in used.items())
    return [soft - _kilobytes(_STATUS, name) for soft, name in limits if soft != resource.RLIM_INFINITY]
