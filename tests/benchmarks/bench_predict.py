"""A model's rate beside stage one's, one image cold and warm, what a mirrored look gains, the service under load.

`make bench-predict MODEL=model.safetensors`; the flowers are looked for in $HEADGRAFT_FLOWERS.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from beside import FLOWERS, ROOT, hardware, run, subset

from pipeline.machine.device import available_cpus
from pipeline.model.file import load_model

BOUNDARY = "boundary"


def bench_rate(model: Path, images: Path, scratch: Path) -> None:
    """Predictions and features of the same files."""
    count = sum(1 for _ in (images / "train").rglob("*.jpg"))
    rates = []
    for number in range(3):
        ours = run("cli.py", "predict", model, images / "train", "--json")
        features = run("cli.py", "extract", images, "--cache", scratch / f"cache{number}", "--json")
        rates.append((ours["images_per_second"], features["images_per_second"], ours["seconds"]))
    predicted, extracted, seconds = (float(np.median(values)) for values in zip(*rates, strict=True))
    print(
        f"{count} flowers, images/s: predict {predicted:.2f}, extract {extracted:.2f}: {predicted / extracted:.0%};",
        end=" ",
    )
    print(f"predict in all {seconds:.1f} s with reading the model", flush=True)


def bench_latency(model: Path, image: Path) -> None:
    """One image: a whole command, then again and again in one process."""
    start = time.perf_counter()
    run("cli.py", "predict", model, image, "--json")
    cold = time.perf_counter() - start
    torch.set_num_threads(available_cpus())
    bundle = load_model(model)
    warm = []
    for _ in range(12):
        start = time.perf_counter()
        bundle.predict([image])
        warm.append(time.perf_counter() - start)
    print(f"one image: {cold:.2f} s the whole command, {np.median(warm[2:]):.3f} s warm, in float32", flush=True)


def bench_mirrored(model: Path, data: Path) -> None:
    """Test accuracy with and without --tta flip."""
    for tta in ("none", "flip"):
        found = run("cli.py", "evaluate", model, data, "--tta", tta, "--json")
        print(f"--tta {tta}: top-1 {found['top1']:.2%}, calibration error {found['ece']:.4f}", flush=True)


def resident(pid: int) -> float:
    """MiB of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def post(address: str, name: str, data: bytes) -> tuple[int, str, float]:
    """Status, Retry-After and seconds of one upload."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}/predict", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    )
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            return response.status, "", time.perf_counter() - start
    except urllib.error.HTTPError as error:
        with error:
            assert json.loads(error.read())["reason"]
            return error.code, error.headers.get("Retry-After", ""), time.perf_counter() - start


def bench_service(model: Path, images: list[Path], requests: int, at_once: int) -> None:
    """Many uploads, a tenth of them no images: statuses, latency, memory."""
    port = 8731
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "cli.py", "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{address}/health"):
                    break
            except urllib.error.URLError:
                time.sleep(0.2)
        files = [path.read_bytes() for path in images]

        def one(number: int) -> tuple[int, str, float]:
            data = files[number % len(files)]
            return post(address, f"{number}.jpg", data[: len(data) // 3] if number % 10 == 0 else data)

        memory = []
        found: list[tuple[int, str, float]] = []
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, requests, requests // 10):
                found += pool.map(one, range(start, start + requests // 10))
                memory.append(resident(process.pid))
        seconds = [taken for status, _, taken in found if status == 200]
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        print(f"{requests} requests, {at_once} at once: {dict(Counter(status for status, _, _ in found))};", end=" ")
        print(f"p50 {p50:.2f} s, p95 {p95:.2f}, p99 {p99:.2f}; {len(seconds) / sum(seconds) * at_once:.1f} images/s")
        print(f"  resident MiB after each tenth: {', '.join(f'{value:.0f}' for value in memory)}", flush=True)
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--only", choices=("rate", "latency", "mirrored", "service"), help="one part")
    options = parser.parse_args()
    model = options.model.absolute()
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as text:
        images = Path(text) / "images"
        subset(images / "train", options.images)
        some = sorted((images / "train").rglob("*.jpg"))[:200]
        if options.only in (None, "rate"):
            bench_rate(model, images, Path(text))
        if options.only in (None, "latency"):
            bench_latency(model, some[0])
        if options.only in (None, "mirrored"):
            bench_mirrored(model, FLOWERS)
        if options.only in (None, "service"):
            bench_service(model, some, options.requests, 16)


if __name__ == "__main__":
    main()
