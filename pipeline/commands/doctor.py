"""What this installation and this machine have, and what to do where something is wrong or missing."""

import platform
import shutil
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cache.errors import CacheError, counted, install_hint
from cache.files import refuse_unwritable
from cache.lock import lack_of_locks
from cache.result import Result
from pipeline.config.extract import ExtractConfig
from pipeline.console import first_line, reason, size
from pipeline.errors import WeightsError

Status = Literal["ok", "missing", "warning", "error"]

SOURCE = Path(__file__).resolve().parents[2]
REINSTALL = "run pip install -e . in the folder of headgraft's source"
WRITABLE = "set XDG_CACHE_HOME to a folder that can be written"
_LOADED = {"torch": ("torch",), "torchvision": ("torchvision",), "decoding": ("simplejpeg", "pillow")}
_MODULES = {"pillow": "PIL", "headgraft": "pipeline"}  # of packages that are imported by another name


@dataclass(frozen=True)
class Check:
    """One part of the installation or the machine.

    Attributes:
        name: of the part; an extra in brackets, as pip takes it.
        status: `error` where stage one or two cannot run, `missing` for what is optional or can be fetched.
        found: what is there.
        advice: what to do; "" where nothing is wrong.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class DoctorResult(Result):
    """What `doctor` found.

    Attributes:
        ready: whether stages one and two can run.
        checks: one for each part.
    """

    ready: bool
    checks: list[Check]

    def in_words(self) -> str:
        """A line for each check, with what to do."""
        return "\n".join(
            f"{one.status:8} {one.name:14} {': '.join(filter(None, (one.found, one.advice)))}" for one in self.checks
        )


def doctor() -> DoctorResult:
    """Check the installation, the machine, the current folder and the weights. Fetches nothing."""
    checks = [_program(), Check("Python", "ok", f"{platform.python_version()}, {platform.platform()}")]
    installed = checks[0].status != "error"
    checks += _libraries() if installed else []
    if {one.name for one in checks if one.status == "ok"} >= {"torch", "torchvision"}:
        checks += [*_machine(), *_weights()]
    here = _folder("current folder", Path(), "change to another folder, or name others with --cache and --run")
    checks += [here, *([_locks()] if here.status == "ok" else []), *(_extras() if installed else [])]
    return DoctorResult(all(one.status != "error" for one in checks), checks)


def _program() -> Check:
    """The version installed, which an editable install does not update when the source changes."""
    try:
        installed = metadata.version("headgraft")
    except metadata.PackageNotFoundError:
        return Check("headgraft", "error", "not installed for this Python", REINSTALL)
    file = SOURCE / "pyproject.toml"
    version = tomllib.loads(file.read_text("utf-8"))["project"]["version"] if file.is_file() else installed
    if version != installed:
        return Check("headgraft", "warning", f"the source is {version}, installed as {installed}", REINSTALL)
    return Check("headgraft", "ok", f"{installed}, in {SOURCE}")


def _requirements(extra: str = "") -> list[Requirement]:
    """The packages that an extra installs, or the program itself."""
    every = map(Requirement, metadata.requires("headgraft") or [])
    return [one for one in every if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)]


def _libraries() -> Iterator[Check]:
    """The libraries that break in practice by themselves, imported; the others by their versions."""
    others = {one.name: one for one in _requirements()}
    for name, packages in _LOADED.items():
        check = _packages(name, [others.pop(one) for one in packages if one in others], "error", REINSTALL)
        yield _with_build(check) if name == "torch" and check.status == "ok" else check
    yield _packages("libraries", list(others.values()), "error", REINSTALL, load=False)


def _with_build(check: Check) -> Check:
    import torch

    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": torch.version.xpu}
    build = next((f"{kind} {version}" for kind, version in kinds.items() if version), "CPU")
    return Check(check.name, check.status, f"{check.found}, {build} build")


def _extras() -> Iterator[Check]:
    """A check for each extra that users install."""
    for extra in metadata.metadata("headgraft").get_all("Provides-Extra") or []:
        if extra != "dev":
            yield _packages(f"[{extra}]", _requirements(extra), "warning", install_hint(extra))


def _packages(name: str, packages: list[Requirement], bad: Status, advice: str, load: bool = True) -> Check:
    """Whether packages are installed in versions that are required and, with `load`, can be imported."""
    found, faults, status = [], [], bad
    for package in packages:
        try:
            version = metadata.version(package.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{package.name} is not installed")
            status = bad if bad == "error" else "missing"
            continue
        found.append(f"{package.name} {version}")
        if not package.specifier.contains(version, prereleases=True):
            faults.append(f"{package.name} is {version}, expected {package.specifier}")
        elif load and (fault := _import_fault(package.name)):
            faults.append(f"{package.name} {version} cannot be imported ({fault})")
    if faults:
        return Check(name, status, "; ".join(faults), advice)
    return Check(name, "ok", ", ".join(found))


def _import_fault(package: str) -> str:
    """Why a package that is installed cannot be imported; "" where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(_MODULES.get(package, package.replace("-", "_")))
    except Exception as error:  # a broken package raises anything: that is what is looked for
        return first_line(error)
    return ""


