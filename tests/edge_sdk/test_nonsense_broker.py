"""A broker that says anything: the device outlives it, says so once, and takes a good one back."""

import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import EmbeddedBroker
from tests.support.federated import Federated
from tests.support.processes import until
from wire import BrokerAddress, MqttLink, Report

Speak = Callable[[socket.socket, Callable[[], bool]], None]

# The shortest that a good broker says: CONNACK in MQTT 5, and the SUBACK to a first subscription.
CONNACK = bytes([0x20, 3, 0, 0, 0])
SUBACK = bytes([0x90, 4, 0, 1, 0, 1])


class Switch:
    """A port at which a good broker answers, or somebody else: connections are those of today."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        address = BrokerAddress.parse(broker.url)
        self._good = (address.host, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.speak: Speak | None = None
        self.accepted = 0
        self._over = False
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._over:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(inside)
            threading.Thread(target=self._serve, args=(inside, self.speak), daemon=True).start()

    def _serve(self, inside: socket.socket, speak: Speak | None) -> None:
        try:
            if speak is not None:
                speak(inside, lambda: self._over or self.speak is not speak)
                return
            with socket.create_connection(self._good) as outside:
                self._open.append(outside)
                back = threading.Thread(target=_pump, args=(outside, inside), daemon=True)
                back.start()
                _pump(inside, outside)
                back.join()
        except OSError:
            pass
        finally:
            inside.close()

    def becomes(self, speak: Speak | None) -> None:
        """From now on this answers; whoever is connected is cut off."""
        self.speak = speak
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Nobody answers any more."""
        self._over = True
        self._listener.close()
        self.becomes(None)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
    except OSError:
        pass
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def says(data: bytes, *, then_silent: bool = False) -> Speak:
    """Say this as soon as somebody has connected, then hang up or be silent."""

    def speak(sock: socket.socket, over: Callable[[], bool]) -> None:
        sock.recv(4_096)
        sock.sendall(data)
        while then_silent and not over():
            time.sleep(0.02)

    return speak


def floods(sock: socket.socket, over: Callable[[], bool]) -> None:
    """A packet of a quarter of a gigabyte, as fast as it goes."""
    sock.recv(4_096)
    sock.sendall(CONNACK + SUBACK + bytes([0x32, 0xFF, 0xFF, 0xFF, 0x7F]))
    block = bytes(1 << 20)
    while not over():
        sock.sendall(block)


def noise(sock: socket.socket, _over: Callable[[], bool]) -> None:
    """Bytes by lot."""
    sock.sendall(random.randbytes(4_096))


def publish(topic: bytes, payload: bytes, *, mid: int = 7) -> bytes:
    """A PUBLISH at QoS 1 in MQTT 5."""
    body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", mid) + b"\0" + payload
    assert len(body) < 128
    return bytes([0x32, len(body)]) + body


NONSENSE: dict[str, Speak] = {
    "noise": noise,
    "flood": floods,
    "closes_at_once": lambda _sock, _over: None,
    "silence": says(b"", then_silent=True),
    "half_a_connack": says(CONNACK[:2], then_silent=True),
    "connack_of_no_known_code": says(bytes([0x20, 3, 0, 0xEE, 0])),
    "connack_that_refuses": says(bytes([0x20, 3, 0, 0x87, 0])),
    "connack_with_broken_properties": says(bytes([0x20, 5, 0, 0, 2, 0xEE, 1])),
    "publish_before_connack": says(publish(b"p/x/y/down", b"x") + CONNACK, then_silent=True),
    "suback_that_refuses": says(CONNACK + bytes([0x90, 4, 0, 1, 0, 0x87])),
    "pubacks_for_nothing": says(CONNACK + SUBACK + bytes([0x40, 2, 0x12, 0x34]) * 9),
    "wildcard_topic": says(CONNACK + SUBACK + publish(b"p/+/#", b"x")),
    "topic_that_is_no_text": says(CONNACK + SUBACK + publish(b"\xff\xfe\x00", b"x")),
    "no_topic": says(CONNACK + SUBACK + publish(b"", b"x")),
    "length_without_end": says(CONNACK + SUBACK + bytes([0x30, *[0xFF] * 9])),
    "frame_that_is_none": says(CONNACK + SUBACK + publish(b"a/b/down", b"\0" * 90)),
}


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def switch(broker: EmbeddedBroker) -> Iterator[Switch]:
    running = Switch(broker)
    yield running
    running.close()


@pytest.mark.live
@pytest.mark.timeout(240)
def test_a_device_outlives_every_nonsense_and_takes_a_good_broker_back(
    tmp_path: Path, broker: EmbeddedBroker, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wire.link.RECONNECT_S_MAX", 1)
    monkeypatch.setattr("wire.link.KEEPALIVE_S", 5)
    federated = Federated(tmp_path, broker.url)
    reports: list[Report] = []
    try:
        device = federated.device(1, on_report=reports.append, broker=switch.url)
        device.enroll(federated.tokens)
        device.start()
        until(lambda: device.model.version == 2, "the release")
        model, grown_from = device.model, psutil.Process().memory_info().rss
        for name, speak in NONSENSE.items():
            before = switch.accepted
            switch.becomes(speak)
            until(lambda b=before: switch.accepted >= b + 1, f"a connection to {name}")  # type: ignore[misc] # bound at once
            time.sleep(0.3)
            assert device.running, name
            assert device.error is None, name
        assert psutil.Process().memory_info().rss - grown_from < 64 << 20
        count = len(reports)
        switch.becomes(None)
        until(lambda: device._current.link.up, "the good broker", 90.0)  # type: ignore[union-attr] # it runs
        assert device.model is model or device.model.version == 2
        downs = [r.detail for r in reports[:count] if r.what == "broker_down"]
        # Each word once, until another one comes: not one line for every try.
        assert all(one != other for one, other in itertools.pairwise(downs))
        assert len(downs) <= 2 * len(NONSENSE)
        assert device.leave()
    finally:
        federated.close()


@pytest.mark.live
@settings(max_examples=40)
@given(st.lists(st.binary(max_size=40), max_size=6), st.booleans())
def test_no_bytes_of_a_broker_end_the_links_thread(parts: list[bytes], welcome: bool) -> None:  # noqa: FBT001 - hypothesis's
    server, client = socket.socketpair()
    heard: list[str] = []
    link = MqttLink(
        BrokerAddress("localhost", 1, tls=False),
        "d",
        subscriptions=("a/b/down",),
        on_message=lambda topic, _data: heard.append(topic),
        on_up=lambda _bytes: None,
        on_down=lambda _reason: None,
    )
    paho: Any = link._client
    paho._sock = client
    client.settimeout(0.0)
    server.sendall((CONNACK + SUBACK if welcome else b"") + b"".join(parts))
    server.close()
    for _ in range(200):
        if paho._sock is None:
            break
        link.read()
    client.close()


@pytest.mark.live
def test_a_packet_larger_than_the_link_takes_is_not_read() -> None:
    server, client = socket.socketpair()
    downs: list[str] = []
    link = MqttLink(
        BrokerAddress("localhost", 1, tls=False),
        "d",
        subscriptions=(),
        on_message=lambda *_: None,
        on_up=lambda _bytes: None,
        on_down=downs.append,
        packet_bytes_max=1_000,
    )
    paho: Any = link._client
    paho._sock = client
    client.settimeout(0.0)
    server.sendall(bytes([0x30, 0xFF, 0xFF, 0x7F]) + bytes(10_000))
    for _ in range(5):
        link.read()
    assert len(paho._in_packet["packet"]) == 0
    assert paho._sock is None
    server.close()
