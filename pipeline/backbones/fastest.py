"""The fastest way to compute a backbone's rows that gives its rows: each is compared with the plain network."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.backbones.backbone import STEPS, Backbone, normalise, rounded_mean
from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.fused import fuse, traced
from pipeline.backbones.golden import Golden, Views, golden_of, golden_pixels, golden_views
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.trunk import build_trunk
from pipeline.backbones.winograd import accelerate
from pipeline.console import first_line
from pipeline.errors import WeightsError
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.machine.device import CPU
from pipeline.machine.memory import keep_freed_memory

_LEAST = {True: 0.9999, False: 0.9995}  # cosine to plain float32 rows, of float32 and of others: cache/FORMAT.md
_SMALL = 96  # pixels of the views that a fast path is tried on, where the network takes them

logger = logging.getLogger("headgraft.backbones")


def _first_convolution(network: nn.Module) -> nn.Conv2d | None:
    """The first that takes three channels; a kind of its own, such as one that standardises its weights, is none."""
    found = (layer for layer in network.modules() if type(layer) is nn.Conv2d and layer.in_channels == 3)
    return next(found, None)


def _take_centred(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Fold what `normalise` does beyond `centre` into the first convolution of `network`, in place.

    Normalised pixels rounded to bfloat16 are off by the same amount all over an area of one colour, such as a black
    corner, and that error does not average out. Zero padding here stands for the rounded mean, a difference
    of at most half a grey level along the border.
    """
    first = _first_convolution(network)
    assert first is not None
    given = preprocessing.mean, preprocessing.std, rounded_mean(preprocessing)
    mean, std, grey = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in given)
    weight = first.weight.double()
    shift = (weight * ((grey / 255 - mean) / std)).sum((1, 2, 3))
    bias = shift if first.bias is None else first.bias.double() + shift
    first.weight = nn.Parameter((weight * (STEPS / (255 * std))).float())
    first.bias = nn.Parameter(bias.float())


def load_backbone(
    name: str,
    tensors: dict[str, Tensor],
    preprocessing: Preprocessing,
    *,
    layer: str | None = None,
    device: torch.device,
    precision: str,
    batch_size: int | None = None,
) -> Backbone:
    """Put `tensors` into backbone `name` on `device`, frozen; a row is the output of `layer`, or of the default one.

    The first way to compute that is near enough to the plain network in float32, fastest first: layers put together,
    one by one, and one by one on pixels that are normalised.
    """
    found, remarks = _fastest(name, tensors, preprocessing, layer, device, precision, batch_size)
    for remark in remarks:
        logger.warning(f"{name}{remark}")
    return found


def _fastest(
    name: str,
    tensors: dict[str, Tensor],
    preprocessing: Preprocessing,
    layer: str | None,
    device: torch.device,
    precision: str,
    batch_size: int | None,
) -> tuple[Backbone, list[str]]:
    """The backbone, and what is odd about it: ends of sentences that begin with its name."""
    if device.type == "cpu":
        keep_freed_memory()
    if batch_size is None:
        batch_size = 8 if device.type == "cpu" else max(1, int(256 * (224 / preprocessing.input_size) ** 2))
    spec = backbone_spec(name)
    plain = build_trunk(name, preprocessing.input_size, layer, tensors)
    expected = _expected(spec, plain, preprocessing)
    centres = precision != "float32" and not spec.transforms_input and expected.centres

    def candidate(fast: bool, centred: bool) -> Backbone:
        trunk = copy.deepcopy(plain)
        trunk = traced(spec.as_torch_layers(trunk, preprocessing.input_size)) if fast else trunk
        network = _ready(trunk, preprocessing if centred else None, device, precision)
        path = _put_together(network, device, precision) if fast else "eager"
        found = Backbone(network, preprocessing, device, precision, batch_size, path, centred)
        nearness = _nearness(found, expected)
        return replace(found, nearness=nearness, golden=expected.golden, built_by=spec.built_by)

    return _nearest(candidate, centres, _LEAST[precision == "float32"])


