"""The service: what it answers, what it refuses and why, and the page in a real browser."""

import asyncio
import contextlib
import io
import json
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from chromium import asked, browser, errors
from conftest import REPOSITORY, build_tiny, draw_image, preprocessing
from PIL import Image

from pipeline.backbones.catalog import BACKBONES
from pipeline.backbones.spec import BackboneSpec
from pipeline.backbones.weights import NamedWeights
from pipeline.commands.serve import serve
from pipeline.config.models import ServeConfig
from pipeline.errors import DecodeError, PipelineError
from pipeline.inputs.decode import decode_rgb
from pipeline.model.file import load_model, write_bundle
from pipeline.service.decoding import LARGE, SMALL, effort, view_of_large
from pipeline.unknown.detector import Distance, UnknownDetector, pooled, scale_of
from pipeline.unknown.fitting import moments_of

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SERVER = """
import json
import logging
import sys
sys.path.insert(0, "tests")
from conftest import register_tiny
from pipeline.config.models import ServeConfig
from pipeline.console import shown
from pipeline.commands.serve import serve
from pipeline.service import server
register_tiny()
vars(server).update(json.loads(sys.argv[2]))
with shown(logging.INFO):
    serve(ServeConfig(sys.argv[3], port=int(sys.argv[1]), device="cpu", precision="float32",
        max_mb=1, max_files=3, max_megapixels=4, max_waiting=4))
"""
MODEL = REPOSITORY / "tests" / "data" / "model-1.safetensors"
PREDICT = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@dataclass
class Server:
    """A running service."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def connect(self, data: bytes) -> socket.socket:
        """A connection over which `data` was sent."""
        host, port = self.address.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        connection.sendall(data)
        return connection

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


@contextmanager
def serving(
    folder: Path, descriptors: int = 256, stop: int = signal.SIGINT, model: Path = MODEL, **constants: float
) -> Iterator[Server]:
    """The service of a small model, that in tests/data, with small limits, ended by `stop`; its log is in `folder`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors // 2, descriptors))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port), json.dumps(constants), str(model)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, preexec_fn=limit)
    running = Server(f"http://127.0.0.1:{port}", process, folder / "log")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, "the service ended"
            try:
                running.get("/health")
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield running
        if process.poll() is None:
            process.send_signal(stop)
        assert process.wait(20) == 0
        assert b"Traceback" not in running.log.read_bytes()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service for several tests."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with few descriptors that waits for a client for one second."""
    constants: Any = {"HEADER_SECONDS": 1, "BODY_SECONDS": 1}
    folder = tmp_path_factory.mktemp("impatient")
    with serving(folder, descriptors=100, stop=signal.SIGTERM, **constants) as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> bytes:
    """A small image."""
    return draw_image(tmp_path / "one.png", 7).read_bytes()


def test_health_and_openapi(server: Server) -> None:
    """What is served, and the description of it."""
    status, body = server.get("/health")
    assert (status, json.loads(body)) == (
        200,
        {"status": "ok", "model": "model-1.safetensors", "classes": 2, "precision": "float32", "evidence": False},
    )
    status, body = server.get("/openapi.json")
    assert {"/predict", "/health", "/drift"} <= json.loads(body)["paths"].keys()
    for path, known in (("/nothing", 404), ("/predict", 405)):
        status, body = server.get(path)
        assert (status, json.loads(body).keys()) == (known, {"reason"})
        assert f"GET {path}" in json.loads(body)["reason"]


def test_health_is_answered_without_a_body_too(server: Server) -> None:
    """As monitors ask for it."""
    with urllib.request.urlopen(urllib.request.Request(f"{server.address}/health", method="HEAD")) as response:
        assert (response.status, response.read()) == (200, b"")


def test_several_files_are_predicted_and_bad_ones_listed(server: Server, picture: bytes) -> None:
    """As the library predicts them."""
    status, answer = server.post(("a.png", picture), ("bad.jpg", b"text"), ("b.png", picture), query="?top_k=1")
    assert status == 200
    assert [one["file"] for one in answer["predictions"]] == ["a.png", "b.png"]
    (top,) = answer["predictions"][0]["top"]
    assert (top["label"], top["class"], top["name"]) == ("a", "a", "rose")
    assert top["probability"] == pytest.approx(0.77835274, abs=1e-5)
    assert answer["failed"] == [{"file": "bad.jpg", "reason": answer["failed"][0]["reason"]}]
    assert answer["seconds"] > 0


