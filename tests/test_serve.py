"""The service: what it answers, what it refuses and why, and the page in a real browser."""

import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import asked, browser, errors
from conftest import REPOSITORY, draw_image
from PIL import Image

from pipeline.config import ServeConfig
from pipeline.errors import PipelineError
from pipeline.serve import serve

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SERVER = """
import sys
sys.path.insert(0, "tests")
from conftest import register_tiny
from pipeline.config import ServeConfig
from pipeline.serve import serve
register_tiny()
serve(ServeConfig("tests/data/model-1.safetensors", port=int(sys.argv[1]), device="cpu", precision="float32",
    max_mb=1, max_files=3, max_megapixels=1, max_waiting=4))
"""


@dataclass
class Server:
    """A running service."""

    address: str
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return self._ask(urllib.request.Request(self.address + path))

    def post(self, *files: tuple[str, bytes], field: str = "files", query: str = "") -> tuple[int, Any]:
        """Status and answer to an upload."""
        boundary = "boundary"
        parts = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for name, data in files
        )
        body = parts + f"--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        status, answer = self._ask(urllib.request.Request(f"{self.address}/predict{query}", body, headers))
        return status, json.loads(answer)

    def _ask(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # our own address
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The service of the small model in tests/data, with small limits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=REPOSITORY)
    running = Server(f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended"
        try:
            running.get("/health")
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    yield running
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, -signal.SIGINT, 130)


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    """A small image."""
    return draw_image(tmp_path / "one.png", 7).read_bytes()


def test_health_and_openapi(server: Server) -> None:
    """What is served, and the description of it."""
    status, body = server.get("/health")
    assert (status, json.loads(body)) == (
        200,
        {"status": "ok", "model": "model-1.safetensors", "classes": 2, "precision": "float32"},
    )
    status, body = server.get("/openapi.json")
    assert {"/predict", "/health"} <= json.loads(body)["paths"].keys()
    assert server.get("/nothing")[0] == 404


def test_several_files_are_predicted_and_bad_ones_listed(server: Server, picture: bytes) -> None:
    """As the library predicts them."""
    status, answer = server.post(("a.png", picture), ("bad.jpg", b"text"), ("b.png", picture), query="?top_k=1")
    assert status == 200
    assert [one["file"] for one in answer["predictions"]] == ["a.png", "b.png"]
    (top,) = answer["predictions"][0]["top"]
    assert (top["label"], top["name"]) == ("a", "rose")
    assert top["probability"] == pytest.approx(0.77835274, abs=1e-5)
    assert answer["failed"] == [{"file": "bad.jpg", "reason": answer["failed"][0]["reason"]}]
    assert answer["seconds"] > 0


def test_what_is_refused_says_why(server: Server, picture: bytes) -> None:
    """No image, too many, too large, too many pixels, another field: a 4xx with a reason, and the service lives on."""
    large = io.BytesIO()
    Image.fromarray(np.zeros((1100, 1000, 3), np.uint8)).save(large, "PNG")
    for files, field, code, reason in (
        ([("bad.jpg", b"text")], "files", 422, "bad.jpg: not an image"),
        ([("empty.jpg", b"")], "files", 422, "empty"),
        ([("pixels.png", large.getvalue())], "files", 422, "over the limit of 1,000,000"),
        ([("a.png", picture)] * 4, "files", 413, "over the limit of 3"),
        ([("a.png", bytes(1_100_000))], "files", 413, "over the limit of 1,000,000 bytes"),
        ([("a.png", bytes(6_000_000))], "files", 413, "over the limit of 1,000,000 bytes"),
        ([("a.png", picture)], "other", 422, "expected images in the field 'files'"),
    ):
        status, answer = server.post(*files, field=field)
        assert (status, set(answer)) == (code, {"reason"})
        assert reason in answer["reason"]
    assert server.post(("a.png", picture), query="?top_k=0")[0] == 422
    assert server.post(("a.png", picture))[0] == 200


def test_names_that_are_no_text_are_answered(server: Server, picture: bytes) -> None:
    """Whatever a client calls its files, and whatever it says that its letters are."""
    body = (
        b'--B\r\nContent-Disposition: form-data; name="files"; filename="+2AA-.jpg"\r\n\r\n'
        + picture
        + b"\r\n--B--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; charset=utf-7; boundary=B"}
    status, answer = server._ask(urllib.request.Request(f"{server.address}/predict", body, headers))
    assert status in (200, 422)
    assert json.loads(answer)


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    """By origin; and by the name that they reached this machine under, since that may be their own."""
    for headers, code in (
        ({"Origin": server.address}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:1234"}, 200),
    ):
        status, body = server._ask(urllib.request.Request(f"{server.address}/health", headers=headers))
        assert status == code, headers
        assert (status == 200) != ("reason" in json.loads(body))


def test_a_reason_speaks_of_what_is_wrong(server: Server, picture: bytes) -> None:
    """A wrong number of classes has nothing to do with the files."""
    _, answer = server.post(("a.png", picture), query="?top_k=0")
    assert "top_k" in answer["reason"]
    assert "files" not in answer["reason"]
    with urllib.request.urlopen(urllib.request.Request(server.address + "/", method="HEAD")) as response:
        assert response.status == 200


def test_a_place_that_is_taken_is_said_at_once(server: Server) -> None:
    """In one sentence."""
    port = server.address.rsplit(":", 1)[1]
    with pytest.raises(PipelineError, match="cannot be listened at"):
        serve(ServeConfig("tests/data/model-1.safetensors", port=int(port)))  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="no address of this machine"):
        serve(ServeConfig("tests/data/model-1.safetensors", host="300.1.1.1"))  # type: ignore[arg-type]


def test_many_at_once_are_answered_or_told_to_come_back(server: Server, picture: bytes) -> None:
    """A tenth of them malformed: 200, a 4xx or 503, nothing else; and the room is free again in the end."""

    def one(number: int) -> int:
        data = b"text" if number % 10 == 0 else picture
        return server.post((f"{number}.png", data))[0]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(200)))
    assert set(found) <= {200, 422, 503}
    assert 200 in found
    assert server.post(*[("a.png", picture)] * 3)[0] == 200


def test_the_page_shows_what_is_in_an_uploaded_picture(server: Server, picture: bytes, tmp_path: Path) -> None:
    """At a phone's width: picture, names, bars and time; nothing is asked of any other place, no error is logged."""
    (tmp_path / "flower <b>.png").write_bytes(picture)
    with browser() as page:
        page.get(server.address + "/")
        page.find_element("id", "files").send_keys(str(tmp_path / "flower <b>.png"))
        deadline = time.monotonic() + 20
        while not (found := page.find_elements("css selector", "article li")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [line.text.split("\n")[0] for line in found] == ["rose", "b"]
        assert "77.8 %" in found[0].text
        assert page.find_element("css selector", "article h2").text == "flower <b>.png"
        assert "on the server" in page.find_element("id", "status").text
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert errors(page) == []
        urls = asked(page)
        assert urls
        assert all(url.startswith((server.address, "blob:", "data:")) for url in urls)
        page.find_element("tag name", "body").send_keys("\t")
        assert page.switch_to.active_element.get_attribute("id") == "place"
