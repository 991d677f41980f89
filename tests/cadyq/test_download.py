"""Downloads, against a server on the loopback interface: each ends in the file, or in one line and no file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import cadyq
from cadyq.checkpoints import download as fetching
from cadyq.checkpoints import published
from cadyq.checkpoints.published import tensors_sha256
from cadyq.commands.download import main
from cadyq.utils.errors import UserError

pytest.importorskip("pooch", reason="the extra `foreign` is not installed")


@dataclass
class Server:
    """What it sends, and what it was asked for: `promised` is the Content-Length of each answer, in turn."""

    address: str
    content: bytes
    promised: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if not self.path.endswith(".pth"):
                self.send_error(404)
                return
            promised = state.promised.pop(0) if state.promised else len(state.content)
            self.send_response(200)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_port}", b"")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is empty, and a table of three networks on the server: "net", "gone", and "values"."""
    network = cadyq.create_model("imdn", scale=2, n_feats=8, n_resblocks=1)
    torch.save(network.state_dict(), tmp_path / "made.pth")
    server.content = (tmp_path / "made.pth").read_bytes()
    begins = sha256(server.content).hexdigest()[:16]
    row = (
        'loader = "imdn"\nscale = 2\narchitecture = "A"\nlicence = "MIT"\npsnr_set5_db = 30.5\nsha256_safetensors = "-"'
    )
    rows = {
        "net": f'{row}\nfile = "net"\naddress = "{server.address}/net.pth"\nsha256_begins = "{begins}"',
        "gone": f'{row}\nfile = "gone"\naddress = "{server.address}/gone"\nsha256_begins = "{begins}"',
        "values": f'{row}\nfile = "values"\naddress = "{server.address}/values.pth"\n'
        f'sha256_tensors = "{tensors_sha256(network.state_dict())}"',
    }
    text = "\n".join(f'[[network]]\nname = "{name}"\n{fields}' for name, fields in rows.items())
    (tmp_path / "table.toml").write_text(text)
    monkeypatch.setattr(published, "TABLE", tmp_path / "table.toml")
    monkeypatch.delenv(published.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(published, "cache_folder", lambda: cache)
    return cache


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr with which a download ends."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    return err


@pytest.mark.parametrize("name", ["net", "values"])
def test_the_right_file(name: str, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    path = folder / f"{name}.pth"
    assert path.read_bytes() == server.content
    assert _left(folder) == [path.name]
    assert str(path) in capsys.readouterr().out
    assert published.locate(f"published:{name}") == path


def test_a_file_that_is_there_is_not_fetched_again(server: Server, folder: Path) -> None:
    assert main(["net"]) == main(["net"]) == main(["net", "--cache", str(folder)]) == 0
    assert server.asked == ["/net.pth"]


@pytest.mark.parametrize("content", [b"another file", b""])
@pytest.mark.parametrize(("name", "reason"), [("net", "SHA-256 begins with"), ("values", "holds")])
def test_a_wrong_hash(
    name: str, reason: str, content: bytes, server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = content
    line = _fails(capsys, name)
    assert reason in line and f"/{name}.pth" in line and "not kept" in line
    assert _left(folder) == []


def test_other_values_are_noticed_where_the_hash_of_the_file_is_not_known(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / "other.pth")
    server.content = (folder / "other.pth").read_bytes()
    (folder / "other.pth").unlink()
    assert "holds other values" in _fails(capsys, "values")
    assert _left(folder) == []


def test_cut_off(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.promised = [2 * len(server.content)] * fetching.ATTEMPTS
    line = _fails(capsys, "net")
    assert "it broke off" in line and "run the same command again" in line
    assert len(server.asked) == fetching.ATTEMPTS
    assert _left(folder) == []
    assert main(["net"]) == 0, "the same command again"
    assert _left(folder) == ["net.pth"]


def test_cut_off_once(server: Server, folder: Path) -> None:
    server.promised = [2 * len(server.content)]
    assert main(["net"]) == 0
    assert (folder / "net.pth").read_bytes() == server.content
    assert _left(folder) == ["net.pth"]


def test_a_damaged_file_is_replaced(server: Server, folder: Path) -> None:
    (folder / "net.pth").write_bytes(server.content[:100])
    with pytest.raises(UserError, match=r"net\.pth: SHA-256 begins with .* python -m cadyq\.download net"):
        cadyq.load_model("published:net")
    assert main(["net"]) == 0
    assert (folder / "net.pth").read_bytes() == server.content


def test_a_damaged_file_stays_where_the_right_one_cannot_be_had(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "net.pth").write_bytes(b"half")
    server.content = b"another file"
    _fails(capsys, "net")
    assert (folder / "net.pth").read_bytes() == b"half"
    assert _left(folder) == ["net.pth"]


def test_no_network(server: Server, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    closed = (tmp_path / "table.toml").read_text().replace(server.address, "http://127.0.0.1:1")
    (tmp_path / "closed.toml").write_text(closed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "TABLE", tmp_path / "closed.toml")
        line = _fails(capsys, "net")
    assert "no connection" in line and str(folder / "net.pth") in line
    assert _left(folder) == []


def test_an_address_that_is_gone(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "HTTP status 404" in _fails(capsys, "gone")
    assert server.asked == ["/gone"]
    assert _left(folder) == []


def test_a_folder_that_is_a_file(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"--cache {tmp_path / 'file'}" in _fails(capsys, "net", "--cache", str(tmp_path / "file"))


def test_unknown_names_and_the_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'net'" in _fails(capsys, "nett")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "gone", "net", "values"]
    assert "30.50" in lines[1] and "MIT" in lines[1]
    assert cadyq.list_models("ne?") == ["published:net"]


def test_without_pooch(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    assert "pip install 'cadyq[foreign]'" in _fails(capsys, "net")