def _machine() -> Iterator[Check]:
    """What computes, in which precision, and the free memory."""
    import torch

    from pipeline.machine import device as machine

    device = machine.resolve_device("auto")
    bfloat16 = "bfloat16" if machine.computes_bfloat16(machine.CPU) else "no bfloat16"
    processors = counted(machine.available_cpus(), "processor")
    found = [f"cpu: {machine.capability(machine.CPU)}, {bfloat16}, {processors}"]
    if device.type != "cpu":
        found.append(f"{device.type}: {torch.accelerator.device_count()} × {machine.capability(device)}")
    yield Check("devices", "ok", "; ".join(found))
    yield Check("precision", "ok", f"auto is {machine.resolve_precision('auto', device)} on this {device.type}")
    memory = [f"{size(machine.free_bytes(one))} free ({one.type})" for one in dict.fromkeys([machine.CPU, device])]
    yield Check("memory", "ok", ", ".join(memory))


def _weights() -> Iterator[Check]:
    """Which weights there are, what `weights fetch` would do for those of the default backbone, and their folder."""
    from pipeline.backbones.catalog import backbone_spec
    from pipeline.backbones.sources import first_source, is_offline
    from pipeline.backbones.weights import weights_folder

    try:
        folder = weights_folder()
    except WeightsError as error:
        yield Check("weights", "error", str(error))
        return
    weights, offline = backbone_spec(ExtractConfig.backbone).weights, "HEADGRAFT_OFFLINE is 1" if is_offline() else ""
    there = ", ".join(file.stem for file in sorted(folder.glob("*.safetensors")))
    place = _folder("weights folder", folder, WRITABLE, "warning" if weights.present or there else "error")
    source = first_source(weights) if place.status == "ok" else ""
    if weights.present:
        yield Check("weights", "ok", "; ".join(filter(None, (there, offline))))
    elif source:
        yield Check("weights", "missing", f"none of {weights.backbone}", f"headgraft weights fetch takes {source}")
    else:
        found = "; ".join(filter(None, (f"none of {weights.backbone}", there, offline)))
        own = f"put them at {weights.path}, or name a file with --weights"
        yield Check("weights", "warning" if there else "error", found, own)
    yield place


def _folder(name: str, folder: Path, advice: str, bad: Status = "error") -> Check:
    """Whether a folder, which need not exist, can be written, and the free disk."""
    folder = folder.absolute()
    try:
        refuse_unwritable(folder)
    except CacheError as error:
        return Check(name, bad, f"cannot write in {folder} ({reason(error)})", advice)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return Check(name, "ok", f"{folder}, {size(shutil.disk_usage(existing).free)} free")


def _locks() -> Check:
    """Whether files of the current folder can be locked."""
    if lack := lack_of_locks(Path()):
        return Check("file locks", "warning", lack, "do not write one cache from two processes")
    return Check("file locks", "ok", "work in the current folder")
