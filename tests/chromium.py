"""A real browser for the tests of pages."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run")


@contextmanager
def browser(width: int = 380, height: int = 800, dark: bool = False) -> Iterator[Any]:
    """A headless Chromium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not program:
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"window-size={width},{height}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    page = webdriver.Chrome(options, webdriver.ChromeService(driver, env={**os.environ}))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield page
    finally:
        page.quit()


def errors(page: Any) -> list[dict[str, Any]]:
    """What the console holds of errors."""
    return [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def asked(page: Any) -> list[str]:
    """Every address that was asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
