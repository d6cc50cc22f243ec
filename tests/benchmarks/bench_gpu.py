"""Stage one and heads on a CUDA device, in steps that are each cut off by themselves: `make gpu`, about 9 minutes.

Needs a Python with torch for CUDA and the packages of pyproject.toml, and no network. VGG16 has its own weights where
they are (or --weights FILE), else random ones; images are those of $HEADGRAFT_FLOWERS, each many times under another
digest, else drawn. Writes docs/results/gpu.json, from which docs/write.py makes the table of docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs/results/gpu.json"
NEEDED = ("click", "h5py", "msgspec", "psutil", "pytest", "rich", "safetensors", "simplejpeg", "torchvision", "xxhash")
SECONDS = {  # a step, and the most that it may take
    "tests": 150,
    "forward": 60,
    "compile": 60,
    "images": 45,
    "files": 120,
    "heads": 60,
}
IMAGES, BATCH, ROWS, CLASSES = 8000, 256, 6552, 102
TESTS = ("device", "views", "group", "fused", "same_rows")


def seconds_of(call: Callable[..., object], *given: object, times: int = 10) -> float:
    """Median seconds of a call on the device, after three that are not counted."""
    import torch

    taken = []
    for number in range(times + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(*given)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start if number >= 3 else 0.0)
    return median(taken[3:])


def pictures() -> list[bytes]:
    """JPEG files: 300 flowers, or as many drawn ones of their size."""
    from io import BytesIO

    from PIL import Image

    folder = Path(os.environ.get("HEADGRAFT_FLOWERS", ROOT / "../shared/flowers102"))
    if files := sorted(folder.rglob("*.jpg"))[:300]:
        return [file.read_bytes() for file in files]
    random, found = np.random.default_rng(0), []
    for _ in range(300):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        buffer = BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def network(precision: str = "bfloat16", batch: int = BATCH) -> Any:
    """VGG16 on the device."""
    import torch

    from pipeline.backbones.catalog import backbone_spec, preprocessing_of
    from pipeline.backbones.fastest import load_backbone
    from pipeline.backbones.sources import load_tensors
    from pipeline.backbones.trunk import build_network
    from pipeline.inputs.decode import FULL_RANGE

    file = os.environ.get("HEADGRAFT_GPU_WEIGHTS")
    real = file or backbone_spec("vgg16").weights.present
    tensors = load_tensors("vgg16", file) if real else build_network("vgg16", 224).state_dict()
    preprocessing, device = preprocessing_of("vgg16", 224, FULL_RANGE), torch.device("cuda", 0)
    return load_backbone("vgg16", dict(tensors), preprocessing, device=device, precision=precision, batch_size=batch)


def views(count: int) -> list[Any]:
    """Clean views of pictures, on the device."""
    import torch

    from pipeline.backbones.catalog import preprocessing_of
    from pipeline.inputs.decode import FULL_RANGE

    preprocessing = preprocessing_of("vgg16", 224, FULL_RANGE)
    some = [torch.from_numpy(preprocessing.view_of(data).copy()).cuda() for data in pictures()[:64]]
    return [some[number % len(some)] for number in range(count)]


def tests() -> dict[str, Any]:
    """All tests of what computes on a device, on the device where they leave that open."""
    import re

    files = [f"tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-rf", "-p", "no:cacheprovider", *files]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    print(output[-3000:], file=sys.stderr, flush=True)
    return {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped)", output.splitlines()[-1])}


def forward() -> dict[str, Any]:
    """Images per second of the backbone on views that lie on the device, rows copied back; and how near to float32."""
    import torch

    some, found = views(BATCH), {}
    exact = network("float32").features(some)
    for precision in ("bfloat16", "float16", "float32"):
        ready = network(precision)
        rows = ready.features(some)
        cosine = float(torch.cosine_similarity(rows, exact).min())
        found[precision] = {"rate": BATCH / seconds_of(ready, some), "cosine": cosine}
    found["path"] = ready.code_path
    return found


def compile() -> dict[str, Any]:
    """What an expert would write: torch.compile of the plain network in bfloat16, channels last, on ready pixels."""
    import torch

    from pipeline.backbones.trunk import build_trunk

    plain = build_trunk("vgg16", 224).cuda().bfloat16().to(memory_format=torch.channels_last)
    pixels = torch.randn(BATCH, 3, 224, 224, device="cuda").bfloat16().to(memory_format=torch.channels_last)
    ours = network()
    with torch.inference_mode():
        eager = BATCH / seconds_of(plain, pixels)
        start = time.perf_counter()
        compiled = torch.compile(plain)
        compiled(pixels)
        torch.cuda.synchronize()
        startup = time.perf_counter() - start
        rates = {"eager": eager, "compiled": BATCH / seconds_of(compiled, pixels)}
        rates["ours"] = BATCH / seconds_of(ours.network, pixels)
    return {**rates, "compile_seconds": startup}


def images() -> dict[str, Any]:
    """Decoding by threads and rendering, each alone, a second; and how far pixels are from the processor's."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from pipeline.backbones.catalog import preprocessing_of
    from pipeline.inputs.decode import FULL_RANGE, decode_rgb
    from pipeline.inputs.device_views import DeviceViews
    from pipeline.inputs.views import Views
    from pipeline.machine.device import available_cpus

    data = pictures()
    found: dict[str, Any] = {"files": len(data), "kilobytes": sum(map(len, data)) / len(data) / 1000}
    for threads in (1, available_cpus() // 2, available_cpus()):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            list(pool.map(decode_rgb, data * 8))
            found[f"decoded_by_{threads}"] = 8 * len(data) / (time.perf_counter() - start)
    rendering = Views(preprocessing_of("vgg16", 224, FULL_RANGE))
    there, pixels = DeviceViews(rendering, torch.device("cuda", 0)), [decode_rgb(some) for some in data[:128]]
    for passes in (0, 4):
        names = [f"pass:{number}" for number in range(passes + 1)]
        decoded = [(0, view) for one in pixels for view in there.prepare(one, bytes(32), names)]
        found[f"views_with_{passes}_passes"] = len(decoded) / seconds_of(lambda some: list(there.finish(some)), decoded)
    differ = [
        np.abs(here.astype(int) - view.cpu().numpy())
        for here, (_, view) in zip(
            (view for one in pixels for view in rendering.render_all(one, bytes(32), names)),
            there.finish(decoded),
            strict=True,
        )
    ]
    found["largest_difference"] = int(max(one.max() for one in differ))
    found["share_that_differs"] = float(np.mean([(one > 0).mean() for one in differ]))
    return found


def files() -> dict[str, Any]:
    """From files to shards: images, then rows of two more passes, per second after the start; by threads."""
    from pipeline.machine.device import available_cpus

    found = {}
    with tempfile.TemporaryDirectory() as text:
        folder, data = Path(text), pictures()
        for number in range(IMAGES):
            file = folder / "data/train" / str(number % 20) / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data[number % len(data)] + str(number).encode())  # after its end: another digest
        weights = os.environ.get("HEADGRAFT_GPU_WEIGHTS")
        given = ["--weights", weights] if weights else []
        for threads in (available_cpus() // 2, available_cpus()):
            for passes in (0, 2):
                found[f"{threads}_threads_{passes}_passes"] = _extracted(folder, threads, passes, given)
    return found


def _extracted(folder: Path, threads: int, passes: int, given: list[str]) -> dict[str, Any]:
    command = [sys.executable, "cli.py", "extract", folder / "data", "--cache", folder / f"cache{threads}", *given]
    command += ["--passes", passes, "--workers", threads, "--device", "cuda", "--json"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stdout[-300:]}
    answer = json.loads(done.stdout)
    return {name: answer[name] for name in ("computed", "images_per_second", "seconds", "bound", "phases")}


def heads() -> dict[str, Any]:
    """1,000 heads of 512 hidden units, 20 epochs on rows drawn as the default basis gives them of the flowers."""
    import torch

    from pipeline.bases.basis import Basis
    from pipeline.bases.data import HeadData
    from pipeline.config.heads import HeadSettings
    from pipeline.search.basis_cache import Split
    from pipeline.search.executor import Executor, Group, Trial, largest_group, train_group

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, CLASSES - 1, generator=generator)

    labels = torch.randint(CLASSES, (ROWS + 818,), generator=generator)
    rows = centres[labels] + 2.2 * torch.randn(len(labels), CLASSES - 1, generator=generator)
    places = torch.arange(len(labels))
    data = HeadData(rows, places[:ROWS, None], labels[:ROWS], places[ROWS:], labels[ROWS:], CLASSES)
    splits = [Split(Basis("", ()), data, data.valid_order)]
    settings, device = HeadSettings("pyramid+white+lda:4", batch_size=128, lr=3e-3), torch.device("cuda", 0)
    group = Group(tuple(Trial(number, settings) for number in range(1000)), 20, 20, 0)
    train_group(Group(group.trials[:8], 1, 20, 0), splits, device)  # the first is slower
    start, hits = time.perf_counter(), []
    for part in group.parts(largest_group(settings, data, device)):
        hits += [score.unpacked(818).mean() for score, _ in Executor(device).train_part(part, splits)]
    return {
        "heads": 1000,
        "epochs": 20,
        "seconds": time.perf_counter() - start,
        "mean_accuracy": float(np.mean(hits)),
    }


