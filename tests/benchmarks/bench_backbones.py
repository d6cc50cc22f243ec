"""Forward passes of networks beside plain torch, torch.compile and onnxruntime: `make bench-backbones`.

All ways compute the same batch of uint8 views in turn, round after round, so that other work on the machine slows all
of them alike; a rate is by the median of the rounds, after a batch that is not counted. Each counts its own
normalising. Beside each rate is its accuracy: the lowest cosine of a row to that of the plain network in float32.
Weights are random, since speed does not depend on them, or --weights NAME=FILE. Writes docs/results/backbones.json,
from which docs/write.py makes the table of docs/performance.md.
"""

import argparse
import copy
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from beside import FLOWERS, ROOT, hardware, say
from torch import Tensor, nn

from pipeline.backbones.backbone import normalise
from pipeline.backbones.catalog import preprocessing_of
from pipeline.backbones.fastest import load_backbone
from pipeline.backbones.sources import load_tensors
from pipeline.backbones.trunk import build_network, build_trunk
from pipeline.inputs.decode import FULL_RANGE, Pixels
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import CPU, available_cpus, computes

RESULT = ROOT / "docs/results/backbones.json"
DINOV2, LITE0 = "timm/vit_small_patch14_dinov2.lvd142m", "timm/tf_efficientnet_lite0.in1k"
NETWORKS = (
    *("vgg16", "alexnet", "resnet50", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "vit_b_16"),
    *(LITE0, DINOV2),
)
LAYOUTS = (torch.channels_last, torch.contiguous_format)
Way = Callable[[list[Pixels]], Tensor]  # from views (size, size, 3) uint8 to rows (B, D) float32


class Plain(nn.Module):
    """What one would write: (B, size, size, 3) uint8 → normalised → `network`, in `dtype` → (B, D) float32."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.preprocessing, self.dtype = network, preprocessing, dtype

    def forward(self, views: Tensor) -> Tensor:
        """Rows of a batch."""
        pixels = normalise(views.permute(0, 3, 1, 2), self.preprocessing)
        rows: Tensor = self.network(pixels.to(self.dtype)).float()
        return rows


def preprocessing_for(name: str) -> Preprocessing:
    """That of the weights; DINOv2's are of 518 pixels, which nobody waits for."""
    return preprocessing_of(name, 224, FULL_RANGE)


def drawn(name: str) -> dict[str, Tensor]:
    """Random tensors of a network, statistics of batch norm too."""
    torch.manual_seed(0)
    network = build_network(name, 224)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn_like(layer.bias) / 10
            layer.running_var = torch.rand_like(layer.bias) + 0.5
    return {key: value.clone() for key, value in network.state_dict().items() if value.is_floating_point()}


def views_of(preprocessing: Preprocessing, count: int) -> list[Pixels]:
    """Clean views of flowers, or noise where there are none."""
    if files := sorted(FLOWERS.rglob("*.jpg"))[:: max(1, 8000 // count)][:count]:
        return [preprocessing.view_of(file.read_bytes()).copy() for file in files]
    random, side = np.random.default_rng(0), preprocessing.input_size
    return [random.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in range(count)]


def ours(name: str, tensors: dict[str, Tensor], preprocessing: Preprocessing, precision: str) -> Way:
    """As extract computes."""
    backbone = load_backbone(name, tensors, preprocessing, device=CPU, precision=precision)
    say(f"  {precision}: {backbone.code_path}")
    return backbone.features


def eager(network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype, views: list[Pixels]) -> Way:
    """The network as it is, in the faster layout of its weights."""
    ways = [_on_batch(Plain(_copied(network, dtype, layout), preprocessing, dtype)) for layout in LAYOUTS]
    for way in ways:
        way(views)
    return min(ways, key=lambda way: _seconds(way, views))


def compiled(network: nn.Module, preprocessing: Preprocessing, dtype: torch.dtype) -> Way:
    """By inductor, with weights as constants: without that it puts few layers together on a processor."""
    plain = Plain(_copied(network, dtype, torch.channels_last), preprocessing, dtype).eval()
    return _on_batch(torch.compile(plain, options={"freezing": True}))


def by_onnxruntime(network: nn.Module, preprocessing: Preprocessing, views: list[Pixels], scratch: Path) -> Way:
    """In float32, exported for this size of batch."""
    plain, file = Plain(network, preprocessing, torch.float32).eval(), scratch / "network.onnx"
    program = torch.onnx.export(plain, (torch.from_numpy(np.stack(views)),), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would slow whoever is next
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    return lambda views: torch.from_numpy(session.run(None, {given: np.stack(views)})[0])


def _copied(network: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
    return copy.deepcopy(network).to(dtype).to(memory_format=layout)


def _on_batch(call: Callable[[Tensor], Tensor]) -> Way:
    return lambda views: call(torch.from_numpy(np.stack(views)))


def _seconds(way: Way, views: list[Pixels]) -> float:
    start = time.perf_counter()
    way(views)
    return time.perf_counter() - start


def ways_of(name: str, file: str | None, views: list[Pixels], scratch: Path) -> Iterator[tuple[str, Callable[[], Way]]]:
    """What builds each way of network `name`, by the name of the way."""
    tensors, preprocessing = load_tensors(name, file, 224) if file else drawn(name), preprocessing_for(name)
    network = build_trunk(name, 224, None, tensors)
    yield "onnxruntime float32", partial(by_onnxruntime, network, preprocessing, views, scratch)
    for precision in ("float32", "bfloat16"):
        if computes(CPU, precision):
            given = network, preprocessing, getattr(torch, precision)
            yield f"eager {precision}", partial(eager, *given, views)
            yield f"compile {precision}", partial(compiled, *given)
            yield f"headgraft {precision}", partial(ours, name, dict(tensors), preprocessing, precision)


@torch.no_grad()
def measured(name: str, file: str | None, batch: int, rounds: int) -> dict[str, Any]:
    """Of each way: images a second, lowest cosine, seconds until its first batch is done."""
    views, ways, rows, start_seconds = views_of(preprocessing_for(name), batch), {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for way, build in ways_of(name, file, views, Path(scratch)):
            start = time.perf_counter()
            ways[way] = build()
            rows[way] = ways[way](views).double()
            start_seconds[way] = time.perf_counter() - start
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, call in ways.items():
                seconds[way].append(_seconds(call, views))
    found = {
        way: {
            "rate": batch / median(seconds[way]),
            "cosine": float(torch.cosine_similarity(rows[way], rows["eager float32"]).min()),
            "start_seconds": start_seconds[way],
        }
        for way in ways
    }
    for way, one in found.items():
        say(f"  {way}: {one['rate']:.2f} images/s, cosine {one['cosine']:.6f}, start {one['start_seconds']:.1f} s")
    return found


def processor() -> str:
    """Its name, where the system says it."""
    about = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", about.read_text("utf-8")) if about.exists() else None
    return found[1] if found else "unnamed processor"


def main() -> None:
    """All networks, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="real ones, of some networks")
    parser.add_argument("--batch", type=int, default=8, help="views at once; extract computes 8 [default: 8]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(available_cpus())
    files, networks = dict(one.split("=", 1) for one in options.weights), {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # nothing is compiled before, and nothing stays
        for name in options.networks:
            say(name)
            networks[name] = measured(name, files.get(name), options.batch, options.rounds)
            torch.compiler.reset()
    result = {
        "command": "make bench-backbones",
        "date": f"{date.today()}",
        "hardware": f"{processor()}, {hardware()}, onnxruntime {onnxruntime.__version__}",
        "batch": options.batch,
        "rounds": options.rounds,
        "networks": networks,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
