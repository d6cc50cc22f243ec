"""The backbone at speed: loaded, compiled where that pays and works, and run on blank views."""

import logging
import time
from functools import partial

import numpy as np
import torch

from pipeline.backbones.backbone import Backbone, load_backbone
from pipeline.backbones.compiled import worth_compiling
from pipeline.console import duration, first_line
from pipeline.extraction.plan import ExtractionContext
from pipeline.machine.device import available_cpus

logger = logging.getLogger("headgraft.extraction")


def start_backbone(context: ExtractionContext, rows: int) -> tuple[Backbone, float]:
    """The backbone ready to compute `rows`, and the seconds of its first batch, compilation among them."""
    config = context.config
    torch.set_num_threads(config.threads or available_cpus())
    load = partial(
        load_backbone,
        config.backbone,
        context.tensors,
        context.preprocessing,
        device=context.device,
        precision=context.manifest.base.precision,
        batch_size=config.batch_size,
    )
    wanted = worth_compiling(context.device, rows)
    network = load(compiled=wanted)
    if network.code_path == "compiled":
        try:
            return network, _warm_up(network, context, rows)
        except RuntimeError as error:  # the compiler is there but does not work: no headers, no room, another standard
            logger.warning(f"torch could not compile here ({first_line(error)[:200]}): computing uncompiled")
        network = load()
    elif wanted:
        logger.warning("no C++ compiler here, or no writable folder for what it makes: computing uncompiled")
    return network, _warm_up(network, context, rows)


def _warm_up(network: Backbone, context: ExtractionContext, rows: int) -> float:
    """Bring the network to speed on blank views and log how long all will take; the seconds of the first run."""
    size = context.preprocessing.input_size
    views = [np.zeros((size, size, 3), np.uint8)] * min(2, network.batch_size)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        network(views)
        seconds.append(time.perf_counter() - start)
    filled = network.batch_size if network.code_path == "compiled" else len(views)  # a compiled batch is always full
    expected = duration(seconds[1] / filled * rows)
    logger.info(f"{network.code_path} {network.precision} at {size} on this {network.device.type}: about {expected}")
    return seconds[0]
