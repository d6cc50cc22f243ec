"""A network compiled by torch: where that is worth its time, and where the code is kept."""

import logging
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.backbones.weights import weights_folder
from pipeline.errors import WeightsError

ROWS_WORTH_COMPILING = 100_000  # on CUDA; below, compiling takes longer than it saves


def worth_compiling(device: torch.device, rows: int) -> bool:
    """Whether compiling gains more than it takes: on the CPU it gains nothing that fusing layers does not."""
    return device.type == "cuda" and rows >= ROWS_WORTH_COMPILING


def compile_network(network: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The network compiled with its weights frozen in; None without a compiler or a folder for what it makes."""
    from torch._inductor import config, cpp_builder, exc
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    try:
        cpp_builder.get_cpp_compiler()
        # Compiled code is code: nobody else may write it, so not in a shared temporary folder, which torch chooses as
        # soon as it is imported. Another folder is the user's choice.
        if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
            folder = weights_folder().with_name("compiled")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    except (exc.InvalidCxxCompiler, OSError, WeightsError):
        return None
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a CUDA that nothing here needs
    config.freezing = True  # private, and works only with gradients off while compiling
    compiled: Callable[[Tensor], Tensor] = torch.compile(network)
    return compiled
