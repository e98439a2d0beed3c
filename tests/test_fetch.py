"""Fetch untrusted URLs from servers on this machine."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from senet.inference.fetch import FetchError, IpAddress, Limits, _read, fetch, is_public

ANYONE = Limits(may_connect=lambda _address: True, time_s=10)
BIG = 50_000_000


class Site(BaseHTTPRequestHandler):
    """Serves what the tests request; ``sent`` and ``hosts`` record the requests."""

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        name = self.path.strip("/").split("?")[0]
        getattr(self, f"get_{name}", self.get_missing)()

    def get_ok(self) -> None:
        self._answer(200, {"Content-Length": "5"}, b"hello")

    def get_missing(self) -> None:
        self._answer(404, {"Content-Length": "4"}, b"gone")

    def get_round(self) -> None:
        self._answer(302, {"Location": "/round"})

    def get_home(self) -> None:
        self._answer(302, {"Location": "/ok"})

    def get_inside(self) -> None:
        self._answer(302, {"Location": f"http://127.0.0.1:{self.server.server_address[1]}/ok"})

    def get_file(self) -> None:
        self._answer(302, {"Location": "file:///etc/passwd"})

    def get_short(self) -> None:
        self._answer(200, {"Content-Length": "100"}, b"hello")

    def get_declared(self) -> None:
        self._answer(200, {"Content-Length": str(BIG)})

    def get_big(self) -> None:
        self._answer(200, {})
        block = bytes(1_000_000)
        for _ in range(BIG // len(block)):
            self._send(block)
            self.server.sent += len(block)  # type: ignore[attr-defined]

    def get_drip(self) -> None:
        self._answer(200, {"Content-Length": "1000"})
        self._drip(1000)

    def get_drip_headers(self) -> None:
        self._drip(1000)

    def _drip(self, count: int) -> None:
        for _ in range(count):
            self._send(b"x")
            time.sleep(0.05)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self._send(body)

    def _send(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    """No output when its client disconnects."""

    daemon_threads = True

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), Site)
        self.sent = 0
        self.hosts: list[str] = []
        threading.Thread(target=partial(self.serve_forever, poll_interval=0.01), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        return

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_address[1]}/{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("0.0.0.0")
    yield server
    server.shutdown()
    server.server_close()


def only_two(address: IpAddress) -> bool:
    """127.0.0.2 stands for a host on the internet."""
    return str(address) == "127.0.0.2" or is_public(address)


def test_a_body_comes_as_it_was_sent_also_after_a_redirect(server: Server) -> None:
    assert fetch(server.url("ok"), ANYONE) == b"hello"
    assert fetch(server.url("home?a=b c#d"), ANYONE) == b"hello"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nothing", "HTTP 404 Not Found"),
        ("round", "more than 5 redirects"),
        ("file", "is not http://"),
        ("short", "95 bytes early"),
    ],
)
def test_an_answer_without_the_body_says_why(server: Server, path: str, why: str) -> None:
    with pytest.raises(FetchError, match=why):
        fetch(server.url(path), ANYONE)


@pytest.mark.parametrize("url", ["ftp://example.org/x", "file:///etc/passwd", "http:///x", "https://", "http://[::1/x"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(FetchError):
        fetch(url, ANYONE)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),  # shared by carriers
        ("169.254.169.254", False),  # where clouds hand out credentials
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
    ],
)
def test_public_addresses_are_told_from_all_others(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.0.0.2"])
def test_this_machine_is_refused_however_it_is_written(server: Server, host: str) -> None:
    with pytest.raises(FetchError, match="which is not public"):
        fetch(server.url("ok", host), Limits())
    assert server.hosts == []


def test_a_redirect_to_this_machine_is_refused(server: Server) -> None:
    limits = Limits(may_connect=only_two)
    assert fetch(server.url("home", "127.0.0.2"), limits) == b"hello"  # the first hop counts as public
    server.hosts.clear()
    with pytest.raises(FetchError, match=r"127\.0\.0\.1, which is not public"):
        fetch(server.url("inside", "127.0.0.2"), limits)
    assert server.hosts == [f"127.0.0.2:{server.server_address[1]}"]  # and no other server was contacted


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.server_address[1]
    real, asked = socket.getaddrinfo, []

    def rebinding(host: str, *args: object, **kwargs: object) -> object:
        if host == "rebinds.example":
            asked.append(host)
            host = "127.0.0.2" if len(asked) == 1 else "127.0.0.1"
        return real(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert fetch(server.url("ok", "rebinds.example"), Limits(may_connect=only_two)) == b"hello"
    assert (asked, server.hosts) == (["rebinds.example"], [f"rebinds.example:{port}"])


def test_one_private_address_among_the_public_ones_is_enough_to_refuse(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(FetchError, match="not public"):
        fetch(server.url("ok", "both.example"), Limits(may_connect=only_two))
    assert server.hosts == []


def test_the_proxies_of_the_environment_are_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(server.url("ok"), ANYONE) == b"hello"


def test_a_body_of_50_megabytes_is_cut_at_the_limit(server: Server) -> None:
    with pytest.raises(FetchError, match="more than 1,000,000 bytes"):
        fetch(server.url("big"), Limits(size_bytes=1_000_000, may_connect=ANYONE.may_connect))
    time.sleep(0.2)
    assert server.sent < 15_000_000  # what fits between two sockets of this machine, far from 50 MB
    with pytest.raises(FetchError, match="more than 20,971,520 bytes"):
        fetch(server.url("declared"), ANYONE)


@pytest.mark.parametrize("path", ["drip", "drip_headers"])
def test_a_sender_that_drips_is_cut_when_the_time_is_over(server: Server, path: str) -> None:
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"not complete within 0\.5 s"):
        fetch(server.url(path), Limits(time_s=0.5, may_connect=ANYONE.may_connect))
    assert 0.4 < time.monotonic() - start < 30


def test_a_connection_made_too_late_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_connection

    def late(address: tuple[str, int], _timeout: float) -> socket.socket:
        time.sleep(0.3)  # the watchdog comes meanwhile, and finds nothing to cut
        return real(address)

    monkeypatch.setattr(socket, "create_connection", late)
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"not complete within 0\.2 s"):
        fetch(server.url("drip_headers"), Limits(time_s=0.2, may_connect=ANYONE.may_connect))
    assert time.monotonic() - start < 30
    assert server.hosts == []


def test_a_body_that_does_not_end_is_left_when_the_time_is_over() -> None:
    class Endless:
        length = None

        def read(self, _count: int) -> bytes:
            return b"x"

    with pytest.raises(FetchError, match="not complete within"):
        _read(Endless(), Limits(size_bytes=1000), time.monotonic())  # type: ignore[arg-type]


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(10) and [])
    with pytest.raises(FetchError, match="not complete within"):
        fetch("http://slow.example/", Limits(time_s=0.3))
    released.set()


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificate with openssl")
def test_a_certificate_is_checked_against_the_name_though_an_address_is_connected_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(FetchError, match="self-signed certificate"):
        fetch(server.url("ok", "localhost", "https"), ANYONE)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(server.url("home", "localhost", "https"), ANYONE) == b"hello"
    start = time.monotonic()
    with pytest.raises(FetchError, match="not complete within"):
        fetch(server.url("drip", "localhost", "https"), Limits(time_s=0.5, may_connect=ANYONE.may_connect))
    assert time.monotonic() - start < 30
    with pytest.raises(FetchError, match="not valid for '127"):
        fetch(server.url("ok", "127.0.0.1", "https"), ANYONE)
