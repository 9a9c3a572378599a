"""A stretch of network that can be cut: a TCP relay between devices and a broker, on loopback.

It counts every byte that devices write, also what is on its way when it cuts: a device has sent
that, whether or not anybody gets it.
"""

import contextlib
import socket
import threading
import time
from typing import Final

HOST: Final = "127.0.0.1"
_READ_BYTES: Final = 65_536
_CONNECT: Final = 0x10
_LEVEL_AT: Final = 6  # of a CONNECT's variable header: after the length and the name "MQTT"
_MQTT_5: Final = 5
_REFUSED_VERSION: Final = b"\x20\x02\x00\x01"  # MQTT 3.1.1, section 3.2.2.3: unacceptable version


class Relay:
    """Listens on a port of its own and passes on what comes, both ways.

    Args:
        port: of the broker, on loopback.
        cut_at_bytes: cut when devices have sent so many, None for never.
        cut_at_received_bytes: cut when they have been sent so many, None for never.
        mqtt5: whether connections of MQTT 5 are let through; else they are refused as a broker
            of 3.1.1 does.
        bytes_per_s: what passes each way at the most, None for no bound.

    Attributes:
        sent_bytes: what devices have written, all connections together.
        received_bytes: what was written to them.
        connections: how many there have been.
    """

    def __init__(
        self,
        port: int,
        *,
        cut_at_bytes: int | None = None,
        cut_at_received_bytes: int | None = None,
        mqtt5: bool = True,
        bytes_per_s: float | None = None,
    ) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.connections = 0
        self.was_cut = threading.Event()
        self._broker_port = port
        self._cut_at_bytes = cut_at_bytes
        self._cut_at_received_bytes = cut_at_received_bytes
        self._mqtt5 = mqtt5
        self._bytes_per_s = bytes_per_s
        self._source = HOST
        self._is_cut = False
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        """Where devices connect."""
        return f"mqtt://{HOST}:{self.port}"

    def cut(self) -> None:
        """Break every connection, and let none through until `mend`."""
        self._is_cut = True
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for device, broker in pairs:
            with contextlib.suppress(OSError):
                broker.shutdown(socket.SHUT_RDWR)
            # The device hears of it; what it has written until then is still read, and counted.
            with contextlib.suppress(OSError):
                device.shutdown(socket.SHUT_WR)
        self.was_cut.set()

    def mend(self, *, source: str = HOST, cut_at_bytes: int | None = None) -> None:
        """Let connections through again, from this address: a device that roams has another."""
        self._source, self._cut_at_bytes = source, cut_at_bytes
        self._is_cut = False
        self.was_cut.clear()

    def redirect(self, port: int) -> None:
        """Connections from now on go to another broker; those that are there break."""
        self.cut()
        self._broker_port = port
        self.mend(source=self._source)

    def close(self) -> None:
        """End."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5.0)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                device.close()
                continue
            try:
                broker = socket.create_connection(
                    (HOST, self._broker_port), 5.0, source_address=(self._source, 0)
                )
            except OSError:
                device.close()
                continue
            broker.settimeout(None)
            for end in (device, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            with self._lock:
                self._pairs.append((device, broker))
            self._spawn(self._up, device, broker)
            self._spawn(self._down, device, broker)

    def _up(self, device: socket.socket, broker: socket.socket) -> None:
        first = True
        with contextlib.suppress(OSError), device:
            while data := device.recv(_READ_BYTES):
                self.sent_bytes += len(data)
                if first and not self._mqtt5 and _is_mqtt5(data):
                    device.sendall(_REFUSED_VERSION)
                    break
                first = False
                self._take_time(data)
                if self._cut_at_bytes is not None and self.sent_bytes >= self._cut_at_bytes:
                    self._cut_at_bytes = None
                    self.cut()
                with contextlib.suppress(OSError):
                    broker.sendall(data)
        with contextlib.suppress(OSError):
            broker.shutdown(socket.SHUT_RDWR)

    def _take_time(self, data: bytes) -> None:
        if self._bytes_per_s is not None:
            time.sleep(len(data) / self._bytes_per_s)

    def _down(self, device: socket.socket, broker: socket.socket) -> None:
        with contextlib.suppress(OSError), broker:
            while data := broker.recv(_READ_BYTES):
                self._take_time(data)
                device.sendall(data)
                self.received_bytes += len(data)
                at = self._cut_at_received_bytes
                if at is not None and self.received_bytes >= at:
                    self._cut_at_received_bytes = None
                    self.cut()
        with contextlib.suppress(OSError):
            device.shutdown(socket.SHUT_WR)


def _is_mqtt5(packet: bytes) -> bool:
    """Whether a connection begins with a CONNECT of MQTT 5 (section 3.1)."""
    if not packet or packet[0] != _CONNECT:
        return False
    at = 1
    while packet[at] & 0x80:
        at += 1
    return packet[at + 1 + _LEVEL_AT] == _MQTT_5
