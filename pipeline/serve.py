"""A model file over HTTP, until interrupted."""

from importlib.util import find_spec

import torch

from pipeline.bundle import load_bundle
from pipeline.config import ServeConfig
from pipeline.console import Say, silent
from pipeline.errors import PipelineError
from pipeline.machine.device import available_cpus, resolve_device
from pipeline.predict import bundle_precision

PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def serve(config: ServeConfig, say: Say = silent) -> None:
    """Serve a model on `host` and `port`; PipelineError where a package of the extra is missing."""
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise PipelineError(f"serve needs {', '.join(missing)}: pip install 'headgraft[serve]'")
    import uvicorn

    from pipeline.service.app import create_app
    from pipeline.service.limits import Limits

    bundle = load_bundle(config.model)
    torch.set_num_threads(available_cpus())
    device = resolve_device(config.device)
    backbone = bundle.backbone(device, bundle_precision(bundle, config.precision, device, say))
    limits = Limits(int(config.max_mb * 1e6), config.max_files, int(config.max_megapixels * 1e6), config.max_waiting)
    app = create_app(bundle, backbone, limits)
    say(f"{config.model}: http://{config.host}:{config.port}/ (Ctrl-C ends it)")
    uvicorn.run(app, host=config.host, port=config.port, log_level="warning", timeout_keep_alive=5)
