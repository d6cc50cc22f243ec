"""Draw the pictures in this folder: `python docs/pictures/draw.py MODEL IMAGE...`, with Chromium and chromedriver."""

import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from selenium import webdriver

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ADDRESS = "http://127.0.0.1:8732"
SIZES = {"page": (900, 760), "page-phone": (500, 900)}  # Chromium's window is never narrower than 500


def browser(width: int, height: int) -> webdriver.Chrome:
    """A headless Chromium with a window of this size."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    flags = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "no-first-run",
        "hide-scrollbars",
    )
    for flag in (*flags, f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))


def draw(name: str, size: tuple[int, int], images: list[str]) -> None:
    """The page with what it says of these images."""
    page = browser(*size)
    try:
        page.get(ADDRESS)
        page.find_element("id", "files").send_keys("\n".join(str(Path(image).resolve()) for image in images))
        while len(page.find_elements("css selector", "article")) < len(images):
            time.sleep(0.1)
        page.save_screenshot(str(HERE / f"{name}.png"))
    finally:
        page.quit()


def main(model: str, *images: str) -> None:
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
        for name, size in SIZES.items():
            draw(name, size, list(images))
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