def test_what_is_refused_says_why(server: Server, picture: bytes) -> None:
    """No image, too many, too large, too many pixels, another field: a 4xx with a reason, and the service lives on."""
    large = io.BytesIO()
    Image.fromarray(np.zeros((2100, 2000, 3), np.uint8)).save(large, "PNG")
    for files, field, code, reason in (
        ([("bad.jpg", b"text")], "files", 422, "bad.jpg: not an image"),
        ([("empty.jpg", b"")], "files", 422, "empty"),
        ([("pixels.png", large.getvalue())], "files", 422, "over the limit of 4,000,000"),
        ([("scans.jpg", many_scans(1000, 60))], "files", 422, "scans, over the limit of 40 scans"),
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


@pytest.mark.parametrize(("path", "kind"), [("/predict", "application/json"), ("/nothing", "multipart/form-data")])
def test_a_body_over_the_limit_is_refused_where_nothing_reads_it(server: Server, path: str, kind: str) -> None:
    """With the reason, which the client would otherwise not see while it sends."""
    request = urllib.request.Request(server.address + path, bytes(1_100_000), {"Content-Type": kind})
    status, answer = server._ask(request)
    assert status == 413
    assert "over the limit of 1,000,000 bytes" in json.loads(answer)["reason"]


@pytest.mark.parametrize(
    "disposition",
    ["", "; filename*=UTF-8''a%20b.png"],
    ids=["text in place of a file", "filename* alone"],
)
def test_a_part_without_a_file_name_is_refused_in_plain_words(server: Server, picture: bytes, disposition: str) -> None:
    """With what was found and what is expected, not with the phrase of a library."""
    start = '--B\r\nContent-Disposition: form-data; name="files"'
    body = f'{start}; filename="a.png"\r\n\r\n'.encode() + picture
    body += f"\r\n{start}{disposition}\r\n\r\n".encode() + picture + b"\r\n--B--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    status, answer = server._ask(urllib.request.Request(f"{server.address}/predict", body, headers))
    assert status == 422
    reason = json.loads(answer)["reason"]
    assert "part 2 of the field 'files' has no filename" in reason
    assert "UploadFile" not in reason


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
    with pytest.raises(PipelineError, match=f"--port {port}"):
        serve(ServeConfig("tests/data/model-1.safetensors", port=int(port)))  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=r"--host 300\.1\.1\.1"):
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
        assert "at most 3 files, 1 MB together, 4 megapixels each" in page.find_element("id", "limits").text
        assert page.find_element("id", "curl").text == f"curl -F files=@picture.jpg {server.address}/predict"
        listed = page.find_elements("css selector", "#classes li")
        assert [one.get_attribute("textContent") for one in listed] == ["rose", "b"]
        assert not listed[0].is_displayed()
        (tmp_path / "broken.png").write_text("text")
        deadline = time.monotonic() + 20
        page.find_element("id", "files").send_keys(f"{tmp_path / 'broken.png'}\n{tmp_path / 'flower <b>.png'}")
        while not (failed := page.find_elements("css selector", ".failed")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "Not read: not an image" in failed[0].text
        page.execute_script("document.getElementById('files').value = ''")
        page.find_element("id", "files").send_keys(str(tmp_path / "flower <b>.png"))
        while page.find_elements("css selector", ".failed") and time.monotonic() < deadline:
            time.sleep(0.1)
        while not (found := page.find_elements("css selector", "article li")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [line.text.split("\n")[0] for line in found] == ["rose", "b"]
        assert "77.8 %" in found[0].text
        assert not page.find_elements("css selector", ".answer")  # above 50 %
        assert page.find_element("css selector", "article h2").text == "flower <b>.png"
        assert "on the server" in page.find_element("id", "status").text
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert errors(page) == []
        urls = asked(page)
        assert urls
        assert all(url.startswith((server.address, "blob:", "data:")) for url in urls)
        page.find_element("tag name", "body").send_keys("\t")
        assert page.switch_to.active_element.get_attribute("id") == "place"


@pytest.fixture(scope="module")
def detecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same model with a detector that knows pictures like the noise of class 1, evidence and sets."""
    folder = tmp_path_factory.mktemp("detecting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", BackboneSpec(build_tiny, NamedWeights("tiny", "NONE", None)))
        bundle = load_model(MODEL)
        rows = bundle.on("cpu").features([draw_image(folder / f"{number}.png", number) for number in range(60)])
    known, logits = pooled(bundle.layout, rows), bundle.head(rows)
    distance = Distance.of(moments_of(known[:30], torch.arange(30) % 2, 2))
    scale = scale_of(distance.of_rows(known[30:]), logits[30:])
    detector = UnknownDetector(distance, scale, torch.zeros(1))
    detector = UnknownDetector(distance, scale, detector.scores(known[30:], logits[30:]).sort().values)
    card = {name: value for name, value in bundle.stored.items() if name != "digest"}
    card["unknown"] = {"score": "a score", "false_alarms": 0.04, "images": 30, "auroc_left_out": None}
    card["sets"] = {"coverage": 0.9, "images": 30, "least": [0.5, 0.1], "mean_size": 1.5}
    model = folder / "model.safetensors"
    write_bundle(model, bundle.backbone_tensors, bundle.head, card, detector, rows.mean(0))
    with serving(folder, model=model) as running:
        yield running


def test_unknown_pictures_are_not_answered(detecting: Server, tmp_path: Path) -> None:
    """Those like the training images are, with a set and evidence where that is asked for; drift counts them all."""
    picture, stripes = draw_image(tmp_path / "one.png", 0).read_bytes(), io.BytesIO()
    Image.fromarray(np.tile(np.array([[0], [255]], np.uint8), (20, 40))).save(stripes, "PNG")
    status, answer = detecting.post(("a.png", picture), ("b.png", stripes.getvalue()), query="?explain=true")
    assert status == 200
    known, unknown = answer["predictions"]
    assert (known["answered"], known["reason"], known["set"]) == (True, "", ["a", "b"])
    assert known["unknown_p"] > 0.04 > unknown["unknown_p"]
    assert (unknown["answered"], unknown["reason"]) == (False, "probably none of the 2 classes")
    evidence = known["evidence"]
    assert (evidence["class"], evidence["against"]) == ("a", "b")
    assert np.sum(evidence["cells"]) + evidence["constant"] == pytest.approx(evidence["total"], abs=1e-6)
    assert evidence["picture"].startswith("data:image/png;base64,")
    assert detecting.post(("a.png", picture))[1]["predictions"][0]["evidence"] is None
    for _ in range(20):
        detecting.post(("b.png", stripes.getvalue()))
    drift = json.loads(detecting.get("/drift")[1])
    assert drift["images"] == sum(drift["tenths"]) == 23
    assert drift["unlike"] > 0.5
    assert detecting.post(("a.png", picture), query="?explain=perhaps")[0] == 422


def test_models_without_a_detector_answer_everything(server: Server, picture: bytes) -> None:
    """As before; evidence is refused with what to do, and nothing is known of drift."""
    (one,) = server.post(("a.png", picture))[1]["predictions"]
    assert (one["answered"], one["reason"], one["unknown_p"], one["set"]) == (True, "", None, None)
    status, answer = server.post(("a.png", picture), query="?explain=true")
    assert status == 422
    assert "export it again" in answer["reason"]
    assert json.loads(server.get("/drift")[1]) == {
        "images": 0, "unlike": None, "interval": None, "flagged": None, "expected": None, "tenths": [0] * 10
    }  # fmt: skip


def test_the_page_says_none_of_these_and_why(detecting: Server, tmp_path: Path) -> None:
    """In plain words, with the picture's evidence; no error is logged at a phone's width."""
    draw_image(tmp_path / "a.png", 0)
    Image.fromarray(np.tile(np.array([[0], [255]], np.uint8), (20, 40))).save(tmp_path / "b.png")
    with browser() as page:
        page.get(detecting.address + "/")
        deadline = time.monotonic() + 20
        while "classes apart" not in page.find_element("id", "about").text and time.monotonic() < deadline:
            time.sleep(0.1)
        page.find_element("id", "files").send_keys(f"{tmp_path / 'a.png'}\n{tmp_path / 'b.png'}")
        while len(page.find_elements("css selector", "article")) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        known, unknown = page.find_elements("css selector", "article")
        assert known.find_element("css selector", "summary").text == "Why rose rather than b"
        assert known.find_element("css selector", "details img").is_displayed()
        assert "One of 2 classes: rose, b." in known.text
        assert unknown.find_element("css selector", ".answer").text == "Not answered\nProbably none of the 2 classes."
        assert not known.find_elements("css selector", ".answer")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert errors(page) == []


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: a few bytes each, and a pass over all pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_half_open_connections_keep_no_one_out(impatient: Server, picture: bytes) -> None:
    """More of them than there are descriptors, of which as many are used as are allowed."""
    assert resource.prlimit(impatient.process.pid, resource.RLIMIT_NOFILE) == (100, 100)
    with contextlib.ExitStack() as attack:
        for _ in range(4):
            for _ in range(50):
                attack.enter_context(impatient.connect(PREDICT))
            start = time.monotonic()
            assert impatient.get("/health")[0] == 200
            assert time.monotonic() - start < 1
            assert impatient.post(("a.png", picture))[0] == 200
    assert impatient.get("/health")[0] == 200
    assert len(impatient.log.read_text().splitlines()) == 1


def test_uploads_that_stop_keep_no_one_out(server: Server, picture: bytes) -> None:
    """They are dropped, the largest first, until they take eight times the limit of a request together."""
    head = PREDICT + b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 999999\r\n\r\n"
    part = b'--B\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + bytes(900_000)
    with contextlib.ExitStack() as attack:
        uploads = [attack.enter_context(server.connect(head + part)) for _ in range(20)]
        deadline = time.monotonic() + 10
        while (held := sum(map(is_open, uploads))) > 8 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert held == 8
        assert server.post(("a.png", picture))[0] == 200


def is_open(connection: socket.socket) -> bool:
    """Whether the service still holds a connection over which it has sent nothing."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        PREDICT,
        PREDICT + b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 999\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    ],
    ids=["nothing", "half a header", "half a body", "half a second request"],
)
def test_a_client_that_does_not_go_on_is_dropped(impatient: Server, sent: bytes) -> None:
    """Also one that sends a byte now and then."""
    with impatient.connect(sent) as slow:
        slow.settimeout(0.1)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                slow.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(9999):
                        break
            else:
                pytest.fail("still connected after 10 s")
    assert len(impatient.log.read_text().splitlines()) == 1


