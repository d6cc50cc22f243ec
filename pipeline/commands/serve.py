"""A model file over HTTP, until interrupted."""

import logging

import torch

from pipeline.config.models import ServeConfig
from pipeline.machine.device import available_cpus
from pipeline.model.file import load_model
from pipeline.service.hosting import host, is_local, listening, require_packages

logger = logging.getLogger("headgraft.serve")


def serve(config: ServeConfig) -> None:
    """Serve a model on `host` and `port`. Returns when it is interrupted.

    Raises:
        PipelineError: a package of the extra `serve` is missing.
        BundleError: the model file cannot be read.
    """
    require_packages("serve")
    from pipeline.service.app import create_app
    from pipeline.service.limits import DISCARDED

    with listening(config.host, config.port) as listener:  # first: reading a model takes longer
        bundle = load_model(config.model)
        torch.set_num_threads(available_cpus())
        app = create_app(bundle.on(config.device, config.precision), config, is_local(listener))
        host(app, listener, str(config.model), int(DISCARDED * config.max_mb * 1e6), logger.info)
