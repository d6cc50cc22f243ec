"""The backbone at speed: loaded, and run on blank views."""

import logging
import time
from functools import partial

import numpy as np
import torch

from pipeline.backbones.backbone import Backbone
from pipeline.backbones.fastest import load_backbone
from pipeline.console import duration
from pipeline.errors import PipelineError
from pipeline.extraction.plan import ExtractionContext
from pipeline.machine.device import available_cpus, release_memory

logger = logging.getLogger("headgraft.extraction")


def start_backbone(context: ExtractionContext, rows: int) -> tuple[Backbone, float]:
    """The backbone ready to compute `rows`, and the seconds of its first batch.

    Where a batch does not fit the memory of a device, it is halved; PipelineError where not even one view fits.
    """
    config = context.config
    torch.set_num_threads(config.threads or available_cpus())
    load = partial(
        load_backbone,
        context.manifest.base.backbone,
        context.tensors,
        context.preprocessing,
        layer=context.manifest.base.layer,
        device=context.device,
        precision=context.manifest.base.precision,
    )
    size, network = config.batch_size, None
    while True:
        try:
            network = load(batch_size=size)
            size = network.batch_size
            return network, _warm_up(network, context, rows)
        except torch.OutOfMemoryError:
            if size is None or size == 1:
                raise PipelineError(
                    f"the memory of this {context.device.type} does not hold {config.backbone} and one view of "
                    f"{context.preprocessing.input_size} pixels: use a smaller --image-size, or --device cpu"
                ) from None
        logger.warning(f"a batch of {size} does not fit the memory of this device: batches of {size // 2}")
        size //= 2
        network = None
        release_memory(context.device)


def _warm_up(network: Backbone, context: ExtractionContext, rows: int) -> float:
    """Bring the network to speed on blank views and log how long all will take; the seconds of the first run."""
    size = context.preprocessing.input_size
    count = min(network.batch_size, max(1, rows))
    views = [np.zeros((size, size, 3), np.uint8)] * count
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        network(views)
        seconds.append(time.perf_counter() - start)
    expected = duration(seconds[1] / count * rows)
    logger.info(f"{network.code_path} {network.precision} at {size} on this {network.device.type}: about {expected}")
    return seconds[0]
