"""A way between a device and its broker, on which what passes is counted and which can be cut.

Counted are the bytes inside the connection (TLS included) and, from the kernel's own books
(TCP_INFO of the device's connection, Linux), its segments both ways: those that carry bytes, bare
acknowledgements, and those that open and close it. Everything of the headers below is arithmetic.
"""

import contextlib
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

from wire import PotluckError

HOST: Final = "127.0.0.1"
# IPv4 and TCP with timestamps (RFC 791, 9293 and 7323): 20 + 20 + 12. Of the link below nothing.
HEADER_BYTES: Final = 52
# A loopback segment carries 64 KB; on Ethernet it is this much.
SEGMENT_BYTES_MAX: Final = 1_448
# What a sender may have under way. Loopback takes megabytes at once, which no radio does, and all
# of it is lost when a connection breaks.
WINDOW_BYTES: Final = 65_536
# Delayed acknowledgements take 40 ms: what is quiet for so long is over.
QUIET_S: Final = 0.4
_READ_BYTES: Final = 65_536
_LOOK_S: Final = 0.1
# struct tcp_info of Linux: `tcpi_segs_out` and `tcpi_segs_in`.
_SEGMENTS_AT: Final = 136
_SEGMENTS: Final = struct.Struct("=II")


class RelayError(PotluckError):
    """What was to be counted cannot be counted here."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What passed between two moments of quiet, the device's side.

    `up_bytes` and `down_bytes` are the connection's own; `segments` are of both ways.
    """

    at_s: float
    up_bytes: int
    down_bytes: int
    segments: int

    @property
    def wire_bytes(self) -> int:
        """With IPv4 and TCP headers."""
        return self.up_bytes + self.down_bytes + HEADER_BYTES * self.segments


@dataclass(slots=True)
class _Pair:
    device: socket.socket
    broker: socket.socket


class Relay:
    """Listens on a port of its own and passes connections on to `port`; in a thread.

    Args:
        port: the broker's.
    """

    def __init__(self, port: int) -> None:
        self.up_bytes = 0
        self.exchanges: list[Exchange] = []
        self._target = port
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, _Pair] = {}
        self._cut_at: int | None = None
        self._cut = threading.Event()
        self._segments_before = 0
        self._up = self._down = 0
        self._seen = (0, 0, 0)
        self._busy_since_s: float | None = None
        self._busy_until_s = 0.0
        self._stop = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES_MAX)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW_BYTES)
        self._listener.bind((HOST, 0))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def cut_after(self, up_bytes: int) -> None:
        """Break every connection, and take no new one, once so many bytes have gone up in all."""
        self._cut_at = up_bytes

    def wait_for_cut(self, patience_s: float) -> None:
        """Until that has happened.

        Raises:
            RelayError: it did not within `patience_s`.
        """
        if not self._cut.wait(patience_s):
            raise RelayError(f"after {patience_s:g} s only {self.up_bytes:,} bytes have gone up")

    def mend(self) -> None:
        """Take connections again."""
        self._cut_at = None
        self._cut.clear()

    def drop(self) -> None:
        """Break what there is; new connections are taken."""
        for sock in tuple(self._pairs):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()
        for sock in (self._listener, *self._pairs):
            sock.close()
        self._selector.close()

    # -- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _events in self._selector.select(_LOOK_S):
                sock = key.fileobj
                if sock is self._listener:
                    self._accept()
                elif isinstance(sock, socket.socket) and sock in self._pairs:
                    self._pass_on(sock)
            self._close_exchange()

    def _accept(self) -> None:
        device, _address = self._listener.accept()
        if self._cut.is_set():
            device.close()
            return
        try:
            broker = socket.create_connection((HOST, self._target), timeout=5.0)
        except OSError:
            device.close()
            return
        pair = _Pair(device, broker)
        for sock in (device, broker):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[sock] = pair
            self._selector.register(sock, selectors.EVENT_READ)
        self._note()

    def _pass_on(self, sock: socket.socket) -> None:
        pair = self._pairs[sock]
        ours = sock is pair.device
        try:
            data = sock.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._end(pair)
            return
        self._note()
        if ours:
            self._up += len(data)
            self.up_bytes += len(data)
        else:
            self._down += len(data)
        if ours and self._cut_at is not None and self.up_bytes >= self._cut_at:
            for each in {id(pair): pair for pair in self._pairs.values()}.values():
                self._drain(each)
                self._end(each)
            self._cut.set()
            return
        try:
            (pair.broker if ours else pair.device).sendall(data)
        except OSError:
            self._end(pair)

    def _drain(self, pair: _Pair) -> None:
        """Count what the device has sent and nobody will read."""
        pair.device.settimeout(0.0)
        with contextlib.suppress(OSError):
            while data := pair.device.recv(_READ_BYTES):
                self._up += len(data)
                self.up_bytes += len(data)

    def _end(self, pair: _Pair) -> None:
        self._note()
        self._segments_before += segments(pair.device)
        for sock in (pair.device, pair.broker):
            if self._pairs.pop(sock, None) is not None:
                self._selector.unregister(sock)
                sock.close()

    def _note(self) -> None:
        self._busy_until_s = time.monotonic() + QUIET_S
        if self._busy_since_s is None:
            self._busy_since_s = time.monotonic()

    def _close_exchange(self) -> None:
        if self._busy_since_s is None or time.monotonic() < self._busy_until_s:
            return
        alive = {id(pair): pair.device for pair in self._pairs.values()}
        now = (self._up, self._down, self._segments_before + sum(map(segments, alive.values())))
        up, down, count = (after - before for after, before in zip(now, self._seen, strict=True))
        self.exchanges.append(Exchange(self._busy_since_s, up, down, count))
        self._seen, self._busy_since_s = now, None


def segments(sock: socket.socket) -> int:
    """Segments of a connection so far, both ways; 0 of one that is gone.

    Raises:
        RelayError: not on Linux.
    """
    if sys.platform != "linux":
        raise RelayError("counting TCP segments needs Linux: its kernel says how many there were")
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return 0
    return sum(_SEGMENTS.unpack_from(info, _SEGMENTS_AT))
