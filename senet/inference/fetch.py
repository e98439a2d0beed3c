"""Fetch an untrusted URL: http(s) only, bounded in size and time, public addresses only.

A name is resolved once, all its addresses must be allowed, and the connection goes to one of them: a name server that
answers differently the second time has no effect. Redirects are checked in the same way. Proxies of the environment are
not used: they would connect to addresses that were not checked.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_SocketAddress = tuple[str, int] | tuple[str, int, int, int]
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 5
_READ_BYTES = 65_536


class FetchError(Exception):
    """Why a URL was not fetched, in one line."""


def is_public(address: IpAddress) -> bool:
    """Whether it is a host on the internet: not private, loopback, link-local, multicast, reserved.

    IPv6 addresses that contain an IPv4 address are judged by it (mapped) or refused (6to4, NAT64, compatible).
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


@dataclass(frozen=True)
class Limits:
    """Limits of one fetch, redirects included, and the addresses that it may connect to."""

    size_bytes: int = 20 * 2**20
    time_s: float = 20.0
    """From the name's resolution to the last byte of the body."""
    may_connect: Callable[[IpAddress], bool] = is_public


def fetch(url: str, limits: Limits) -> bytes:
    """The body of a response with status 200, after at most 5 redirects. Reads at most ``limits.size_bytes`` + 1.

    Raises:
        FetchError: another scheme, an address that is not allowed, another status, too large, too slow, no connection.
    """
    deadline = time.monotonic() + limits.time_s
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            body, location = _request(url, limits, deadline)
            if not location:
                return body
            url = urljoin(url, location)
        raise FetchError(f"more than {_MAX_REDIRECTS} redirects")
    except FetchError:
        raise
    except Exception as error:  # also ValueError, UnicodeError, HTTPException: invalid URLs and responses
        if time.monotonic() < deadline:
            raise FetchError(f"{type(error).__name__}: {error}") from None
        raise _too_slow(limits) from None


def _too_slow(limits: Limits) -> FetchError:
    return FetchError(f"not complete within {limits.time_s:g} s")


def _request(url: str, limits: Limits, deadline: float) -> tuple[bytes, str]:
    """(body, "") or (b"", the target of a redirect). A body that the deadline cuts off is an error."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError(f"{url!r} is not http://host/... or https://host/...")
    connection = _connection(parts, _resolve(parts, limits, deadline), deadline)
    # with a timeout per read a server could send single bytes for ever; this ends handshake, headers and body alike
    watchdog = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("GET", _target(parts), headers={"User-Agent": "senet", "Connection": "close"})
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and (location := answer.getheader("Location")):
            return b"", location
        if answer.status != http.client.OK:
            raise FetchError(f"HTTP {answer.status} {http.client.responses.get(answer.status, '')}".strip())
        return _read(answer, limits, deadline), ""
    finally:
        watchdog.cancel()
        connection.close()


def _read(answer: http.client.HTTPResponse, limits: Limits, deadline: float) -> bytes:
    too_large = FetchError(f"more than {limits.size_bytes:,} bytes")
    if (answer.length or 0) > limits.size_bytes:
        raise too_large
    body = bytearray()
    while part := answer.read(min(_READ_BYTES, limits.size_bytes + 1 - len(body))):
        body += part
        if len(body) > limits.size_bytes:
            raise too_large
        if time.monotonic() >= deadline:
            raise _too_slow(limits)
    if time.monotonic() >= deadline:  # a body that was cut off ends like a complete one
        raise _too_slow(limits)
    if answer.length:
        raise FetchError(f"the connection ended {answer.length:,} bytes early")
    return bytes(body)


def _resolve(parts: SplitResult, limits: Limits, deadline: float) -> list[_SocketAddress]:
    """All addresses of the host; FetchError where one of them is not allowed."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found: list[_SocketAddress] = []
    failure: list[Exception] = []

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
            found.extend(address for *_, address in answers)  # type: ignore[misc] # of AF_INET and AF_INET6 only
        except (OSError, UnicodeError) as error:
            failure.append(error)

    # in a thread, since getaddrinfo has no timeout
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if failure:
        raise FetchError(f"{parts.hostname} cannot be resolved: {failure[0]}")
    addresses = list(found)
    for address in addresses:
        if not limits.may_connect(ipaddress.ip_address(address[0])):
            raise FetchError(f"{parts.hostname} has the address {address[0]}, which is not public (--allow-private)")
    return addresses


def _target(parts: SplitResult) -> str:
    """Path and query; characters that a request line must not contain are escaped."""
    query = f"?{parts.query}" if parts.query else ""
    return quote((parts.path or "/") + query, safe="%/:=&?~#+!$,;'@()*[]")


class _Connection(http.client.HTTPConnection):
    """Connects only to the given addresses; Host header and certificate are still those of the name."""

    def __init__(self, parts: SplitResult, addresses: list[_SocketAddress], deadline: float) -> None:
        super().__init__(parts.hostname or "", parts.port)
        self._addresses = addresses
        self._deadline = deadline
        self._to_cut: socket.socket | None = None

    def connect(self) -> None:
        error: OSError = TimeoutError("no address to connect to in time")
        for address in self._addresses:
            try:
                self.sock = socket.create_connection(address[:2], max(0.001, self._deadline - time.monotonic()))
                break
            except OSError as failure:
                error = failure
        else:
            raise error
        self._let_cut(self.sock)

    def _let_cut(self, connected: socket.socket) -> None:
        self._to_cut = connected
        if time.monotonic() >= self._deadline:  # the watchdog may have come before there was a socket
            raise TimeoutError

    def cut(self) -> None:
        """End a read or write that another thread waits for."""
        if self._to_cut is not None:
            with contextlib.suppress(OSError):  # it has just ended by itself
                # socket's method: that of SSLSocket would drop the TLS state while the other thread reads
                socket.socket.shutdown(self._to_cut, socket.SHUT_RDWR)


class _TlsConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self._let_cut(self.sock)  # kept apart: http.client drops self.sock once it has the headers
        self.sock.do_handshake()


def _connection(parts: SplitResult, addresses: list[_SocketAddress], deadline: float) -> _Connection:
    return (_TlsConnection if parts.scheme == "https" else _Connection)(parts, addresses, deadline)
