"""Run the commands of README and the guides, page by page, on a few real images; weights and data are those of tests.

    python tests/run_guides.py [PAGE...] [--download] [--keep FOLDER]      README, deploy, ...; all pages by default

In README.md and docs/guides/, a line that is indented by four spaces is a command, and a fenced block whose first line
is a comment with a file name is that file. Each page runs in a folder of its own that holds `flowers102/`, `photos/`,
`signs/` and two pictures, as links to a few images. A command must end with status 0, or with what its comment
`# exit status N` says. Prints a line for each command; status 1 where one of them did something else.
"""

import argparse
import ast
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import sklearn
from conftest import REPOSITORY, flowers, require_real

from pipeline.backbones.weights import weights_folder

GUIDES = REPOSITORY / "docs" / "guides"
PAGES = [REPOSITORY / "README.md", *sorted(set(GUIDES.glob("*.md")) - {GUIDES / "README.md"})]
PALACE = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
CLASSES = ("1", "10", "46", "51", "73", "77", "88", "94")
SPLITS = {"train": 20, "valid": 5, "test": 5}
PHOTOS = {"77": 40, "51": 20, "46": 10, "88": 5, "73": 3, "94": 1}
SIGNS = ("stop", "yield", "speed_30", "speed_50", "no_entry", "priority_road")
TRACKS = 5
LONGEST = 600  # seconds of a command
OUTPUT_LINES = 12  # of a command that failed

FILE = re.compile(r"^```\w+\n((?://|#) (\S+\.\w+)\n.*?)^```", re.DOTALL | re.MULTILINE)
SERVER = re.compile(r"^headgraft (serve|label)\b")


def link(files: list[Path], folder: Path) -> None:
    """Links of the same names in a folder."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())


def lay_out(folder: Path) -> None:
    """`flowers102/` with three splits, `photos/` with few and unequal classes, `signs/` in tracks if they are there.

    `photo.jpg` is a flower, `palace.jpg` none.
    """
    source = flowers()
    for label in CLASSES:
        for split, count in SPLITS.items():
            link(sorted((source / split / label).iterdir())[:count], folder / "flowers102" / split / label)
    (folder / "flowers102" / "cat_to_name.json").symlink_to((source / "cat_to_name.json").resolve())
    (folder / "photo.jpg").symlink_to(next((source / "test" / CLASSES[0]).iterdir()).resolve())
    (folder / "palace.jpg").symlink_to(PALACE)
    for label, count in PHOTOS.items():
        link(sorted((source / "train" / label).iterdir())[:count], folder / "photos" / label)
    signs = Path(os.environ.get("HEADGRAFT_DATA") or REPOSITORY.parent / "shared" / "data") / "gtsrb_tracks"
    for label in SIGNS if signs.is_dir() else ():
        tracks: dict[str, list[Path]] = {}
        for file in sorted((signs / label).iterdir()):
            tracks.setdefault(file.stem.rpartition("_")[0], []).append(file)
        link([file for name in sorted(tracks)[:TRACKS] for file in tracks[name]], folder / "signs" / label)


def environment(folder: Path) -> dict[str, str]:
    """Of the commands: `headgraft` is this tree's, `python` this one, weights come from a folder of their own."""
    program = folder / "bin" / "headgraft"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY / "cli.py"}" "$@"\n')
    program.chmod(0o755)
    (program.parent / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (program.parent / "python").chmod(0o755)
    weights = folder / "xdg" / "headgraft" / "weights"
    weights.mkdir(parents=True)
    named = {file.name: file for file in weights_folder().glob("*.safetensors")}
    named["mobilenet_v2-IMAGENET1K_V1.safetensors"] = require_real("mobilenet_v2")
    for name, file in named.items():
        (weights / name).symlink_to(file.resolve())
    return os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XDG_CACHE_HOME": str(folder / "xdg"),
    }


