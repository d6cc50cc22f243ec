"""Draw the pictures in this folder, with Chromium and chromedriver.

python docs/pictures/draw.py page MODEL IMAGE...      the page of the service
python docs/pictures/draw.py label CACHE SET NAMES    the labelling page of a set; the cache stays as it is
python docs/pictures/draw.py report RUN               the report of a run, written before by `headgraft report`
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ADDRESS = "http://127.0.0.1:8732"
PHONE = (500, 900)  # Chromium's window is never narrower
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run", "hide-scrollbars")
SERVICE = {"page": (900, 1400), "page-phone": PHONE}
# Of the report: name, window, dark or light, from which of its places on.
REPORT = (
    ("report", (1280, 1080), False, ""),
    ("report-sweep", (1280, 900), False, "sweep"),
    ("report-dark", (1280, 1380), True, "matrix"),
    ("report-phone", PHONE, False, ""),
    ("report-phone-dark", PHONE, True, "clean"),
)

# Of the labelling page: name, window, dark or light, keys pressed.
LABELLING = (
    ("label", (1280, 900), False, "f"),
    ("label-dark", (1280, 900), True, "f"),
    ("label-phone", (400, 900), False, "f"),
    ("label-phone-dark", (400, 900), True, "e"),
)


@contextmanager
def browser(width: int, height: int, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a window of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    page = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield page
    finally:
        page.quit()


def draw_page(name: str, size: tuple[int, int], images: list[str]) -> None:
    """The page of the service with what it says of these images."""
    with browser(*size) as page:
        page.get(ADDRESS)
        page.find_element("id", "files").send_keys("\n".join(str(Path(image).resolve()) for image in images))
        while len(page.find_elements("css selector", "article")) < len(images):
            time.sleep(0.1)
        page.save_screenshot(str(HERE / f"{name}.png"))


def wait_for(path: str, service: subprocess.Popen[bytes]) -> None:
    """Until the service answers."""
    while service.poll() is None:
        try:
            with urllib.request.urlopen(f"{ADDRESS}/{path}"):  # noqa: S310  # our own address
                return
        except urllib.error.URLError:
            time.sleep(0.2)


def draw_service(model: str, *images: str) -> None:
    """Serve the model while the pictures are drawn."""
    command = [sys.executable, "cli.py", "serve", str(Path(model).resolve()), "--port", ADDRESS.rsplit(":", 1)[1]]
    service = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for("health", service)
        for name, size in SERVICE.items():
            draw_page(name, size, list(images))
    finally:
        service.terminate()
        service.wait()


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON of an answer."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{ADDRESS}/{path}", data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310  # our own address
        return json.load(answer)


def draw_labelling(cache: str, name: str, names: str) -> None:
    """Give some verdicts, and draw the queues, wide and narrow, light and dark."""
    with tempfile.TemporaryDirectory(dir=Path(cache).resolve().parent) as folder:
        copy = shutil.copytree(cache, Path(folder) / "cache", copy_function=os.link)
        port = ADDRESS.rsplit(":", 1)[1]
        command = [sys.executable, "cli.py", "label", "--cache", str(copy), "--set", name, "--port", port]
        command += ["--names", str(Path(names).resolve()), "--run", f"{folder}/run"]
        service = subprocess.Popen(command, cwd=ROOT)
        try:
            wait_for("state", service)
            for number in range(24):
                item = ask("queue?kind=fix&n=1")["items"][0]
                label = item["likely"][0]["class"] if number % 3 == 0 else item["label"]
                ask("verdict", {"digest": item["digest"], "verdict": "class", "class": label, "queue": "fix"})
                while number % 6 == 5 and ask("state")["training"]["running"]:
                    time.sleep(0.2)
            for picture, size, dark, keys in LABELLING:
                with browser(*size, dark) as page:
                    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
                    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                    page.get(ADDRESS)
                    time.sleep(2)
                    page.find_element("tag name", "body").send_keys(keys)
                    time.sleep(2)
                    page.save_screenshot(str(HERE / f"{picture}.png"))
        finally:
            service.terminate()
            service.wait()


def draw_report(run: str) -> None:
    """Parts of a report, wide and narrow, light and dark."""
    address = (Path(run).resolve() / "report.html").as_uri()
    for name, size, dark, place in REPORT:
        with browser(*size, dark) as page:
            page.get(address)
            if place:
                page.execute_script(f"document.getElementById('{place}').scrollIntoView({{behavior: 'instant'}})")
            time.sleep(0.5)
            page.save_screenshot(str(HERE / f"{name}.png"))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "page":
        draw_service(*rest)
    elif what == "label":
        draw_labelling(*rest)
    else:
        draw_report(*rest)
