"""Draw the pictures in this folder, with Chromium and chromedriver.

python docs/pictures/draw.py page MODEL IMAGE...      the page of the service
python docs/pictures/draw.py report RUN               the report of a run, written before by `headgraft report`
"""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def draw_service(model: str, *images: str) -> None:
    """Serve the model while the pictures are drawn."""
    command = [sys.executable, "cli.py", "serve", str(Path(model).resolve()), "--port", ADDRESS.rsplit(":", 1)[1]]
    service = subprocess.Popen(command, cwd=ROOT)
    try:
        while service.poll() is None:
            try:
                with urllib.request.urlopen(f"{ADDRESS}/health"):  # noqa: S310  # our own address
                    break
            except urllib.error.URLError:
                time.sleep(0.2)
        for name, size in SERVICE.items():
            draw_page(name, size, list(images))
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
    else:
        draw_report(*rest)
