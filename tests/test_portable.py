"""Systems without file locks, resource limits and /proc, and programs that use the library."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

WRITTEN = REPOSITORY / "tests" / "data" / "a5956e8"
SCRIPT = """
import json, os, sys
from pathlib import Path
import torch, torchvision, h5py, sklearn, scipy, PIL.Image, rich, fastapi, uvicorn, asyncio, psutil, pytest, hypothesis
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("posix_fallocate", "sched_getaffinity", "O_NOFOLLOW", "O_CLOEXEC"):
    delattr(os, name)
is_file = Path.is_file
Path.is_file = lambda path: not str(path).startswith(("/proc", "/sys")) and is_file(path)
sys.path[:0] = [os.getcwd(), "tests"]
import conftest
conftest.register_tiny()
import logging
from cache.lock import writing
from cache.pack import pack
from cache.store import FeatureCache
from pipeline.config.models import PredictConfig
from pipeline.commands.predict import predict
from pipeline.service import app, decoding, server
folder, lines = Path(sys.argv[1]), []
with conftest.heard(lines.append), writing(folder / "cache"):
    cache = FeatureCache.open(folder / "cache")
pack(folder / "cache", folder / "packed.h5")
found = predict(PredictConfig(folder / "model.safetensors", (str(folder / "data" / "test"),), device="cpu"))
print(json.dumps({"rows": len(cache), "predicted": len(found.predictions), "lines": lines,
    "descriptors": server._raise_descriptor_limit()}))
"""


def test_nothing_rests_on_linux_alone(tmp_path: Path) -> None:
    """One line says that there are no locks; a large image is decoded without limits of its process."""
    shutil.copytree(WRITTEN, tmp_path / "files")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "files")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rows"], found["predicted"]) == (36, 4)
    assert [line.split(":")[0] for line in found["lines"]] == ["this system has no file locks that Headgraft uses"]


def test_the_library_prints_nothing_unless_asked() -> None:
    """Its log goes where its user sends it; the command line shows it."""
    script = "import cache, logging; logging.getLogger('headgraft.cache').warning('seen')"
    for asked, shown in (("", ""), ("import logging; logging.basicConfig(format='%(message)s');", "seen\n")):
        command = [sys.executable, "-c", asked + script]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert done.stderr == shown