def commands(text: str) -> list[str]:
    """Of a page, in order; a line that ends with a backslash is continued."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(re.findall(r"^ {4}(\S.*|  +\S.*)", plain, re.MULTILINE))
    return re.sub(r"\\\n\s*", "", lines).splitlines()


def needs(command: str, folder: Path, download: bool) -> str | None:
    """Why a command cannot run here, None where it can."""
    words = command.split()
    if words[0] == "pip" or words[:2] == ["make", "setup"]:
        return "this environment is left as it is"
    if "npm" in words and not download:
        return "it downloads packages: --download runs it"
    if words[0] == "node" and not (folder / "node_modules").is_dir():
        return "its packages are not installed"
    if "--engine ray" in command and not importlib.util.find_spec("ray"):
        return "ray is not installed"
    if "signs" in command and not (folder / "signs").is_dir():
        return "there are no traffic signs: set HEADGRAFT_DATA"
    if words[0] == "python" and (folder / words[1]).is_file():
        for node in ast.walk(ast.parse((folder / words[1]).read_text("utf-8"))):
            for name in (
                [one.name for one in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            ):
                if name and not importlib.util.find_spec(name.partition(".")[0]):
                    return f"{name.partition('.')[0]} is not installed"
    return None


class Server:
    """A service that a page starts; it answers at a free port, in place of the one in the page."""

    def __init__(self, command: str, folder: Path, variables: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = re.sub(r"\s+#.*", "", command) + f" --port {self.port}"
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {words}"], cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def answers(self) -> bool:
        """Whether its page is served before the time is up and before it ends."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10):
                    return True
            except OSError:
                time.sleep(0.2)
        return False

    def stop(self) -> tuple[int, str]:
        """As Ctrl-C does: the exit status, and what it printed."""
        self.process.send_signal(signal.SIGINT)
        try:
            output = self.process.communicate(timeout=30)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            output = self.process.communicate()[0]
        return self.process.returncode, output.decode(errors="replace")


def run_page(
    page: Path, folder: Path, variables: dict[str, str], download: bool
) -> Iterator[tuple[str, str, float, str]]:
    """Each command of a page with its status or why it did not run, seconds, and its output if that is unexpected."""
    text = page.read_text("utf-8")
    for content, name in FILE.findall(text):
        (folder / name).write_text(content)
    server: Server | None = None
    for command in commands(text):
        start = time.monotonic()
        reason = needs(command, folder, download)
        if reason:
            yield command, f"skipped: {reason}", 0.0, ""
            continue
        if server and not command.startswith("curl"):
            status, output = server.stop()
            server = None
            if status:
                yield "Ctrl-C", str(status), time.monotonic() - start, output
        if SERVER.match(command):
            server = Server(command, folder, variables)
            served = server.answers()
            yield command, "0" if served else "no answer", time.monotonic() - start, "" if served else server.stop()[1]
            continue
        if server:
            command = re.sub(r"(127\.0\.0\.1|localhost):\d+", rf"\1:{server.port}", command)
        try:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=folder,
                env=variables,
                timeout=LONGEST,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            status, output = done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as error:
            status, output = 124, (error.stdout or b"").decode(errors="replace")
        said = re.search(r"# exit status (\d+)", command)
        good = status == int(said[1] if said else 0)
        yield command, str(status), time.monotonic() - start, "" if good else output or "no output"
    if server:
        status, output = server.stop()
        if status:
            yield "Ctrl-C", str(status), 0.0, output


def main() -> None:
    """All pages, or those that are named."""
    parser = argparse.ArgumentParser(description="Run the commands of README and the guides.")
    named = {page.stem: page for page in PAGES}
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"all, or of {', '.join(named)}")
    parser.add_argument("--download", action="store_true", help="also run npm, which downloads packages")
    parser.add_argument("--keep", type=Path, help="new folder for what the commands write, kept afterwards")
    given = parser.parse_args()
    if unknown := set(given.pages) - set(named):
        parser.error(f"no page {', '.join(sorted(unknown))}; the pages are {', '.join(named)}")
    pages = [named[name] for name in given.pages] or PAGES
    root = given.keep or Path(tempfile.mkdtemp(prefix="guides-"))
    failed = 0
    try:
        variables = environment(root.resolve())
        for page in pages:
            folder = root / page.stem
            lay_out(folder)
            for command, status, seconds, output in run_page(page, folder, variables, given.download):
                print(f"{page.stem:22} {seconds:6.1f} s  status {status:3}  {command}", flush=True)
                if output:
                    failed += 1
                    print("\n".join(output.splitlines()[-OUTPUT_LINES:]), flush=True)
    except pytest.skip.Exception as error:  # no flowers, or no weights
        sys.exit(f"The guides cannot be run: {error}")
    finally:
        if not given.keep:
            shutil.rmtree(root)
    print(f"{len(pages)} pages, {failed} commands with a status that was not expected")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