def hardware() -> str:
    """The card, its libraries and the processors, in one line."""
    import torch

    from pipeline.machine.device import available_cpus

    libraries = f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, Python {sys.version.split()[0]}"
    return f"{torch.cuda.get_device_name(0)}, {libraries}, {available_cpus()} processors"


def run_steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """What each step found, or why it found nothing."""
    for name, most in SECONDS.items():
        command = [sys.executable, __file__, "--step", name]
        try:
            done = subprocess.run(command, timeout=most, stdout=subprocess.PIPE, text=True, check=False)
            last = (done.stdout.strip().splitlines() or [""])[-1]
            found = json.loads(last) if done.returncode == 0 else {"error": f"ended with status {done.returncode}"}
        except subprocess.TimeoutExpired:
            found = {"error": f"cut off after {most} s"}
        print(f"{name}: {json.dumps(found)}", flush=True)
        yield name, found


def main() -> None:
    """All steps, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", choices=SECONDS, help="this one alone, in this process")
    parser.add_argument("--weights", type=Path, help="file of VGG16's weights")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["HEADGRAFT_OFFLINE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if options.step:
        print(json.dumps(globals()[options.step]()), flush=True)
        return
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        sys.exit(f"this Python lacks {', '.join(lacking)}: install them, then run this again")
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: run this on a machine with one")
    if options.weights:
        os.environ["HEADGRAFT_GPU_WEIGHTS"] = str(options.weights.resolve())
    result = {"command": "make gpu", "date": f"{date.today()}", "hardware": hardware(), **dict(run_steps())}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
