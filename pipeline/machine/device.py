"""What this machine computes on, and in what precision; imports no more of torch than it must."""

import math
import os

import torch

from pipeline.errors import PipelineError
from pipeline.machine.cgroup import group_folders
from pipeline.machine.memory import available_bytes


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; a device that is not there is refused."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise PipelineError("--device cuda, but torch finds no CUDA device here; use --device cpu")
    return torch.device(device)


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that this process may still use."""
    return available_bytes() if device.type == "cpu" else int(torch.cuda.mem_get_info(device)[0])


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bf16 arithmetic that torch uses, rather than emulating it a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    have = torch.cpu.get_capabilities()
    return bool(have.get("avx512_bf16") or have.get("amx_bf16")) and onednn_takes_bfloat16()


def onednn_takes_bfloat16() -> bool:
    """Whether oneDNN, which computes a CPU's products, takes bfloat16; ONEDNN_MAX_CPU_ISA can forbid it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(precision: str, device: torch.device, stored: str | None = None) -> str:
    """`auto` is what is `stored` already, else bfloat16 where the device computes in it, else float32."""
    if precision == "auto":
        precision = stored or ("bfloat16" if computes_bfloat16(device) else "float32")
    if precision == "bfloat16" and not computes_bfloat16(device):
        raise PipelineError(
            f"bfloat16 was asked for, but this {device.type} does not compute in it; "
            "use --precision float32 and another cache"
        )
    return precision


def available_cpus() -> int:
    """Processors this process may use: of its affinity, and in the time its control groups are given, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(share) for share in _quotas())]))


def _quotas() -> list[float]:
    """Processors' worth of time that each limited control group of this process is given."""
    found = []
    for version, folder in group_folders("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except (OSError, ValueError):
            continue
        if quota != "max" and int(quota) > 0:
            found.append(int(quota) / int(period))
    return found
