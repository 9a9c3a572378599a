import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.http import HttpAddress, HttpServer, HttpServerError, _server
from tests.support.http_api import TOKEN, Api
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

LOCAL = HttpAddress("127.0.0.1", 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    running = HttpServer(Api(tmp_path_factory.mktemp("api")).desk, LOCAL, TOKEN)
    yield running
    running.stop()


def healthy(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/healthz", timeout=5.0) as answer:  # noqa: S310 - http
        status: str = json.load(answer)["status"]
    return status == "ok"


def connect(server: HttpServer) -> socket.socket:
    port = int(server.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=5.0)


def said(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65_536):
        data += piece
    return data


def closed(sock: socket.socket) -> bool:
    try:
        return said(sock) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::1]:0", "::1", 0),
        ("gateway.example:65535", "gateway.example", 65535),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert HttpAddress.parse(text) == HttpAddress(host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":80", "8080", "host", "host:", "host:-1", "host:65536", "::1:80", "h:1e3", "h:\u0661"],
)
def test_what_is_no_address_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(HttpServerError, match="write HOST:PORT, as in 127"):
        HttpAddress.parse(text)


def test_port_0_takes_a_free_one_and_says_which(server: HttpServer) -> None:
    assert not server.url.endswith(":0")
    assert not server.exposed
    assert healthy(server.url)


def test_a_port_in_use_is_one_line_that_says_what_to_do(tmp_path: Path, server: HttpServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(HttpServerError, match=r"in use; choose another port, or 0") as error:
        HttpServer(Api(tmp_path / "other").desk, HttpAddress("127.0.0.1", port), TOKEN)
    assert "\n" not in str(error.value)


def test_a_name_that_leads_nowhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HttpServerError, match=r"--http nowhere\.invalid:80"):
        HttpServer(Api(tmp_path).desk, HttpAddress("nowhere.invalid", 80), TOKEN)


def test_an_address_that_others_reach_is_known_for_it(tmp_path: Path) -> None:
    running = HttpServer(Api(tmp_path).desk, HttpAddress("0.0.0.0", 0), TOKEN)  # noqa: S104 - the point
    try:
        assert running.exposed
    finally:
        running.stop()


def test_a_server_that_is_stopped_is_gone(tmp_path: Path) -> None:
    running = HttpServer(Api(tmp_path).desk, LOCAL, TOKEN)
    open_for_long = connect(running)
    began_at_s = time.monotonic()
    running.stop()
    assert time.monotonic() - began_at_s < 3.0
    with pytest.raises(OSError, match="refused"):
        connect(running)
    open_for_long.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(server: HttpServer, sent: bytes) -> None:
    with connect(server) as sock:
        sock.sendall(sent)
        assert said(sock).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert healthy(server.url)


@pytest.mark.parametrize(
    "path", [b"/../coordinator.key", b"/v1/models/../../ca.key", b"/v1/models/..%2fca.key/download"]
)
def test_no_path_leads_out_of_the_table(server: HttpServer, path: bytes) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert said(sock).startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


def test_a_request_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "REQUEST_S_MAX", 0.05)
    running = HttpServer(Api(tmp_path).desk, LOCAL, TOKEN)
    try:
        with connect(running) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
            assert closed(sock)
    finally:
        running.stop()


def test_many_slow_clients_keep_nobody_else_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_server, "CONNECTIONS_MAX", 10)
    running = HttpServer(Api(tmp_path).desk, LOCAL, TOKEN)
    slow = []
    try:
        for _ in range(30):
            slow.append(connect(running))
            slow[-1].sendall(b"GET /healthz HTTP/1.1\r\n")
        assert healthy(running.url)
    finally:
        for sock in slow:
            sock.close()
        running.stop()


@pytest.mark.slow
def test_a_coordinator_without_the_api_does_not_load_it() -> None:
    code = (
        "import sys, coordinator, potluck.__main__ as m; m.build_parser();"
        "print([n for n in sys.modules if n.partition('.')[0] in"
        " ('starlette', 'uvicorn', 'prometheus_client', 'anyio') or n == 'coordinator.http'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
