"""Features of a frozen backbone, cached; heads trained from them in seconds; one model out.

`import pipeline as hg`: the public names are those of `pipeline.api` (docs/api.md). Nothing that takes time is imported
before one of them is used, so that what needs no torch starts at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cache as _cache

if Path(str(_cache.__file__)).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"{_cache.__file__} hides headgraft's own package cache: rename it, or run python -P, which does not look "
        "beside the script"
    )

if TYPE_CHECKING:
    from pipeline.api import *  # noqa: F403

    __version__: str
else:

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name == "__version__":
            return import_module("pipeline.console").version()
        if name.startswith("_"):
            raise AttributeError(name)
        api = import_module("pipeline.api")
        if name in api.__all__:
            return getattr(api, name)
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

    def __dir__() -> list[str]:
        from pipeline import api

        return sorted([*globals(), *api.__all__])
