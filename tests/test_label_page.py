"""The labelling page over HTTP and in a browser: its contract, kills between verdicts, and real keys and clicks."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import asked, browser, errors
from conftest import PHOTOS, REPOSITORY, Extract, Times, colour_of

from cache.index import UNLABELLED
from cache.labels import LabelJournal, journal_path
from cache.store import FeatureCache
from pipeline.commands.labels import labels
from pipeline.run import Run

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


class Page:
    """A running labelling page, and what was asked of it."""

    def __init__(self, cache: Path, port: int) -> None:
        command = [sys.executable, "-m", "cli", "label", "--cache", str(cache), "--port", str(port)]
        command += ["--run", str(cache.parent / "run")]
        self.address = f"http://127.0.0.1:{port}/"
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ready(self) -> "Page":
        """Wait until it answers."""
        for _ in range(600):
            try:
                self.get("state")
                return self
            except OSError:
                assert self.process.poll() is None, self.process.communicate()[0].decode()
                time.sleep(0.1)
        raise AssertionError("it does not answer")

    def get(self, path: str, **headers: str) -> Any:
        """The JSON of an answer."""
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def post(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        """The JSON of an answer."""
        data = json.dumps(body).encode() if body else b""
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.address + path, data, headers, method="POST")
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def refusal(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
        """Status and reason of an answer that is a refusal."""
        with pytest.raises(urllib.error.HTTPError) as error:
            self.post(path, body, **headers) if body is not None else self.get(path, **headers)
        with error.value as answer:
            return answer.code, json.load(answer)["reason"]

    def stop(self, how: int = signal.SIGINT) -> int:
        """End the process; returns its exit status."""
        self.process.send_signal(how)
        self.process.communicate(timeout=60)
        return self.process.returncode


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def page(cache: Path, port: int | None = None) -> Iterator[Page]:
    """The page of a cache with one set, ended by the signal that Ctrl-C sends."""
    opened = Page(cache, port or free_port())
    try:
        yield opened.ready()
    finally:
        if opened.process.poll() is None:
            assert opened.stop() == 0


def test_the_contract(photos: Path) -> None:
    """Fields of each answer, refusals with a reason, and headers that keep other sites out."""
    with page(photos) as opened:
        queue = opened.get("queue?kind=label&n=5")
        assert queue.keys() == {"kind", "left", "items"} and queue["left"] == PHOTOS
        item = queue["items"][0]
        known = {"digest", "path", "label", "split", "likely", "agreement", "random", "near", "rank", "verdict"}
        assert item.keys() == known
        asked = {"digest": item["digest"], "verdict": "class", "class": "red", "queue": "label", "rank": 0}
        assert opened.post("verdict", asked) == {"number": 1, "labels": 1}
        assert opened.post("verdict", asked) == {"number": 1, "labels": 1}
        assert opened.get("state")["last"] == {"number": 1, "verdict": "class", "class": "red", "images": 1}
        assert opened.get("state").keys() == {
            *("set", "classes", "names", "counts", "train", "valid", "unlabelled", "labels", "by_verdict", "reviewed"),
            *("changed", "per_100", "valid_reviewed", "valid_changed", "accuracy", "accuracy_before", "training"),
            *("forecast", "images_per_hour", "left", "last", "run", "advice"),
        }
        undone = opened.post("undo")
        assert (undone["digests"], undone["queue"]) == ([item["digest"]], "label")
        assert undone["items"][0]["path"] == item["path"]
        with urllib.request.urlopen(f"{opened.address}image/{item['digest']}?side=32", timeout=30) as response:
            assert response.headers["Content-Type"] == "image/webp" and response.read()[8:12] == b"WEBP"
        with urllib.request.urlopen(opened.address, timeout=30) as response:
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert opened.refusal("undo", {})[0] == 409 and opened.refusal("openapi.json")[0] == 404
        assert opened.refusal("verdict", {**asked, "digest": "0" * 64})[0] == 409
        for wrong in (
            {"class": ""},
            {"class": "a\nb"},
            {"class": "a" * 101},
            {"verdict": "bad"},
            {"verdict": "good"},
            {"digest": None},
        ):
            status, reason = opened.refusal("verdict", {**asked, **wrong})
            assert status in (409, 422) and reason
        assert opened.refusal("queue?kind=all")[0] == 422
        assert opened.refusal("image/nothing")[0] == 409
        assert opened.refusal("nothing")[0] == 404
        assert opened.refusal("state", Origin="https://example.org")[0] == 403
        assert opened.refusal("state", Host="example.org")[0] == 403
        status, reason = opened.refusal("finish", {"": ""})
        assert status == 409 and "two classes" in reason
        (photos.parent / "photos" / item["path"]).unlink()
        assert opened.refusal(f"image/{item['digest']}?side=48")[0] == 404


def test_a_second_page_on_the_same_cache_is_refused(photos: Path) -> None:
    """Two programs that append to one journal would number their lines alike."""
    with page(photos):
        second = Page(photos, free_port())
        output = second.process.communicate(timeout=60)[0].decode()
        assert second.process.returncode == 1 and "is writing" in output and "Traceback" not in output

    """Kills at any moment, and a client that repeats what was not answered; the table extracts to the same labels."""


def test_no_verdict_is_lost_and_none_counts_twice(photos: Path, run_extract: Extract, times: Times) -> None:
    """Kills at any moment, a client that repeats what was not answered; the table then extracts to the same labels."""
    kills, turns, port, random = times(4, 50), times(1, 17), free_port(), np.random.default_rng(0)
    opened, given = Page(photos, port).ready(), dict[str, str]()
    digests = [item["digest"] for item in opened.get(f"queue?kind=label&n={PHOTOS}")["items"]]
    verdicts = [(one, f"class {(n + turn) % 4}") for turn in range(turns) for n, one in enumerate(digests)]
    every = len(verdicts) // kills
    for number, (digest, name) in enumerate(verdicts):
        if number % every == every - 1 and number + 1 < len(verdicts):  # while it answers, before or after
            threading.Timer(random.random() * 0.03, opened.process.kill).start()
        asked = {"digest": digest, "verdict": "class", "class": name, "queue": "label", "rank": 0}
        while digest not in given or given[digest] != name:
            try:
                opened.post("verdict", asked)
                given[digest] = name
            except OSError:  # not answered: whether it was written is not known
                opened.process.communicate(timeout=60)
                opened = Page(photos, port).ready()
    assert opened.stop() == 0
    journal = LabelJournal.load(photos, "photos")
    assert {digest: one.new for digest, one in journal.verdicts.items()} == given
    assert len(journal.lines) == len(verdicts) == len(journal_path(photos, "photos").read_bytes().splitlines())
    labels(photos, None, photos.parent / "table.csv")
    run_extract(data=photos.parent / "table.csv", set="table")
    before, after = FeatureCache.open(photos).index("photos"), FeatureCache.open(photos).index("table")
    assert {(i.digest, i.label, i.split) for i in before.images} == {(i.digest, i.label, i.split) for i in after.images}


def test_photos_become_a_run_over_http(photos: Path) -> None:
    """Labels, a head in the background, an accuracy with its interval, and Finish."""
    with page(photos) as opened:
        for _ in range(PHOTOS - 5):
            item = opened.get("queue?kind=label&n=1")["items"][0]
            asked = {"digest": item["digest"], "verdict": "class", "class": colour_of(item["path"]), "queue": "label"}
            opened.post("verdict", {**asked, "rank": 0})
        for _ in range(200):
            state = opened.get("state")
            if not state["training"]["running"] and state["training"]["labels"] == PHOTOS - 5:
                break
            time.sleep(0.05)
        assert state["accuracy"]["images"] == state["valid"] and state["accuracy"]["value"] > 0.8
        assert state["train"] + state["valid"] == PHOTOS - 5 and state["unlabelled"] == 5
        assert opened.post("finish")["valid_accuracy"] > 0.8
    assert Run.load(photos.parent / "run").record.set == "photos"
    assert FeatureCache.open(photos).index().counts()[UNLABELLED] == 5


def wait(page: Any, script: str) -> Any:
    """The value of a script when it is one."""
    for _ in range(200):
        if found := page.execute_script(f"return {script}"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {script}")


def test_in_a_browser_by_keys_and_clicks(photos: Path) -> None:
    """Ten verdicts, an undo, a new class and a multi-select; each is in the journal, and nothing else is loaded."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    with page(photos) as opened, browser(1280, 900) as view:

        def card() -> str:
            found: str = wait(view, "document.getElementById('card').dataset.digest")
            return found

        def press(*keys: str) -> None:
            before = card()
            ActionChains(view).send_keys(*keys).perform()
            for _ in range(200):
                if card() != before:
                    return
                time.sleep(0.02)

        def labelled(count: int) -> dict[str, Any]:
            for _ in range(200):
                state: dict[str, Any] = opened.get("state")
                if state["labels"] == count:
                    return state
                time.sleep(0.05)
            raise AssertionError(f"{state['labels']} labels, expected {count}")

        view.get(opened.address)
        for number in range(8):  # no class is known at first: each is a new one until it was typed once
            press("/", f"colour {number % 2}", Keys.ENTER)
            labelled(number + 1)
        press("/", "constructor", Keys.ENTER)  # what every object of the language has
        labelled(9)
        press("z")
        labelled(8)
        press("u")
        press("b")
        assert labelled(10)["by_verdict"] == {"class": 8, "unsure": 1, "bad": 1, "none": 0}
        last = card()
        ActionChains(view).send_keys("z").perform()
        labelled(9)
        wait(view, f"document.getElementById('card').dataset.digest !== '{last}'")
        view.find_element(By.ID, "tab-explore").click()
        wait(view, "document.querySelectorAll('#grid img').length > 20")
        pictures = view.find_elements(By.CSS_SELECTOR, "#grid img")
        pictures[1].click()
        ActionChains(view).key_down(Keys.SHIFT).click(pictures[6]).key_up(Keys.SHIFT).perform()
        assert "6" in view.find_element(By.ID, "selected").text
        ActionChains(view).send_keys("/", "many at once", Keys.ENTER).perform()
        for _ in range(200):
            if (state := opened.get("state"))["counts"].get("many at once"):
                break
            time.sleep(0.05)
        assert state["last"]["images"] == 6
        assert errors(view) == []
        assert all(one.startswith((opened.address, "data:", "blob:")) for one in asked(view))
    journal = LabelJournal.load(photos, "photos")
    assert sum(one.verdict == "undo" for one in journal.lines) == 2
    assert {one.new for one in journal.verdicts.values()} >= {"colour 0", "colour 1", "many at once"}