def test_what_is_not_http_is_logged_at_most_once(server: Server, picture: bytes) -> None:
    """Also behind a request whose answer is under way; and of requests sent at once the first is answered."""
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    before = server.log.read_text()
    for sent in (b"\x16\x03\x01\r\n\r\n", ask + b"x y\r\n\r\n", PREDICT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
        for _ in range(20):
            with server.connect(sent) as connection, contextlib.suppress(ConnectionError):
                connection.recv(99)
    with server.connect(ask * 100) as connection:
        answer = b"".join(iter(lambda: connection.recv(9999), b""))
    assert answer.count(b"HTTP/1.1 200") == 1
    assert server.post(("a.png", picture))[0] == 200
    assert len(server.log.read_text().splitlines()) <= len(before.splitlines()) + 1


def test_ctrl_c_ends_it_tidily_with_requests_in_progress(tmp_path: Path) -> None:
    """Status 0 and no traceback; what is computed is answered, an upload that stopped holds nothing up."""
    large = many_scans(1000, 25)
    with (
        serving(tmp_path) as server,
        ThreadPoolExecutor(1) as pool,
        server.connect(PREDICT + b"Content-Length: 99\r\n\r\nhalf"),
    ):
        answer = pool.submit(server.post, *[(name, large) for name in "ab"])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        assert answer.result()[0] == 200
        assert server.log.read_text().splitlines()[1:] == []


def test_large_images_wait_for_each_other_only(server: Server, picture: bytes) -> None:
    """Small ones are answered meanwhile; and large ones are refused where too many wait."""
    large = many_scans(1000, 25)

    def until_there_is_room() -> tuple[int, Any]:
        while (found := server.post(*[(name, large) for name in "abc"]))[0] == 503:
            time.sleep(0.05)
        return found

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(until_there_is_room)
        refused = 0
        while not answer.done():
            refused += server.post(("d", large))[0] == 503
            if not answer.done():
                assert server.post(("a.png", picture))[0] == 200
        status, found = answer.result()
    assert (status, len(found["predictions"])) == (200, 3)
    assert refused


def test_a_large_image_is_what_it_is_elsewhere(tmp_path: Path) -> None:
    """Its view is bit-equal to the one that a head is trained on; where it cannot be read the reason is the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    view = asyncio.run(view_of_large(data, 1_000_000, preprocessing(224)))
    assert np.array_equal(view, preprocessing(224).view(decode_rgb(data)))
    with pytest.raises(DecodeError, match=r"900 x 700 .*100,000"):
        asyncio.run(view_of_large(data, 100_000, preprocessing(224)))
    with pytest.raises(DecodeError, match="not an image"):
        asyncio.run(view_of_large(b"text \xff", 100_000, preprocessing(224)))


def test_effort_counts_pixels_and_scans() -> None:
    """A photo of a phone is decoded in a thread; one of many scans, or of a slow format, is not."""
    assert effort(b"text") == 0
    assert effort(many_scans(1000, 25)) > LARGE
    buffers = {kind: io.BytesIO() for kind in ("JPEG", "PNG", "WEBP")}
    for kind, buffer in buffers.items():
        Image.new("L", (2000, 2000)).save(buffer, kind)
    efforts = {kind: effort(buffer.getvalue()) for kind, buffer in buffers.items()}
    assert efforts["JPEG"] <= SMALL < LARGE < efforts["PNG"] == efforts["WEBP"]


def test_stopping_ends_the_process_that_decodes_a_large_image() -> None:
    """It could take 20 s of processor time, and nobody waits for its answer any more."""

    async def stopped() -> None:
        before = set(psutil.Process().children())
        task = asyncio.create_task(view_of_large(many_scans(2000, 200), 1 << 30, preprocessing(224)))
        while not (children := set(psutil.Process().children()) - before):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not psutil.wait_procs(children, timeout=10)[1]

    asyncio.run(stopped())
