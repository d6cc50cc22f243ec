"""Bytes of an upload → its clean view: in threads, a large one in a process of its own.

Pillow decodes some formats without letting other threads run, and only a process can be given a limit of processor
time. That process runs this module: it reads a file's bytes on standard input and writes the view
on standard output, or the reason why there is none, with status 1.
"""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.errors import DecodeError
from pipeline.inputs.decode import Pixels, open_image
from pipeline.inputs.effort import pixel_passes
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.inputs.remarks import collected

try:
    import resource
except ImportError:  # as on Windows, where the process that decodes has no limits
    resource = None  # type: ignore[assignment]

SMALL = 4_000_000  # pixels times scans of a JPEG: up to a tenth of a second
LARGE = 20_000_000  # up to half a second
SCANS = 10  # of an image of the most pixels; progressive files of cameras and editors have about ten
OTHER_FORMATS = 8  # times as long for a pixel, at most
CPU_SECONDS = 20  # of one large image
MEMORY = 4 << 30  # bytes that process may have
NICENESS = 10  # about a tenth of the processor time that another thread gets

_STOPPED = {getattr(signal, name, 0) for name in ("SIGXCPU", "SIGKILL")}  # by the system, at a limit


def effort(data: bytes) -> int:
    """What decoding an image file costs, in pixels of a JPEG of one scan; 0 where it is not an image."""
    try:
        with collected({}), open_image(data) as image:
            return pixel_passes(image, data) * (1 if image.format in ("JPEG", "MPO") else OTHER_FORMATS)
    except Exception:  # of any kind, on damaged files: decoding says why
        return 0


def view_of(data: bytes, pixel_limit: int, preprocessing: Preprocessing) -> Pixels:
    """The clean view of an upload; DecodeError with the reason."""
    pixels = preprocessing.decode(data, pixel_limit=pixel_limit, effort_limit=SCANS * pixel_limit)
    return preprocessing.view(pixels)


async def view_of_large(data: bytes, pixel_limit: int, preprocessing: Preprocessing) -> Pixels:
    """The same, from a process of its own, which ends when nobody waits for it any more."""
    command = [sys.executable, "-m", "pipeline.service.decoding", json.dumps([pixel_limit, asdict(preprocessing)])]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        answer, _ = await child.communicate(data)
    finally:
        with suppress(ProcessLookupError):  # it has ended
            child.kill()
        await child.wait()
    if child.returncode == 0:
        size = preprocessing.input_size
        return np.frombuffer(answer, np.uint8).reshape(size, size, 3)
    if child.returncode == 1 and answer:
        raise DecodeError(answer.decode())
    if child.returncode is not None and -child.returncode in _STOPPED:
        raise DecodeError(f"not decoded within {CPU_SECONDS} s of processor time or the memory there is")
    raise DecodeError("the decoder crashed")


def lower_priority() -> None:
    """Have this thread take less processor time than others; only Linux knows priorities of threads."""
    if sys.platform == "linux":
        os.nice(NICENESS)


def main(pixel_limit: int, preprocessing: Preprocessing) -> None:
    """Answer one call of `view_of_large`."""
    lower_priority()
    if resource:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        answer = view_of(sys.stdin.buffer.read(), pixel_limit, preprocessing).tobytes()
    except DecodeError as error:
        sys.stdout.buffer.write(str(error).encode(errors="backslashreplace"))
        sys.exit(1)
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    limit, given = json.loads(sys.argv[1])
    main(limit, Preprocessing(**given))