def _nearest(candidate: Callable[[bool, bool], Backbone], centres: bool, least: float) -> tuple[Backbone, list[str]]:
    """The first that is near enough to the plain network; else the first that is about as near as any can be.

    What a way loses that all lose is lost to the precision. A way that raises is left out, with a remark.
    """
    found: list[Backbone] = []
    remarks: list[str] = []
    ways = list(dict.fromkeys([(True, centres), (False, centres), (False, False)]))
    for way in ways:
        try:
            one = candidate(*way)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            if way == ways[-1] or isinstance(error, torch.OutOfMemoryError):
                raise
            remarks.append(f": a faster way to compute it does not run here ({first_line(error)})")
            continue
        if one.nearness >= least:
            return one, remarks
        found.append(one)
    best = max(found, key=lambda one: one.nearness)
    if best.nearness - found[0].nearness < 1 - best.nearness:
        best = found[0]
    else:
        remarks.append(" computes something else when its layers are put together: they are called one by one")
    cosine = f"rows of noise have a cosine of {best.nearness:.4f} to float32, less than {least}"
    return best, [*remarks, f" in {best.precision}: {cosine}"]


def _ready(network: nn.Module, centred: Preprocessing | None, device: torch.device, precision: str) -> nn.Module:
    """The network on the device in this precision, channels last, taking centred pixels if that is asked for."""
    if centred:
        _take_centred(network, centred)
    network = network.to(device, getattr(torch, precision)).to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # what could not be folded keeps its statistics
            layer.float()
    return network.requires_grad_(False)


def _put_together(network: nn.Module, device: torch.device, precision: str) -> str:
    """Layers of `network` put together, in place, as is fastest on `device`; the name of that path."""
    if device.type not in ("cpu", "cuda"):
        return "eager"
    accelerated = device.type == "cpu" and precision == "float32" and accelerate(network)
    fused = fuse(network)
    return "winograd" if accelerated else "fused" if fused else "eager"


def bears_bfloat16(name: str, layer: str | None, tensors: dict[str, Tensor], preprocessing: Preprocessing) -> bool:
    """Whether rows in bfloat16 are as near to float32 as cache/FORMAT.md has it, on a few views of noise.

    Networks whose channels are each summed by themselves lose more than others.
    """
    found, _ = _fastest(name, tensors, preprocessing, layer, CPU, "bfloat16", None)
    return found.nearness >= _LEAST[False]


def golden_at(name: str, layer: str | None, tensors: Mapping[str, Tensor], preprocessing: Preprocessing) -> Golden:
    """Golden rows of backbone `name` with these tensors, as `load_backbone` finds them."""
    plain = build_trunk(name, preprocessing.input_size, layer, tensors)
    return _expected(backbone_spec(name), plain, preprocessing).golden


@dataclass(frozen=True)
class _Expected:
    """What the plain network makes of a few views in float32 on the CPU.

    Attributes:
        views: (2, S, S, 3), noise.
        rows: of these, (2, D).
        golden: of other scaling.
        centres: whether what the network does first is a plain convolution, of the pixels as they are.
    """

    views: Views
    rows: Tensor
    golden: Golden
    centres: bool


@torch.inference_mode()
def _expected(spec: BackboneSpec, plain: nn.Module, preprocessing: Preprocessing) -> _Expected:
    """PipelineError where what it makes is not finite. The views are small where the network takes that."""
    size = preprocessing.input_size if spec.positions else min(preprocessing.input_size, _SMALL)
    views, seen = golden_views(size)[:2], []
    pixels = normalise(torch.from_numpy(views.copy()).permute(0, 3, 1, 2), preprocessing)
    batch = torch.cat([pixels, golden_pixels(size)])
    first = _first_convolution(plain)
    hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0] is batch)) if first else None
    rows: Tensor = plain(batch)
    if hook:
        hook.remove()
    if not rows.isfinite().all():
        raise WeightsError(f"{spec.name} makes of noise what is not finite: its weights are damaged, or not its own")
    return _Expected(views, rows[:2], golden_of(rows[2:]), seen == [True])


def _nearness(backbone: Backbone, expected: _Expected) -> float:
    """Lowest cosine of a backbone's rows to those of the plain network."""
    small = replace(backbone, batch_size=len(expected.views))  # a device's memory may hold no more
    found = small.features([*expected.views])
    return float(torch.cosine_similarity(expected.rows.double(), found.double()).min().nan_to_num(-1))
