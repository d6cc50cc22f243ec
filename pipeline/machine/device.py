"""What this machine computes on, and in what precision; the one place that knows devices by their names."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.errors import PipelineError
from pipeline.machine.cgroup import group_folders
from pipeline.machine.memory import available_bytes

logger = logging.getLogger("headgraft.machine")

CPU = torch.device("cpu")


def resolve_device(device: str) -> torch.device:
    """`auto` is the accelerator that torch computes on, else the CPU; PipelineError for one that is not there."""
    try:
        wanted = None if device == "auto" else torch.device(device)
    except RuntimeError:
        raise PipelineError(f"--device {device!r}, expected auto, cpu, cuda, mps, xpu, or cuda:1 and so on") from None
    if wanted is not None and wanted.type == "cpu":
        return CPU
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    wanted = wanted or found
    if wanted is None:
        return CPU
    if found is None or wanted.type != found.type:
        there = f"only {found.type}" if found else "no accelerator"
        raise PipelineError(f"--device {device}, but torch finds {there} here; use --device {found or CPU}")
    index = torch.accelerator.current_device_index() if wanted.index is None else wanted.index
    wanted = torch.device(wanted.type, index)
    if fault := _fault(wanted):
        if device != "auto":
            raise PipelineError(f"--device {device}, but it computes nothing ({fault}); use --device cpu")
        logger.warning(f"the {wanted.type} device here computes nothing ({fault}): the CPU is used")
        return CPU
    return wanted


def _fault(device: torch.device) -> str:
    """Why `device` computes nothing, such as that torch has no kernels for a card of its age; "" where it does."""
    try:
        (torch.zeros(8, device=device) + 1).cpu()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def free_bytes(device: torch.device) -> int:
    """Memory of `device` that this process may still use, what torch keeps for itself between uses among it."""
    if device.type == "cpu":
        return available_bytes()
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    own = torch.get_device_module(device)
    return int(own.mem_get_info(device)[0] + own.memory_reserved(device) - own.memory_allocated(device))


def release_memory(device: torch.device) -> None:
    """Give back what torch keeps for itself between uses, after it ran out."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def capability(device: torch.device) -> str:
    """What kind of processor or card it is: rows that one kind computed are the same to rounding."""
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return device.type if device.type == "mps" else str(torch.get_device_module(device).get_device_name(device))


def libraries(device: torch.device) -> dict[str, str]:
    """Versions of what computes there beside torch, which rows can depend on."""
    return {"cudnn": str(torch.backends.cudnn.version())} if device.type == "cuda" else {}


def pins_memory(device: torch.device) -> bool:
    """Whether `device` fetches what lies in pinned memory of the host by itself, beside everything else."""
    return device.type in ("cuda", "xpu")


def sums_in(device: torch.device) -> torch.dtype:
    """The widest floating-point type of `device`."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """On CUDA, float32 is computed in float32 and not in TF32, whatever the process has chosen."""
    if device.type != "cuda":
        yield
        return
    switches: list[tuple[Any, str, Any]]
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(cudnn, "conv"):  # torch 2.9
        switches = [(cudnn.conv, "fp32_precision", "ieee"), (matmul, "fp32_precision", "ieee")]
    else:
        switches = [(cudnn, "allow_tf32", False), (matmul, "allow_tf32", False)]
    before = [getattr(part, name) for part, name, _ in switches]
    try:
        for part, name, value in switches:
            setattr(part, name, value)
        yield
    finally:
        for (part, name, _), value in zip(switches, before, strict=True):
            setattr(part, name, value)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bf16 arithmetic that torch uses, rather than emulating it a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    if device.type == "xpu":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # of later versions than 2.7
        return bool(torch.cpu._is_avx512_bf16_supported()) and onednn_takes_bfloat16()
    have = torch.cpu.get_capabilities()
    return bool(have.get("avx512_bf16") or have.get("amx_bf16")) and onednn_takes_bfloat16()


def computes(device: torch.device, precision: str) -> bool:
    """Whether `device` computes in `precision` at speed: float16 everywhere but on CPUs."""
    if precision == "float16":
        return device.type != "cpu"
    return precision == "float32" or computes_bfloat16(device)


def onednn_takes_bfloat16() -> bool:
    """Whether oneDNN, which computes a CPU's products, takes bfloat16; ONEDNN_MAX_CPU_ISA can forbid it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(precision: str, device: torch.device, stored: str | None = None) -> str:
    """`auto` is what is `stored` already, else bfloat16 where the device computes in it, else float32."""
    if precision == "auto":
        precision = stored or ("bfloat16" if computes_bfloat16(device) else "float32")
    if not computes(device, precision):
        raise PipelineError(
            f"{precision} was asked for, but this {device.type} does not compute in it; "
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
